"""Start-up progress: painted on a terminal, printed sparingly elsewhere; logs always whole."""

import io

from tokasaurus.ipc.messages.to_supervisor import Progress
from tokasaurus.launch.startup_display import StartupDisplay


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def load(fraction: float | None, text: str = "") -> Progress:
    return Progress(process="worker0.0", phase="load", fraction=fraction, text=text)


def test_plain_stream_gets_a_line_per_step() -> None:
    stream = io.StringIO()
    display = StartupDisplay(stream)
    for percent in range(101):
        display.update(load(percent / 100))
    display.update(Progress(process="worker0.0", phase="warm-up"))
    display.finish()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6
    assert "worker0.0 load" in lines[0]
    assert "100%" in lines[4]
    assert lines[5] == "worker0.0 warm-up"
    assert "\x1b" not in stream.getvalue()


def test_terminal_is_repainted_and_left_clean() -> None:
    stream = Terminal()
    display = StartupDisplay(stream)
    display.update(load(0.5))
    display.write_line("a log line")
    painted = stream.getvalue()
    assert "\x1b[Ka log line\n" in painted
    assert painted.endswith("50%")
    display.finish()
    assert stream.getvalue().endswith("\r\x1b[K")
    display.write_line("later")
    assert stream.getvalue().endswith("\x1b[Klater\n")


def test_ready_process_leaves_the_state() -> None:
    stream = Terminal()
    display = StartupDisplay(stream)
    display.update(load(0.5))
    display.update(Progress(process="manager0", phase="wait"))
    display.process_ready("worker0.0")
    assert stream.getvalue().endswith("\x1b[Kmanager0 wait")


def test_who_works_comes_before_who_waits() -> None:
    stream = Terminal()
    display = StartupDisplay(stream)
    display.update(Progress(process="server0", phase="connect"))
    display.update(load(0.5))
    assert stream.getvalue().endswith("50% · server0 connect")


def test_quiet_display_shows_only_lines() -> None:
    stream = Terminal()
    display = StartupDisplay(stream, quiet=True)
    display.update(load(0.5))
    display.process_ready("worker0.0")
    display.write_line("a log line")
    display.finish()
    assert stream.getvalue() == "a log line\n"


def test_closed_stream_is_survived() -> None:
    stream = Terminal()
    display = StartupDisplay(stream)
    stream.close()
    display.write_line("nobody reads this")
