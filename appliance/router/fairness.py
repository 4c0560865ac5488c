"""Whose turn it is among those that wait. Pure.

Each client has a line of its own, first come first served. Of the clients that wait, the one that has been given the least work so far
is next: a thousand requests of one client do not keep another one's single request waiting. Work is counted in tokens, as in the
virtual token counter of Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, section 4.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

OUTPUT_WEIGHT: Final = 2
"""A token that is decoded counts as so many of a prompt: as in that paper's evaluation, after the prices that are asked for both."""


class Waiting(Protocol):
    client: str
    prompt_tokens: int


T = TypeVar("T", bound=Waiting)


class Lines(Generic[T]):
    """Everybody who waits. While nobody does, nobody is owed anything, and nothing is remembered."""

    def __init__(self) -> None:
        self._first: deque[T] = deque()  # have waited before
        self._lines: dict[str, deque[T]] = {}  # by client; none is empty
        self._work: dict[str, int] = {}  # tokens, by client
        self._last = 0  # the work of the client that was served last

    def __len__(self) -> int:
        return len(self._first) + sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[T]:
        yield from self._first
        for line in self._lines.values():
            yield from line

    def add(self, one: T) -> None:
        """To the end of its client's line."""
        if one.client not in self._lines:
            self._join(one.client)
        self._lines[one.client].append(one)

    def _join(self, client: str) -> None:
        """Who comes now is owed nothing for the time before, and owes nothing either.

        It starts beside those that wait, but not before the one that was served last: else clients that each come once would always
        be first.
        """
        waiting = [self._work[other] for other in self._lines]
        least = max(min(waiting), min(self._last, max(waiting))) if waiting else 0
        self._work = {known: work for known, work in self._work.items() if known in self._lines or work > least}
        self._lines[client] = deque()
        self._work[client] = max(self._work.get(client, 0), least)

    def add_first(self, one: T) -> None:
        """Before everybody else."""
        self._first.appendleft(one)

    def next(self) -> T | None:
        """Whose turn it is."""
        if self._first:
            return self._first[0]
        if not self._lines:
            return None
        return self._lines[min(self._lines, key=self._work.__getitem__)][0]

    def remove(self, one: T) -> bool:
        """It waits no more; False if it did not."""
        if one in self._first:
            self._first.remove(one)
        elif one in self._lines.get(one.client, ()):
            self._lines[one.client].remove(one)
        else:
            return False
        self._tidy(one.client)
        return True

    def serve(self, one: T) -> None:
        """Its turn has come: its prompt counts from now on. (That of one that had its turn before has been counted.)"""
        if one in self._lines.get(one.client, ()):
            self._work[one.client] += max(1, one.prompt_tokens)
            self._last = self._work[one.client]
        self.remove(one)

    def count_output(self, client: str, tokens: int) -> None:
        """A client has been given so many tokens."""
        if client in self._work:
            self._work[client] += OUTPUT_WEIGHT * tokens

    def to_make_room_for(self, client: str) -> T | None:
        """The newest of the longest line, if ``client`` has clearly fewer waiting: it has to go where not all can stay."""
        longest = max(self._lines.values(), key=len, default=None)
        if longest is None or len(longest) < len(self._lines.get(client, ())) + 2:
            return None
        return longest[-1]

    def _tidy(self, client: str) -> None:
        if client in self._lines and not self._lines[client]:
            del self._lines[client]
        if not len(self):
            self._work.clear()
            self._last = 0
