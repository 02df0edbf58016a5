"""EngineConfig: every option of the engine, its default and its meaning, in one place.

The doc string under a field is its line in `toka --help`.
"""

from typing import Literal

from tokasaurus.config.compile_options import read_compile_options
from tokasaurus.config.strict_config import StrictConfig
from tokasaurus.errors import ConfigError

DEMO_MODEL = "demo"


class EngineConfig(StrictConfig):
    """Options of one engine; all processes of the engine hold the same one."""

    model: str = "demo"
    """What to serve: "demo" (the embedded model), a local folder, or a Hugging Face hub id."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; None: the model's own."""
    served_model_name: str | None = None
    """The name that clients use for the model; None: the value of `model`."""
    chat_template: str | None = None
    """File with a Jinja chat template; None: the tokenizer's own."""
    tool_parser: Literal["auto", "none", "hermes", "llama3", "mistral"] = "auto"
    """Form in which the model calls tools (Qwen writes as hermes); auto: by its chat template."""
    reasoning_parser: Literal["auto", "none", "think", "mistral"] = "auto"
    """Marks around a model's reasoning, <think> or [THINK]; auto: by its chat template."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 10210
    """Port to listen on; 0 takes a free one."""
    server_workers: int = 1
    """Server processes that share the port; more than one needs Linux."""
    max_queued_requests: int = 16384
    """Most samples (prompts times n) accepted and not finished; further requests get a 429."""
    max_body_bytes: int = 33554432
    """Most bytes of one HTTP request's body; larger ones get a 413."""
    request_timeout_seconds: float | None = None
    """Requests that give no `timeout` end with a 504 after this long; None: never."""
    stream_stall_seconds: float = 60.0
    """A stream whose reader takes nothing for this long is cancelled."""

    api_key: list[str] | str | None = None
    """Key, or list of keys, one of which clients must send; None: everyone may ask."""
    api_key_file: str | None = None
    """File with further keys, one per line; the variable TOKASAURUS_API_KEY can hold one, too."""
    ssl_certfile: str | None = None
    """PEM file with the server's certificate chain, to serve over TLS."""
    ssl_keyfile: str | None = None
    """PEM file with the certificate's private key; None: it is in ssl_certfile."""
    cors_origins: list[str] | None = None
    """Origins whose web pages may use the server from a browser; [*] for all."""
    request_log: bool = False
    """Log each HTTP request, with its id, as one line of JSON."""

    state_dir: str | None = None
    """Folder of uploaded files and batches; None: tokasaurus in the user's state folder."""
    max_file_bytes: int = 536870912
    """Most bytes of an uploaded file."""
    batch_max_in_flight: int = 4096
    """Most samples of all batches that run at a time; never over half of max_queued_requests."""

    statsd_addr: str | None = None
    """host:port of a statsd daemon to send metrics to; None: nothing is sent."""
    otlp_traces_endpoint: str | None = None
    """URL to send OpenTelemetry traces to, http://HOST:4318/v1/traces; None: nothing is sent."""
    stats_interval_seconds: float = 10.0
    """Seconds between two lines of statistics in the log, and between sendings to statsd."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of weights and activations; auto: the checkpoint's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: a GPU if there is one."""
    attention_backend: str = "auto"
    """Attention implementation, such as torch, cpu or flashinfer; auto: the fastest that works."""
    cpu_kernels: bool = True
    """On a CPU, compute with our own C++ kernels, which are compiled once per machine."""
    quantization: Literal["none", "int8", "int8_weight_only", "int4_weight_only"] = "none"
    """Weights in few bits, made from the checkpoint's at start, on CPUs. int8 rounds activations,
    too, and is the fastest for batches; the others leave them and suit single streams."""
    quantization_group_size: int | None = None
    """Inputs that share a scale in int4_weight_only: 32, 64 or 128; None: 32."""
    torch_compile: bool = False
    """Compile native decoders with torch.compile; start-up takes longer. On a CPU with
    cpu_kernels=F."""
    torch_compile_config: list[str] | str | None = None
    """How: key=value texts (mode, backend, options.NAME) or one JSON object; None: torch's ways."""
    use_cudagraphs: bool = True
    """Replay decode steps as CUDA graphs, where device and attention backend can."""
    cudagraph_max_size: int = 256
    """Most sequences of a decode step that is replayed as a graph."""
    cudagraph_step: int = 16
    """Graphs are captured for multiples of this many sequences (and for 1, 2, 4 and 8)."""
    model_path: Literal["auto", "native", "transformers"] = "auto"
    """Code that runs the model; auto: native if it knows the architecture, else transformers."""
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    """How weights are read; dummy draws random ones, to measure speed without a checkpoint."""

    max_model_len: int | None = None
    """Most tokens (prompt and output) of one sequence; None: the checkpoint's context length."""
    page_size: int = 16
    """Tokens in one block of the KV cache."""
    kv_cache_num_tokens: int | None = None
    """Size of the KV cache in tokens; None: from measured free memory."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Number format of the KV cache; fp8 (e4m3, unscaled) halves it where the backend can."""
    kv_cache_memory_fraction: float = 0.8
    """Share of the free device memory that the KV cache takes (on a CPU at most 4 GiB)."""
    max_tokens_per_forward: int = 2048
    """Most tokens (prefill and decode) that one forward pass computes."""
    max_seqs_per_forward: int = 1024
    """Most sequences that run at the same time."""
    scheduling_steps_ahead: int | None = None
    """Steps planned before their predecessors' tokens are known; None: what suits the device."""
    max_decode_repeats: int = 32
    """Most tokens that a worker on a CPU draws for each running sequence before it reports them,
    while nobody streams and nothing new has come; 1: reports each at once."""
    max_prefill_tokens_per_step: int | None = None
    """Most prompt tokens of a step that also decodes, so that long prompts don't hold up others'
    streams; None: whatever the decodes leave."""
    greedy_prefill: bool = True
    """Compute prompts as soon as they fit; if off, only as fast as sequences end, so that the batch
    stays evenly full."""
    use_hydragen: bool = True
    """Compute attention to a prefix that many sequences share once, where the backend can."""
    hydragen_min_group_size: int = 16
    """Fewest decoding sequences for which a shared prefix is computed once."""
    hydragen_min_prefix_len: int = 128
    """Fewest tokens of a shared prefix that is computed once."""
    cpu_threads: int | None = None
    """Threads that each worker computes with, at most 256; None: its share of the physical
    cores."""

    dp_size: int = 1
    """Data-parallel replicas of the model, each with its own manager."""
    pp_size: int = 1
    """Stages of a replica, each with some of the decoder's layers on a worker of its own."""
    tp_size: int = 1
    """Workers of a stage, each with a share of every weight and of the KV heads."""
    async_tp_threshold: int | None = None
    """Forward passes of at least so many tokens divide them between the tp_size GPUs, which must
    reach each other's memory, and overlap products with their exchange; None: none do."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severity of the messages that all processes log."""
    ready_timeout_seconds: float = 600.0
    """Start-up fails when a process is not ready after this long."""
    step_timeout_seconds: float = 900.0
    """The engine fails when a forward pass is not done after this long: a worker hangs."""
    shutdown_timeout_seconds: float = 10.0
    """Processes that are still there this long after being asked to stop are killed."""
    debug_checks: bool = False
    """Verify the managers' data structures after every step; slow."""
    debug_preempt_every_steps: int = 0
    """Preempt the newest decoding sequence every so many steps, to test that; 0: never."""

    @property
    def public_model_name(self) -> str:
        """The name that clients use for the model."""
        return self.served_model_name if self.served_model_name is not None else self.model

    def validate(self) -> None:
        """Raises ConfigError for values out of range and for options that contradict each other."""
        self._check_ranges()
        for name in ("model", "host"):
            if not getattr(self, name):
                raise ConfigError(f"{name} must not be empty.")
        if self.max_tokens_per_forward < self.max_seqs_per_forward:
            raise ConfigError(
                f"max_tokens_per_forward ({self.max_tokens_per_forward}) must be at least "
                f"max_seqs_per_forward ({self.max_seqs_per_forward}), because every running "
                "sequence takes one token of each forward pass."
            )
        self._check_compilation()
        self._check_async_tp()
        self._check_quantization()
        if self.kv_cache_num_tokens is not None and self.kv_cache_num_tokens < self.page_size:
            raise ConfigError(
                f"kv_cache_num_tokens ({self.kv_cache_num_tokens}) must hold at least one block "
                f"of page_size ({self.page_size}) tokens."
            )

    def _check_compilation(self) -> None:
        if self.torch_compile_config is not None and not self.torch_compile:
            raise ConfigError("torch_compile_config has no effect without torch_compile=T.")
        read_compile_options(self.torch_compile_config)
        if self.torch_compile and self.device == "cpu" and self.cpu_kernels:
            raise ConfigError(
                "torch_compile=T and cpu_kernels=T contradict each other on a CPU: the kernels "
                "run all layers in one call. Set cpu_kernels=F or torch_compile=F."
            )

    def _check_async_tp(self) -> None:
        threshold = self.async_tp_threshold
        if threshold is None:
            return
        if self.tp_size == 1:
            raise ConfigError("async_tp_threshold has no effect without tp_size above 1.")
        if self.device == "cpu":
            raise ConfigError("async_tp_threshold needs GPUs; leave it out with device=cpu.")
        if self.torch_compile:
            raise ConfigError(
                "async_tp_threshold and torch_compile=T can't be combined: a compiled model lays "
                "out all its steps alike. Set torch_compile=F or leave async_tp_threshold out."
            )
        if self.use_cudagraphs and threshold <= self.cudagraph_max_size:
            raise ConfigError(
                f"async_tp_threshold ({threshold}) must be above cudagraph_max_size "
                f"({self.cudagraph_max_size}): steps that divide their tokens are not captured. "
                "Raise it, lower cudagraph_max_size, or set use_cudagraphs=F."
            )

    def _check_quantization(self) -> None:
        if self.quantization_group_size is not None:
            if self.quantization != "int4_weight_only":
                raise ConfigError(
                    "quantization_group_size has no effect without quantization=int4_weight_only."
                )
            if self.quantization_group_size not in (32, 64, 128):
                raise ConfigError(
                    "quantization_group_size must be 32, 64 or 128, "
                    f"not {self.quantization_group_size}."
                )
        if self.quantization == "none":
            return
        if self.device == "cuda":
            raise ConfigError(
                f"quantization={self.quantization} runs on CPUs alone; set device=cpu or leave it "
                "at none."
            )
        if not self.cpu_kernels or self.attention_backend not in ("auto", "cpu"):
            raise ConfigError(
                f"quantization={self.quantization} needs the CPU kernels; set cpu_kernels=T and "
                "attention_backend=cpu or leave it at none."
            )

    def _check_ranges(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, not {self.port}.")
        if not 0 < self.kv_cache_memory_fraction <= 1:
            raise ConfigError(
                "kv_cache_memory_fraction must be above 0 and at most 1, "
                f"not {self.kv_cache_memory_fraction}."
            )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}.")
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise ConfigError(f"{name} must be at most {most}, not {value}.")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be above 0, not {value}.")


_ABOVE_ZERO = (
    "ready_timeout_seconds",
    "step_timeout_seconds",
    "shutdown_timeout_seconds",
    "request_timeout_seconds",
    "stream_stall_seconds",
    "stats_interval_seconds",
)
_LEAST = {
    "server_workers": 1,
    "max_queued_requests": 1,
    "max_body_bytes": 1,
    "max_file_bytes": 1,
    "batch_max_in_flight": 1,
    "max_model_len": 2,
    "page_size": 1,
    "kv_cache_num_tokens": 1,
    "max_tokens_per_forward": 1,
    "max_seqs_per_forward": 1,
    "cudagraph_max_size": 1,
    "cudagraph_step": 1,
    "scheduling_steps_ahead": 0,
    "max_decode_repeats": 1,
    "cpu_threads": 1,
    "dp_size": 1,
    "pp_size": 1,
    "tp_size": 1,
    "async_tp_threshold": 1,
    "max_prefill_tokens_per_step": 1,
    "hydragen_min_group_size": 2,
    "hydragen_min_prefix_len": 1,
    "debug_preempt_every_steps": 0,
}
_MOST = {"cpu_threads": 256}
