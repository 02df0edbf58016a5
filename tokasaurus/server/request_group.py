"""The samples that were submitted together, and the one who waits for them or listens to them."""

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType

from tokasaurus.errors import DeadlineExceededError, EngineFailedError
from tokasaurus.server.generation import Generation

Cancel = Callable[[list[Generation], EngineFailedError | None], None]
Write = Callable[[], None]
Listener = Callable[[], Write | None]


class RequestGroup:
    """Use it as a context manager: what has not finished when the block ends is cancelled.

    Belongs to the event loop of the client that made it.
    """

    def __init__(self, *, stream: bool, cancel: Cancel) -> None:
        self.generations: list[Generation] = []
        self._stream = stream
        self._cancel = cancel
        self._ready: dict[int, Generation] = {}
        self._unscored: dict[int, Generation] = {}
        """Would be ready, but that another sample has not scored their prompt to its end."""
        self._num_unfinished = 0
        self._waiter: asyncio.Future[None] | None = None
        self._listener: Listener | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def __enter__(self) -> "RequestGroup":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    @property
    def has_finished(self) -> bool:
        """Nothing more will become ready."""
        return self._num_unfinished == 0

    async def wait(self) -> list[Generation]:
        """Those with news since the last call, or, of a group that does not stream, those that
        have finished since; an empty list when there is nothing more to come. One caller at a time.
        """
        while not self._ready and self._num_unfinished:
            assert self._waiter is None, "two callers wait for one group"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.take_ready()

    def take_ready(self) -> list[Generation]:
        """What `wait` would return, without waiting; empty if nothing is ready now."""
        ready = list(self._ready.values())
        self._ready.clear()
        return ready

    def listen(self, listener: Listener | None) -> None:
        """Call this, which must not raise, whenever something is ready: in the middle of handling a
        message, so that no task has to wake up. None: no more.

        It returns what writes the news, which is called once all groups have been told: a client
        that reads many streams then wakes up once, not for every one of them.
        """
        assert self._waiter is None, "somebody waits for the group"
        self._listener = listener

    def cancel(self, error: EngineFailedError | None = None) -> None:
        """Free all that has not finished. May be called at any time, and more than once.

        With an error the samples fail with it; without, nobody is there to be told.
        """
        unfinished = [g for g in self.generations if g.finish_reason is None]
        if unfinished:
            self._cancel(unfinished, error)

    def expire_after(self, seconds: float) -> None:
        """Fail what has not finished by then."""
        error = DeadlineExceededError(
            f"The request was not finished within its timeout of {seconds:g} s; allow it more "
            "time, or ask for less."
        )
        self._deadline = asyncio.get_running_loop().call_later(seconds, self.cancel, error)

    def add(self, generation: Generation) -> None:
        """The client's: one more, which has not finished."""
        self.generations.append(generation)
        self._num_unfinished += 1

    def note(self, generation: Generation, *, finished: bool = False) -> None:
        """The client's: one of the group has changed. `wake` follows when all changes are noted."""
        if finished:
            self._num_unfinished -= 1
            if not self._num_unfinished and self._deadline is not None:
                self._deadline.cancel()
        if finished or (self._stream and generation.has_news):
            news = self._unscored if generation.awaits_scores else self._ready
            news[generation.index] = generation
        if self._unscored:
            self._let_scored_go()

    def _let_scored_go(self) -> None:
        """Those whose prompts are scored are ready; all are when nothing more can come."""
        for index, generation in list(self._unscored.items()):
            if not generation.awaits_scores or self.has_finished:
                self._ready[index] = self._unscored.pop(index)

    def wake(self) -> Write | None:
        """The client's: let the waiter or listener see what was noted. What is returned, it calls
        when all groups are awake."""
        if not self._ready and self._num_unfinished:
            return None
        if self._listener is not None:
            return self._listener()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        return None


def wake_all(groups: Iterable[RequestGroup]) -> None:
    """The client's: `wake` them, and let them write."""
    for write in [write for group in groups if (write := group.wake()) is not None]:
        write()
