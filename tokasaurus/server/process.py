"""Main of a server process: loads the tokenizer, waits for managers, serves until told to stop."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.config.model_files import read_model_config, resolve_model, resolve_tokenizer
from tokasaurus.errors import EngineFailedError, ProcessFailedError
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import ZmqOutbox
from tokasaurus.ipc.messages.to_supervisor import Progress, Ready
from tokasaurus.observability.statsd import StatsdSender
from tokasaurus.observability.tracing import RequestTracer
from tokasaurus.server.access.policy import AccessPolicy, TlsFiles
from tokasaurus.server.app import create_app
from tokasaurus.server.batches.settings import BatchSettings
from tokasaurus.server.engine_client import EngineClient
from tokasaurus.server.listening import bind_socket, cannot_listen, url_of
from tokasaurus.server.output_format import OutputFormat
from tokasaurus.server.peers import Peers
from tokasaurus.server.pooling_choice import read_pooling
from tokasaurus.server.state import ServerState
from tokasaurus.server.stats_reporter import StatsReporter
from tokasaurus.tokenization.chat_template import ChatTemplate
from tokasaurus.tokenization.encoding_pool import EncodingPool
from tokasaurus.tokenization.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
_GC_THRESHOLD = 10_000
"""What a request makes holds hardly any cycles, and many requests are under way at a time."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_server(
    config: EngineConfig, addresses: Addresses, server_index: int, num_managers: int
) -> None:
    """Returns once stopped by SIGTERM, SIGINT or a Shutdown message.

    Raises TokasaurusError, with what to do about it, if it can't start or the engine fails.
    """
    for number in _STOP_SIGNALS:
        signal.signal(number, _exit_quietly)  # until the event loop takes over
    name = f"server{server_index}"
    supervisor = ZmqOutbox(addresses.supervisor())
    try:
        with bind_socket(
            config.host,
            config.port,
            shared=config.server_workers > 1,
            stall_seconds=config.stream_stall_seconds,
        ) as bound:
            supervisor.send(Progress(process=name, phase="load", text="tokenizer"))
            tls = TlsFiles.of(config)
            state = _load(config, addresses, server_index, num_managers)
            supervisor.send(Progress(process=name, phase="connect", text="waiting for managers"))

            def on_started() -> None:
                url = url_of(config.host, bound, is_tls=tls is not None)
                supervisor.send(Ready(process=name, text=url))

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(config, state, bound, tls, on_started))
    finally:
        supervisor.close()


def _exit_quietly(number: int, frame: object) -> None:  # noqa: ARG001
    raise SystemExit(0)


def _load(
    config: EngineConfig, addresses: Addresses, server_index: int, num_managers: int
) -> ServerState:
    folder = resolve_model(config.model)
    tokenizer_folder = resolve_tokenizer(config.model, config.tokenizer)
    tokenizer = Tokenizer.load(tokenizer_folder)
    num_servers = config.server_workers
    peers = Peers(server_index, num_servers, addresses) if num_servers > 1 else None
    engine = EngineClient(
        addresses,
        server_index,
        num_managers,
        tokenizer=tokenizer,
        eos_token_ids=read_model_config(folder).eos_token_ids,
        max_in_flight=max(1, config.max_queued_requests // num_servers),
        default_timeout_seconds=config.request_timeout_seconds,
        peers=peers,
    )
    chat_template = ChatTemplate.load(
        tokenizer_folder,
        tokenizer.settings,
        tokenizer.named_tokens,
        override=config.chat_template,
    )
    return ServerState(
        engine=engine,
        tokenizer=tokenizer,
        encoding_pool=EncodingPool(tokenizer),
        chat_template=chat_template,
        output_format=OutputFormat.choose(
            chat_template,
            tool_parser=config.tool_parser,
            reasoning_parser=config.reasoning_parser,
        ),
        model_name=config.public_model_name,
        default_pooling=read_pooling(folder),
        tracer=_tracer(config, server_index),
        access=AccessPolicy.of(config),
        max_body_bytes=config.max_body_bytes,
        stream_stall_seconds=config.stream_stall_seconds,
        batch_settings=BatchSettings.of(config),
        peers=peers,
    )


def _tracer(config: EngineConfig, server_index: int) -> RequestTracer | None:
    if config.otlp_traces_endpoint is None:
        return None
    return RequestTracer(
        config.otlp_traces_endpoint,
        model_name=config.public_model_name,
        instance=f"server{server_index}",
    )


async def _serve(
    config: EngineConfig,
    state: ServerState,
    bound: socket.socket,
    tls: TlsFiles | None,
    on_started: Callable[[], None],
) -> None:
    server = _Server(
        uvicorn.Config(
            create_app(state),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            ssl_certfile=None if tls is None else tls.certfile,
            ssl_keyfile=None if tls is None else tls.keyfile,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, int(config.shutdown_timeout_seconds / 2)),
        ),
        on_started,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    engine = state.engine
    stopper = asyncio.create_task(_stop_when_asked(server, stop, engine))
    reporter = _reporter(config, state)
    reporting = None if reporter is None else asyncio.create_task(reporter.run())
    try:
        await _run_until_done(config, state, server, bound, stop)
    finally:
        stopper.cancel()
        if reporting is not None:
            reporting.cancel()
        await state.batch_service.close()
        if state.peers is not None:
            state.peers.close()
        await engine.close()
        state.encoding_pool.close()
        if state.tracer is not None:
            await asyncio.to_thread(state.tracer.close)
    if not stop.is_set() and not engine.was_told_to_stop:
        assert engine.failure is not None, "the server stopped for no reason"
        raise engine.failure


def _reporter(config: EngineConfig, state: ServerState) -> StatsReporter | None:
    """One server reports for all."""
    if state.peers is not None and not state.peers.leads:
        return None
    address, totals = config.statsd_addr, state.totals
    statsd = StatsdSender(address, totals.measurements) if address is not None else None
    return StatsReporter(totals, config.stats_interval_seconds, statsd)


async def _run_until_done(
    config: EngineConfig,
    state: ServerState,
    server: "_Server",
    bound: socket.socket,
    stop: asyncio.Event,
) -> None:
    engine = state.engine
    if state.peers is not None:
        state.peers.start()
    starting = asyncio.create_task(engine.start(config.ready_timeout_seconds))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        return
    try:
        await starting
    except ProcessFailedError:
        if engine.was_told_to_stop:
            return
        raise
    await state.batch_service.resume()
    gc.collect()
    gc.freeze()  # what is there now stays; later collections need not look at it
    gc.set_threshold(_GC_THRESHOLD)
    try:
        await server.serve(sockets=[bound])
    except OSError as error:  # another process began to listen there after we bound it
        raise cannot_listen(config.host, config.port, error) from error


async def _stop_when_asked(server: "_Server", stop: asyncio.Event, engine: EngineClient) -> None:
    """Streams that run end with an error; then uvicorn finishes the responses and closes."""
    waits = [asyncio.create_task(event.wait()) for event in (stop, engine.ended)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    server.should_exit = True
    engine.fail(EngineFailedError("The server is shutting down; try again."))


class _Server(uvicorn.Server):
    """Leaves signals to us, and says when it listens."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()
