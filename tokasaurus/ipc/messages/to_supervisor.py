"""What the supervisor receives from every process it started."""

import msgspec


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Start-up phase of a process, for people: phase "load", fraction 0..1 or None, a text."""

    process: str
    phase: str
    fraction: float | None = None
    text: str = ""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The process does its job from now on."""

    process: str
    text: str = ""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The process is about to exit non-zero, for this reason (one sentence for people)."""

    process: str
    reason: str


ToSupervisor = Progress | Ready | Failed
