"""One log format for all processes: time, level, name of the process, message.

Modules log to `logging.getLogger(__name__)`; only the main of a process calls `setup_logging`.
"""

import logging
import sys

_FORMAT = "{asctime}.{msecs:03.0f} {levelname:<7} {process_label} | {message}"
_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
_PROCESS_LABEL_WIDTH = 10


def setup_logging(process_name: str, level: str) -> None:
    """Send this process's logs to stderr, under its name; replaces what was set up before.

    Our own and uvicorn's messages appear from `level` up, those of other libraries from WARNING up.
    uvicorn must be run with `log_config=None`, so that it keeps to this.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(
            _FORMAT,
            _DATE_FORMAT,
            style="{",
            defaults={"process_label": f"{process_name:<{_PROCESS_LABEL_WIDTH}}"},
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("tokasaurus").setLevel(level)
    # uvicorn's own start-up and access lines repeat what we say or cost time per request.
    quiet = logging.DEBUG if level == "DEBUG" else logging.WARNING
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(max(quiet, logging.getLevelName(level)))
    logging.captureWarnings(True)
