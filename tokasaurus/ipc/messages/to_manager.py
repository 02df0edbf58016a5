"""What a manager receives: requests from servers, results from its workers.

Shapes: P prompt tokens, O output tokens so far, S rows sampled in a step, K top log-probabilities
asked for by at least one row of the step, C prompt positions scored in a step, E prompts embedded
in a step, D hidden size.
"""

from typing import Literal

import msgspec
import numpy as np

Pooling = Literal["", "mean", "last"]
"""Which final hidden states make a prompt's vector: the mean of all, or the last one; "": none."""


class TokenSampling(msgspec.Struct, frozen=True, kw_only=True):
    """How one sequence's tokens are drawn; a function of (request, position) alone.

    The noise of output position p is a function of (seed, p, token id) where p is the index of the
    drawn token in the whole sequence (prompt included).
    """

    temperature: float = 1.0
    """0 means greedy."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    """Unsigned, below 2**63; servers draw one when the client gave none."""
    min_tokens: int = 0
    """`banned_until_min_tokens` can't be drawn before this many output tokens."""
    banned_until_min_tokens: tuple[int, ...] = ()
    """EOS and stop token ids when `min_tokens` > 0, else empty."""
    num_top_logprobs: int = -1
    """-1: none. 0: of the drawn token. k: also the k most likely ones."""
    num_prompt_logprobs: int = -1
    """Like `num_top_logprobs`, for each prompt token after the first; >= 0 bypasses the cache."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time it stands in the output."""
    presence_penalty: float = 0.0
    """Taken off once if it does."""
    repetition_penalty: float = 1.0
    """Divides the logit of a token of the prompt or output if positive, else multiplies it."""
    bias_ids: tuple[int, ...] = ()
    """Tokens, each once, whose logits `bias_values` are added to."""
    bias_values: tuple[float, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    """Nothing else can be drawn; empty: no such limit."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that the output can't contain."""
    grammar: str = ""
    """What the output's text has to match, in llguidance's form; empty: anything goes."""
    end_token_ids: tuple[int, ...] = ()
    """With a grammar: tokens that can be drawn exactly where the text may end."""

    @property
    def is_plain(self) -> bool:
        """It asks for nothing but tokens, and for nothing that touches their logits."""
        return not (
            self.num_top_logprobs >= 0
            or self.depends_on_tokens
            or self.bias_ids
            or self.allowed_token_ids
            or self.bad_words
        )

    @property
    def depends_on_tokens(self) -> bool:
        """The draw depends on which tokens came before, beyond what the model sees of them."""
        return bool(self.grammar) or self.counts_tokens

    @property
    def counts_tokens(self) -> bool:
        """It depends on how often tokens came before, or on which came last."""
        return bool(
            self.frequency_penalty
            or self.presence_penalty
            or self.repetition_penalty != 1
            or any(len(word) > 1 for word in self.bad_words)
        )


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """One sequence to generate. `n` samples of a prompt are `n` requests with seeds seed+i."""

    request_id: int
    """Unique over all servers: the server's index in the bits from 48 up, a counter below."""
    prompt_ids: np.ndarray
    """int32[P], P >= 1, all within the vocabulary."""
    output_ids: np.ndarray | None = None
    """int32[O]: tokens generated before (recovery, migration); they are not sent again."""
    sampling: TokenSampling
    max_tokens: int
    """Output tokens in all, >= 1, earlier ones included. With `pooling` it is 1: the vector comes
    in place of a token."""
    stop_token_ids: tuple[int, ...] = ()
    """Finish with "stop" when one of these is drawn (EOS ids are in here unless ignored)."""
    priority: int = 0
    """Lower runs earlier; FIFO within one priority."""
    cache_salt: str = ""
    """Sequences share cached prefixes only within one salt."""
    predictor_key: str = ""
    """Groups requests of one kind for stop-length prediction (route, adapter)."""
    pooling: Pooling = ""
    """If set, the request ends with a vector of its prompt, and draws no token."""
    wants_every_token: bool = False
    """Somebody waits for each token: a stream, or a search for stop strings."""


class GenerateRequests(msgspec.Struct, frozen=True, tag="generate_several"):
    """Sequences that one server submits together, in order: as if each came by itself."""

    requests: list[GenerateRequest]


class CancelRequests(msgspec.Struct, frozen=True, tag="cancel"):
    """Free these at once; each answers with exactly one `RequestFinished` unless it already has."""

    request_ids: list[int]


class ServerHello(msgspec.Struct, frozen=True, tag="server_hello"):
    """A server is up at `address`; the manager answers with `ManagerReady` when it is ready."""

    server_index: int
    address: str


class RunnerCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the manager may plan for this runner."""

    mixed_batches: bool = True
    """Prefill chunks and decodes may share a step."""
    hydragen: bool = False
    """Shared-prefix groups in `StepInput` are computed once."""
    async_steps: bool = False
    """Steps overlap on the device, so that running several steps ahead pays."""
    repeats: bool = False
    """It honours `StepInput.max_passes`."""


class WorkerReady(msgspec.Struct, frozen=True, kw_only=True, tag="worker_ready"):
    """The worker has loaded, warmed up and waits for steps."""

    rank: int
    capabilities: RunnerCapabilities
    num_blocks: int
    """KV blocks of `page_size` tokens that the manager may hand out: ids 0..num_blocks-1."""
    max_model_len: int
    vocab_size: int
    description: str
    """For the start-up line: path taken, device, dtype, backend."""
    hidden_size: int = 0
    """Of the vectors that `pooling` gives; 0 where the runner can't."""
    pid: int = 0
    """Of its process; 0: not known."""


class PromptLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of the prompt tokens at positions start+1 .. start+C given those before."""

    slot: int
    start: int
    logprobs: np.ndarray
    """float32[C]"""
    top_ids: np.ndarray
    """int32[C, K]"""
    top_logprobs: np.ndarray
    """float32[C, K]"""


class StepOutput(msgspec.Struct, frozen=True, kw_only=True, tag="step_output", omit_defaults=True):
    """Result of one `StepInput`: rows are its sampling prefill chunks, then its decode slots."""

    step_id: int
    token_ids: np.ndarray
    """int32[S]; -1 where the largest logit is not finite, -2 where bans and grammar left none.
    Of several passes: int32[R, S], and no log-probabilities."""
    logprobs: np.ndarray | None = None
    """float32[S]; None when no row asked."""
    top_ids: np.ndarray | None = None
    """int32[S, K]"""
    top_logprobs: np.ndarray | None = None
    """float32[S, K]"""
    prompt_logprobs: list[PromptLogprobs] = []
    wait_seconds: float = 0.0
    """Time this worker had nothing to run before the step."""
    execute_seconds: float = 0.0
    embedded_slots: np.ndarray | None = None
    """int32[E]: slots whose prompt ended in this step and that asked for a vector; None: none."""
    embeddings: np.ndarray | None = None
    """float32[E, D], not normalised"""
    num_recompiles: int = 0
    """Graphs that torch compiled for this step; after warm-up there should be none."""
    device_idle_seconds: float = 0.0
    """Time a GPU had nothing to run before this step although the worker had the step."""
    device_busy_seconds: float = 0.0
    """From the step's first kernel to its last, on a GPU."""
    bubble_seconds: float = 0.0
    """Part of `execute_seconds`: waiting for other stages of the pipeline."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish the current loop iteration and exit 0."""


ToManager = (
    GenerateRequest
    | CancelRequests
    | ServerHello
    | WorkerReady
    | StepOutput
    | Shutdown
    | GenerateRequests
)
