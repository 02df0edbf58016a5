"""Log lines carry time, level and process; other libraries are heard from WARNING up."""

import logging
import re
from collections.abc import Iterator

import pytest

from tokasaurus.observability.logging import setup_logging


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    earlier = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = earlier
    logging.captureWarnings(False)
    for name in ("tokasaurus", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_line_format(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("worker0.0", "INFO")
    logging.getLogger("tokasaurus.worker").info("loaded %d", 3)
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO    worker0\.0  \| loaded 3\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("server0", "INFO")
    logging.getLogger("tokasaurus.x").debug("hidden")
    logging.getLogger("httpx").info("hidden")
    logging.getLogger("uvicorn.access").info("hidden")
    logging.getLogger("uvicorn.error").warning("seen")
    logging.getLogger("httpx").warning("seen")
    err = capsys.readouterr().err
    assert "hidden" not in err
    assert err.count("seen") == 2


def test_debug_shows_the_servers_requests(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("server0", "DEBUG")
    logging.getLogger("uvicorn.access").info("seen")
    logging.getLogger("tokasaurus.x").debug("seen")
    logging.getLogger("httpx").debug("hidden")
    err = capsys.readouterr().err
    assert err.count("seen") == 2
    assert "hidden" not in err


def test_error_level_silences_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("server0", "ERROR")
    logging.getLogger("tokasaurus.x").warning("hidden")
    logging.getLogger("uvicorn.error").warning("hidden")
    logging.getLogger("httpx").warning("hidden")
    assert capsys.readouterr().err == ""
