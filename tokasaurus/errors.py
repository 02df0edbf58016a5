"""The error tree: everything that a user or the network can cause.

Each message is a sentence that says what to do. What only our own code can
break is asserted.
"""


class TokasaurusError(Exception):
    """Base of all errors that a user, a client or the environment can cause."""


class ConfigError(TokasaurusError):
    """An option's name or value is wrong, or options contradict each other."""


class ModelError(TokasaurusError):
    """A checkpoint is missing, broken, or of an architecture or feature that can't be run."""


class InvalidRequestError(TokasaurusError):
    """A request that no retry can make valid. `param` names the offending parameter."""

    status_code = 400
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class PromptTooLongError(InvalidRequestError):
    """The prompt, or prompt plus `max_tokens`, exceeds the model's context or the KV cache."""

    code = "context_length_exceeded"


class ModelNotFoundError(InvalidRequestError):
    """The request names a model that this server does not serve."""

    status_code = 404
    code = "model_not_found"


class OverloadedError(TokasaurusError):
    """The request queue is full; try again after `retry_after_seconds`."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EngineFailedError(TokasaurusError):
    """The engine could not finish an accepted request; the message says why."""


class DeadlineExceededError(EngineFailedError):
    """The request was not finished within its `timeout`."""


class SlowReaderError(EngineFailedError):
    """The stream's reader took nothing for too long."""


class ProcessFailedError(TokasaurusError):
    """A process of the engine did not start, or died; the message carries its last words."""


class ProtocolError(TokasaurusError):
    """A peer sent bytes that are not a message of this version."""
