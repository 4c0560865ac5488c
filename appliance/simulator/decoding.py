"""The sequences of a simulated engine that decode.

They are not touched one by one: all of them get a token in every step, so that a step is a number, and what becomes of a sequence (its
next block, its end) is due at a number. That makes a step of five hundred sequences as cheap as a step of five.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator

from appliance.simulator.leg import Sequence


class Decoding:
    """In order of their joining."""

    def __init__(self, block_tokens: int, fill: Callable[[Sequence], None]) -> None:
        """``fill`` is called with a sequence once its own figures are those of the present step."""
        self.context = 0  # KV tokens of all of them
        self._block_tokens = block_tokens
        self._fill = fill
        self._sequences: dict[Sequence, None] = {}
        self._due: list[tuple[int, int, Sequence]] = []  # by the number of the step
        self._order = itertools.count()
        self._number = 0  # of the present step

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def last(self) -> Sequence | None:
        return next(reversed(self._sequences), None)

    def join(self, sequence: Sequence) -> None:
        """Its prompt has been computed."""
        self._sequences[sequence] = None
        sequence.joined = self._number
        self.context += sequence.computed
        self.plan(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Harmless for one that does not decode."""
        if sequence.joined < 0:
            return
        self._settle(sequence)
        del self._sequences[sequence]
        self.context -= sequence.computed
        sequence.joined = -1

    def step(self) -> None:
        """Each of them has got a token."""
        self._number += 1
        self.context += len(self._sequences)

    def plan(self, sequence: Sequence) -> None:
        """See to it again when its blocks are full, or it has said all."""
        until_full = len(sequence.blocks) * self._block_tokens - sequence.computed
        until_end = sequence.ask.output_tokens - sequence.said
        number = sequence.joined + max(0, min(until_full, until_end))
        heapq.heappush(self._due, (number, next(self._order), sequence))

    def full(self) -> Iterator[Sequence]:
        """Those that need a block; with one, they are to be planned again. Others may leave meanwhile."""
        while self._due and self._due[0][0] <= self._number:
            _, _, sequence = heapq.heappop(self._due)
            if self._decodes(sequence):
                self._settle(sequence)
                yield sequence

    def through(self) -> Iterator[Sequence]:
        """Those that have said all, and are to leave. (Those that need a block are seen to when the next step is scheduled.)"""
        kept = []
        while self._due and self._due[0][0] <= self._number:
            entry = heapq.heappop(self._due)
            sequence = entry[2]
            if not self._decodes(sequence):
                continue
            if sequence.said + self._number - sequence.joined >= sequence.ask.output_tokens:
                self._settle(sequence)
                yield sequence
            else:
                kept.append(entry)
        for entry in kept:
            heapq.heappush(self._due, entry)

    def _decodes(self, sequence: Sequence) -> bool:
        return sequence.joined >= 0 and not sequence.aborted

    def _settle(self, sequence: Sequence) -> None:
        """Bring its own figures up to the present step."""
        steps = self._number - sequence.joined
        sequence.computed += steps
        sequence.said += steps
        sequence.joined = self._number
        self._fill(sequence)
