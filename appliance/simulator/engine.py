"""One simulated engine: vLLM's continuous batching, as its scheduler does it, without a model.

Each step first gives every running sequence what it can, one token to those that decode and a chunk of the prompt to those that do not,
within the token budget; then it lets waiting ones in while there are budget, places and KV blocks. Where blocks run out, the sequence
that came last is preempted and computed again. What a step takes is ``physics``' to say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from appliance.channel import LONG_STEP_TOKENS, FirstToken, StepBegan, Up
from appliance.engine.kv.lease import Table
from appliance.simulator import words
from appliance.simulator.blocks import Blocks
from appliance.simulator.clock import Timer
from appliance.simulator.decoding import Decoding
from appliance.simulator.leases import Leases
from appliance.simulator.leg import Ask, Fabric, Offer, Outcome, Physics, Sequence, Settings, State, Work

BEAT_NS: Final = 1_000_000_000


class Engine:
    """One life of it."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        timer: Timer,
        physics: Physics,
        fabric: Fabric,
        say: Callable[[Up], None],
        ended: Callable[[Outcome], None],
        *,
        told: Callable[[Iterable[Sequence]], None] | None = None,
        epoch: int = 1,
        table: Table | None = None,
    ) -> None:
        """What it calls.

        Args:
            say: takes what the real engine would say over the channel.
            ended: takes each leg's outcome, once.
            told: takes the sequences that have each got one more token, before any of them ends. Costs time for each of them.
            table: gets the generations of leases, for those who read it.
        """
        self.name = name
        self.settings = settings
        self.blocks = Blocks(settings.kv_blocks)
        self._timer = timer
        self._physics = physics
        self._fabric = fabric
        self._say = say
        self._ended = ended
        self._sequences: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._prefilling: dict[Sequence, None] = {}  # running, in order of arrival
        self._decoding = Decoding(settings.block_tokens, self._fill)
        self._fetching: dict[Sequence, None] = {}
        self._told = told
        self._leases = Leases(name, epoch, {} if table is None else table, timer, say, self._freed)
        self.cached = 1.0  # of what the prefix cache has that is found; a fault's
        self._busy = False
        self._dead = False
        self._hung = False
        self._preemptions = self._queries = self._hits = 0
        self._beat()

    # ---- what is asked of it

    def submit(self, ask: Ask) -> None:
        """A leg arrives."""
        if self._dead:
            self._ended(Outcome(ask=ask, ended_ns=self._timer.now_ns, first_token_ns=None, lost=True))
            return
        sequence = Sequence(ask)
        self._sequences[ask.key] = sequence
        self._waiting.append(sequence)
        self._wake()

    def abort(self, key: str) -> None:
        """Whoever wanted it has left."""
        sequence = self._sequences.pop(key, None)
        if sequence is None:
            return
        sequence.aborted = True
        if sequence.fetch is not None:
            sequence.fetch.cancel()
            if not self._hung:
                self._report(sequence, self._timer.now_ns, "its request was aborted")
        self._leave(sequence)
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        self._fetching.pop(sequence, None)
        self.blocks.give_back(sequence.blocks)
        self._wake()

    def release(self, lease: str, reason: str) -> None:
        """One consumer has what it wanted, or nobody wants it any more."""
        if not self._dead and not self._hung:
            self._leases.release(lease, reason)

    def holds(self, lease: str) -> bool:
        return not self._dead and lease in self._leases

    def _freed(self, blocks: list[int]) -> None:
        self.blocks.give_back(blocks)
        self._wake()

    def withhold(self, blocks: int) -> None:
        """So many are not there, of those that are free or will be."""
        self.blocks.withheld = blocks
        self._wake()

    def hang(self) -> None:
        """It does nothing any more, and says nothing."""
        self._hung = True
        self._leases.keep()

    def die(self) -> None:
        """All that it had is gone."""
        self._dead = True
        self._leases.keep()
        sequences, self._sequences = self._sequences, {}
        for sequence in sequences.values():
            if sequence.fetch is not None:
                sequence.fetch.cancel()
            self._end(sequence, lost=True)

    # ---- steps

    def _wake(self) -> None:
        if self._busy or self._hung or self._dead:
            return
        if self._waiting or self._prefilling or self._decoding:
            self._begin_step()

    def _begin_step(self) -> None:
        now_ns, preemptions = self._timer.now_ns, self._preemptions
        work = Work()
        chunks = self._schedule(work)
        if not chunks and not work.decodes and self._preemptions > preemptions:
            chunks = self._schedule(work := Work())  # with the blocks of those that were preempted
        if not chunks and not work.decodes:
            return  # everybody waits for blocks, which come back by a message
        self._busy = True
        if work.prompt_tokens >= LONG_STEP_TOKENS:
            context_tokens = work.prompt_context + work.decode_context
            self._say(
                StepBegan(
                    at_ns=now_ns,
                    prompt_tokens=work.prompt_tokens,
                    decode_tokens=work.decodes,
                    context_tokens=context_tokens,
                    attended=work.attended,
                )
            )
        end_ns = now_ns + self._physics.step_ns(work, now_ns)
        self._timer.at(end_ns, lambda: self._end_step(now_ns, work, chunks))

    def _schedule(self, work: Work) -> list[tuple[Sequence, int]]:
        preemptions = self._preemptions
        budget = self._grow_decoding()
        chunks: list[tuple[Sequence, int]] = []
        for sequence in list(self._prefilling):
            budget = self._add_chunk(sequence, budget, chunks)
        if self._preemptions == preemptions:
            self._let_in_waiting(budget, chunks)
        work.decodes = len(self._decoding)
        work.decode_context = self._decoding.context + work.decodes
        chunks = [(sequence, tokens) for sequence, tokens in chunks if sequence in self._prefilling]
        for sequence, tokens in chunks:
            work.chunks.append((tokens, sequence.computed))
            work.prompt_tokens += tokens
            work.prompt_context += sequence.computed + tokens
            work.attended += tokens * (2 * sequence.computed + tokens + 1) // 2
        return chunks

    def _let_in_waiting(self, budget: int, chunks: list[tuple[Sequence, int]]) -> None:
        """As long as there are budget, places and blocks. For those that come nobody is preempted."""
        while self._waiting and budget > 0 and len(self._prefilling) + len(self._decoding) < self.settings.max_running:
            sequence = self._waiting[0]
            if not self._let_in(sequence, budget):
                return
            self._waiting.popleft()
            if sequence.fetch is not None:
                self._fetching[sequence] = None
                continue
            self._prefilling[sequence] = None
            self._say_scheduled(sequence)
            budget = self._add_chunk(sequence, budget, chunks)

    def _grow_decoding(self) -> int:
        """Blocks for those that decode and have filled theirs. The budget that is left for prompts."""
        for sequence in self._decoding.full():
            while not self._cover(sequence, sequence.total):
                if not self._preempt_last(sequence):
                    break
            else:
                self._decoding.plan(sequence)
        return self.settings.max_batched_tokens - len(self._decoding)

    def _add_chunk(self, sequence: Sequence, budget: int, chunks: list[tuple[Sequence, int]]) -> int:
        tokens = min(sequence.total - sequence.computed, budget)
        if tokens <= 0 or sequence not in self._prefilling:
            return budget
        while not self._cover(sequence, sequence.computed + tokens):
            if not self._preempt_last(sequence):
                return budget
        chunks.append((sequence, tokens))
        return budget - tokens

    def _cover(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for so many of its tokens."""
        missing = -(-tokens // self.settings.block_tokens) - len(sequence.blocks)
        if missing <= 0:
            return True
        new = self.blocks.take(missing)
        if new is None:
            return False
        sequence.blocks += new
        return True

    def _preempt_last(self, for_whom: Sequence) -> bool:
        """Take the blocks of the one that came last. False if that is the one that wants them."""
        last = next(reversed(self._prefilling), None) or self._decoding.last
        if last is None:
            return False
        self._leave(last)
        self.blocks.give_back(last.blocks)
        last.blocks, last.computed, last.fetched = [], 0, True
        self._wait_first(last)
        self._preemptions += 1
        return last is not for_whom

    def _wait_first(self, sequence: Sequence) -> None:
        """Before all others but those that hold blocks: as long as these wait, nobody gets theirs."""
        holding = next((place for place, other in enumerate(self._waiting) if not other.blocks), len(self._waiting))
        self._waiting.insert(holding, sequence)

    def _let_in(self, sequence: Sequence, budget: int) -> bool:
        """Find what the cache has of it, and begin to fetch the rest if that is held elsewhere. False: there are no blocks."""
        if not sequence.blocks:
            self._find(sequence)
        if sequence.fetched or sequence.ask.offer is None:
            possible = self._cover(sequence, min(sequence.total, sequence.computed + budget))
        else:
            possible = self._begin_fetch(sequence)
        if not possible:
            self.blocks.give_back(sequence.blocks)
            sequence.blocks, sequence.computed = [], 0
        return possible

    def _find(self, sequence: Sequence) -> None:
        """What of it is in the cache. One token is computed in any case."""
        found = self.blocks.cached(sequence.ask.digests[: (sequence.total - 1) // self.settings.block_tokens])
        found = found[: int(len(found) * self.cached)]
        self.blocks.share(found)
        sequence.blocks, sequence.computed = list(found), len(found) * self.settings.block_tokens
        if not sequence.scheduled:
            self._queries += sequence.total
            self._hits += sequence.computed

    def _end_step(self, start_ns: int, work: Work, chunks: list[tuple[Sequence, int]]) -> None:
        if self._dead or self._hung:
            return
        now_ns = self._timer.now_ns
        self._decoding.step()
        if self._told is not None and self._decoding:
            self._told(self._decoding)
        for sequence, tokens in chunks:
            if not sequence.aborted and sequence in self._prefilling:
                self._advance(sequence, tokens, now_ns)
        for sequence in self._decoding.through():
            self._finish(sequence)
        self._say(words.step(self._state(), start_ns, now_ns, work))
        self._busy = False  # not before: whoever is told of tokens may send more work
        self._wake()

    def _advance(self, sequence: Sequence, tokens: int, now_ns: int) -> None:
        """A chunk of its prompt has been computed."""
        sequence.computed += tokens
        self._fill(sequence)
        if sequence.computed < sequence.total:
            return
        sequence.said += 1
        if self._told is not None:
            self._told((sequence,))
        if sequence.first_ns is None:
            sequence.first_ns = now_ns
            if sequence.ask.phase != "prefill" and not sequence.ask.silent:
                self._say(FirstToken(request=sequence.ask.name, at_ns=now_ns))
        if sequence.said >= sequence.ask.output_tokens:
            self._finish(sequence)
            return
        del self._prefilling[sequence]
        self._decoding.join(sequence)

    def _fill(self, sequence: Sequence) -> None:
        digests = sequence.ask.digests
        if not digests:
            return
        full = sequence.computed // self.settings.block_tokens
        for block, digest in zip(sequence.blocks[:full], digests, strict=False):
            self.blocks.fill(block, digest)

    # ---- ends

    def _finish(self, sequence: Sequence) -> None:
        del self._sequences[sequence.ask.key]
        self._leave(sequence)
        offer = self._leases.hold(sequence) if sequence.ask.phase == "prefill" else None
        if offer is None:
            self.blocks.give_back(sequence.blocks)
        self._end(sequence, offer=offer)

    def _end(self, sequence: Sequence, *, offer: Offer | None = None, lost: bool = False) -> None:
        outcome = Outcome(
            ask=sequence.ask, ended_ns=self._timer.now_ns, first_token_ns=sequence.first_ns, offer=offer, lost=lost
        )
        self._ended(outcome)

    def _leave(self, sequence: Sequence) -> None:
        """It is not running any more."""
        self._prefilling.pop(sequence, None)
        self._decoding.leave(sequence)

    # ---- fetching

    def _begin_fetch(self, sequence: Sequence) -> bool:
        """False: there are no blocks to fetch into."""
        offer, now_ns = sequence.ask.offer, self._timer.now_ns
        assert offer is not None
        wanted = sequence.ask.prompt_tokens - 1 - sequence.computed
        if wanted <= 0:
            sequence.fetched = True
            self._report(sequence, now_ns, None)
            return self._cover(sequence, sequence.ask.prompt_tokens)
        had = len(sequence.blocks)
        if not self._cover(sequence, sequence.ask.prompt_tokens):
            return False
        size = (len(sequence.blocks) - had) * self.settings.block_bytes
        sequence.fetch = self._fabric.pull(
            offer, self.name, size, lambda began_ns, error: self._fetched(sequence, size, began_ns, error)
        )
        return True

    def _fetched(self, sequence: Sequence, size: int, began_ns: int, error: str | None) -> None:
        if sequence.aborted or self._dead:
            return
        sequence.fetch, sequence.fetched = None, True
        if self._hung:
            return
        del self._fetching[sequence]
        if error is None:
            sequence.computed = sequence.ask.prompt_tokens - 1
            self._fill(sequence)
        self._report(sequence, began_ns, error, size)
        self._waiting.appendleft(sequence)
        self._wake()

    def _report(self, sequence: Sequence, began_ns: int, error: str | None, size: int = 0) -> None:
        self._say(words.handed_over(sequence.ask, began_ns, self._timer.now_ns, error, size))

    # ---- what it says

    def _say_scheduled(self, sequence: Sequence) -> None:
        if sequence.scheduled or sequence.ask.silent:
            return
        sequence.scheduled = True
        self._say(words.scheduled(sequence.ask, self._timer.now_ns))

    def _state(self) -> State:
        return State(
            running=len(self._prefilling) + len(self._decoding),
            waiting=len(self._waiting),
            fetching=len(self._fetching),
            kv_free=self.blocks.free,
            leased=self._leases.blocks,
            preemptions=self._preemptions,
            prefix_queries=self._queries,
            prefix_hits=self._hits,
        )

    def _beat(self) -> None:
        if self._dead or self._hung:
            return
        now_ns = self._timer.now_ns
        if not self._busy:
            self._say(words.beat(self._state(), now_ns))
        self._timer.at(now_ns + BEAT_NS, self._beat)
