"""Messages survive the wire; anything else is refused."""

import numpy as np
import pytest

from tokasaurus.errors import ProtocolError
from tokasaurus.ipc.channels import MemoryChannel
from tokasaurus.ipc.codec import Decoder, Encoder
from tokasaurus.ipc.messages.to_manager import (
    CancelRequests,
    GenerateRequest,
    GenerateRequests,
    StepOutput,
    TokenSampling,
    ToManager,
)
from tokasaurus.ipc.messages.to_worker import AddedSlot, HydragenGroup, StepInput, ToWorker


def empty() -> np.ndarray:
    return np.empty(0, np.int32)


def test_request_round_trip() -> None:
    request = GenerateRequest(
        request_id=(3 << 48) | 7,
        prompt_ids=np.arange(5, dtype=np.int32),
        sampling=TokenSampling(temperature=0.5, seed=2**63 - 1, banned_until_min_tokens=(2, 9)),
        max_tokens=10,
        stop_token_ids=(2,),
    )
    channel: MemoryChannel[ToManager] = MemoryChannel(ToManager)
    channel.send(request)
    channel.send(CancelRequests([request.request_id]))
    received, cancel = channel.drain()
    assert isinstance(received, GenerateRequest)
    np.testing.assert_array_equal(received.prompt_ids, request.prompt_ids)
    assert received.output_ids is None
    assert received.sampling == request.sampling
    assert received.request_id == request.request_id
    assert cancel == CancelRequests([request.request_id])


def test_samples_of_a_prompt_send_it_once() -> None:
    prompt, other = np.arange(5000, dtype=np.int32), np.arange(3, dtype=np.int32)
    requests = [
        GenerateRequest(request_id=i, prompt_ids=ids, sampling=TokenSampling(), max_tokens=1)
        for i, ids in enumerate([prompt, other, prompt, prompt])
    ]
    alone = len(Encoder().encode(GenerateRequests(requests[:2])))
    frame = Encoder().encode(GenerateRequests(requests))
    assert len(frame) - alone < prompt.nbytes
    received = Decoder(ToManager).decode(frame)
    assert isinstance(received, GenerateRequests)
    for sent, got in zip(requests, received.requests, strict=True):
        np.testing.assert_array_equal(got.prompt_ids, sent.prompt_ids)


def test_step_keeps_dtypes_and_shapes() -> None:
    step = StepInput(
        step_id=1,
        freed_slots=empty(),
        added_slots=[AddedSlot(1, 0, 3, TokenSampling())],
        appended_slots=np.array([1], np.int32),
        appended_blocks=np.array([42], np.int32),
        prefill_slots=np.array([1], np.int32),
        prefill_lens=np.array([3], np.int32),
        prefill_samples=np.array([True]),
        prefill_ids=np.array([5, 6, 7], np.int32),
        decode_slots=None,
        hydragen_groups=[HydragenGroup(0, 2, 1)],
    )
    decoded = Decoder(ToWorker).decode(Encoder().encode(step))
    assert isinstance(decoded, StepInput)
    assert decoded.prefill_samples.dtype == bool
    assert decoded.freed_slots.shape == (0,)
    assert decoded.decode_slots is None
    assert decoded.added_slots == step.added_slots
    assert decoded.hydragen_groups == step.hydragen_groups
    np.testing.assert_array_equal(decoded.prefill_ids, step.prefill_ids)


def test_empty_matrix_keeps_its_shape() -> None:
    output = StepOutput(
        step_id=0, token_ids=empty(), top_ids=np.empty((0, 4), np.int32), logprobs=None
    )
    decoded = Decoder(ToManager).decode(Encoder().encode(output))
    assert isinstance(decoded, StepOutput)
    assert decoded.top_ids is not None
    assert decoded.top_ids.shape == (0, 4)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"junk",
        bytes(8),
        (4).to_bytes(8, "little") + b"junk",
        (2**60).to_bytes(8, "little") + b"junk",
        (14).to_bytes(8, "little") + b"\x81\xa4type\xa7unknown",
    ],
)
def test_junk_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder(ToManager).decode(frame)


def test_array_beyond_its_frame_is_refused() -> None:
    frame = Encoder().encode(StepOutput(step_id=0, token_ids=np.arange(8, dtype=np.int32)))
    Decoder(ToManager).decode(frame)
    with pytest.raises(ProtocolError):
        Decoder(ToManager).decode(frame[:-8])


def test_what_did_not_change_takes_no_bytes() -> None:
    frame = Encoder().encode(StepInput(step_id=300))
    assert len(frame) < 40
    decoded = Decoder(ToWorker).decode(frame)
    assert isinstance(decoded, StepInput)
    assert decoded.prefill_samples.dtype == bool
    assert len(decoded.appended_blocks) == 0


def test_unsupported_dtype_does_not_encode() -> None:
    with pytest.raises(TypeError):
        Encoder().encode(StepOutput(step_id=0, token_ids=np.zeros(2, np.float64)))
