"""Work that is done a few pieces at a time, in turns: of those who wait, who was served longest ago is next."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from segcft.app.requests import Refused
from segcft.app.users import User, heaviest

MOST, EACH = 256, 8  # pieces of work that may wait: of all users, of one
KEPT = 10_000  # users whose last turn is remembered
Result = TypeVar("Result")


class _Waiting(NamedTuple):
    user: User
    turn: "asyncio.Future[None]"


class FairQueue:
    """Takes turns among addresses, and among the visitors of one address.

    Args:
        workers: Pieces that are worked on at once.
        most: Pieces that may wait. One more replaces a piece of the user who has most.
        each: Pieces of one user that may wait.
    """

    def __init__(self, workers: int = 1, most: int = MOST, each: int = EACH) -> None:
        self.most, self.each = most, each
        self._worker, self._idle = ThreadPoolExecutor(workers), workers
        self._waiting: list[_Waiting] = []
        self._served: dict[User | str, int] = {}  # number of the last turn
        self._turns = 0

    async def run(
        self, user: User, work: Callable[[], Result], left: Callable[[], Awaitable[bool]] | None = None
    ) -> Result:
        """The result of ``work``, which runs in the queue's thread when it is this user's turn.

        Args:
            user: Who asks.
            work: To be done.
            left: Whether nobody waits for the result any more; asked when it is its turn.

        Raises:
            Refused: If too much waits, or nobody waits for the result.
        """
        await self._turn(user)
        try:
            if left is not None and await left():
                raise Refused(408, "the connection was closed before the answer")
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        finally:
            self._idle += 1
            self._next()

    async def _turn(self, user: User) -> None:
        """Wait for it; from then on a worker is taken."""
        own = _Waiting(user, asyncio.get_running_loop().create_future())
        self._admit(own)
        self._next()
        try:
            await own.turn
        except asyncio.CancelledError:
            if own.turn.done() and not own.turn.cancelled() and own.turn.exception() is None:  # its turn had come
                self._idle += 1
                self._next()
            raise
        finally:
            self._waiting = [each for each in self._waiting if each is not own]

    def _admit(self, own: _Waiting) -> None:
        if sum(each.user == own.user for each in self._waiting) >= self.each:
            raise Refused(429, f"{self.each} of your questions are waiting already: wait for an answer")
        if len(self._waiting) >= self.most:
            crowd = [*self._waiting, own]
            loser = heaviest([(each.user, 1) for each in crowd])
            last = next(each for each in reversed(crowd) if each.user == loser)
            refusal = Refused(503, "too many questions are waiting: try again in a moment")
            if last is own:
                raise refusal
            self._waiting.remove(last)
            last.turn.set_exception(refusal)
        self._waiting.append(own)

    def _next(self) -> None:
        if not self._idle or not self._waiting:
            return
        chosen = min(self._waiting, key=lambda each: (self._last(each.user.address), self._last(each.user)))
        self._idle, self._turns = self._idle - 1, self._turns + 1
        if len(self._served) > KEPT:
            self._served.clear()
        self._served[chosen.user.address] = self._served[chosen.user] = self._turns
        self._waiting.remove(chosen)
        chosen.turn.set_result(None)

    def _last(self, who: User | str) -> int:
        return self._served.get(who, 0)
