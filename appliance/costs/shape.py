"""What a model weighs, computes and keeps: all that a roofline needs of it, and no more."""

from __future__ import annotations

import math
from enum import StrEnum

import msgspec

from appliance.costs.formats import Format
from appliance.errors import ConfigError


class Kind(StrEnum):
    """Parts of a model whose weights are read, and multiplied, by different rules."""

    ATTENTION = "attention"  # projections; every token
    DENSE = "dense"  # ordinary MLPs; every token
    SHARED = "shared"  # experts that every token goes through
    ROUTER = "router"  # every token
    EXPERTS = "experts"  # some of them for each token
    HEAD = "head"  # only tokens whose successor is sampled
    EMBEDDING = "embedding"  # looked up, never multiplied


class Part(msgspec.Struct, frozen=True):
    """One kind of weights, on one rank, in all layers together."""

    kind: Kind
    parameters: int
    active_parameters: int  # that one token is multiplied with
    format: Format

    @property
    def bytes(self) -> float:
        return self.parameters * self.format.bytes


class Latent(msgspec.Struct, frozen=True, kw_only=True):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): all heads share one compressed KV."""

    kv_rank: int
    query_rank: int | None  # None: queries are not compressed
    nope_size: int  # of a head's query and key without position
    rope_size: int  # of a head's query and the shared key with position
    value_size: int


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder-only transformer. Sizes are in numbers, not bytes; layers are counted by what is in them."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    dense_layers: int  # layers with an ordinary MLP
    dense_size: int = 0  # its inner size
    gated: bool = True  # three matrices per MLP; False: two
    moe_layers: int = 0
    experts: int = 0
    active_experts: int = 0  # per token
    expert_size: int = 0
    shared_size: int = 0  # inner size of all shared experts together
    latent: Latent | None = None
    sliding_layers: int = 0  # that see the last ``window`` tokens only
    window: int = 0
    tied: bool = False  # the head is the embedding
    extra_parameters: int = 0  # norms, learned positions: counted, never costed
    attention_format: Format = Format.BF16
    dense_format: Format = Format.BF16
    shared_format: Format = Format.BF16
    expert_format: Format = Format.BF16
    kv_format: Format = Format.BF16
    scale_block: int = (
        0  # numbers that share one scale, along each side of a matrix; 0: scales are not shared out in blocks
    )

    @property
    def full_layers(self) -> int:
        """Layers that see the whole context."""
        return self.layers - self.sliding_layers

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts(1)) + self.extra_parameters

    @property
    def active_parameters(self) -> int:
        """That one token is multiplied with: without the embedding, which is looked up, and with the head."""
        return sum(part.active_parameters for part in self.parts(1))

    def weight_bytes(self, tp: int = 1) -> float:
        """On each of ``tp`` ranks."""
        return sum(part.bytes for part in self.parts(tp))

    def kv_heads_on_rank(self, tp: int) -> int:
        """KV heads are copied where there are fewer of them than ranks (vLLM's ``QKVParallelLinear``)."""
        return max(1, self.kv_heads // tp)

    def kv_bytes_per_layer(self, tp: int = 1) -> float:
        """Of one token in one layer, on each rank. A latent KV is whole on every rank."""
        if self.latent:
            return (self.latent.kv_rank + self.latent.rope_size) * self.kv_format.bytes
        return 2 * self.kv_heads_on_rank(tp) * self.head_size * self.kv_format.bytes

    def kv_bytes_per_token(self, tp: int = 1) -> float:
        """Of a token that all layers still keep, on each rank."""
        return self.layers * self.kv_bytes_per_layer(tp)

    def kv_bytes(self, tokens: int, tp: int = 1) -> float:
        """Of one sequence of ``tokens``, on each rank; sliding layers keep their window only."""
        kept = self.full_layers * tokens + self.sliding_layers * min(tokens, self.window)
        return kept * self.kv_bytes_per_layer(tp)

    def parts(self, tp: int) -> tuple[Part, ...]:
        """What each of ``tp`` ranks holds.

        Raises:
            ConfigError: it can't be shared out to so many ranks.
        """
        if reason := self.unshared(tp):
            raise ConfigError(reason)
        return tuple(part for part in (*self._always(tp), *self._experts(tp), *self._ends(tp)) if part.parameters)

    def unshared(self, tp: int) -> str | None:
        """Why the model can't be shared out to so many ranks; None if it can."""
        if (what := self._indivisible(tp)) is None:
            return None
        fits = [n for n in (1, 2, 4, 8, 16) if self._indivisible(n) is None]
        return f"{self.name} has {what}, which {tp} ranks can't share; possible are {', '.join(map(str, fits))}"

    def _indivisible(self, tp: int) -> str | None:
        if tp < 1 or self.heads % tp or (self.kv_heads % tp and tp % self.kv_heads):
            return f"{self.heads} heads and {self.kv_heads} KV heads"
        mlps = (
            (self.dense_size, self.dense_format),
            (self.shared_size, self.shared_format),
            (self.expert_size, self.expert_format),
        )
        for size, stored in mlps:
            if size % tp:
                return f"MLPs of an inner size of {size}"
            if self.scale_block and stored is Format.FP8 and tp > 1 and size // tp % self.scale_block:
                return f"MLPs of an inner size of {size} with a scale for every {self.scale_block}"
        return None

    def _always(self, tp: int) -> list[Part]:
        attention = self.layers * (self._latent(self.latent, tp) if self.latent else self._attention(tp))
        dense = self.dense_layers * self._mlp(self.dense_size, tp)
        shared = self.moe_layers * self._mlp(self.shared_size, tp)
        router = self.moe_layers * self.hidden * self.experts
        return [
            Part(Kind.ATTENTION, attention, attention, self.attention_format),
            Part(Kind.DENSE, dense, dense, self.dense_format),
            Part(Kind.SHARED, shared, shared, self.shared_format),
            Part(Kind.ROUTER, router, router, Format.BF16),
        ]

    def _experts(self, tp: int) -> list[Part]:
        one = self.moe_layers * self._mlp(self.expert_size, tp)
        return [Part(Kind.EXPERTS, one * self.experts, one * self.active_experts, self.expert_format)]

    def _ends(self, tp: int) -> list[Part]:
        one = math.ceil(self.vocabulary / tp) * self.hidden
        table = [] if self.tied else [Part(Kind.EMBEDDING, one, 0, Format.BF16)]
        return [Part(Kind.HEAD, one, one, Format.BF16), *table]

    def _attention(self, tp: int) -> int:
        queries = self.heads * self.head_size // tp
        return self.hidden * (2 * queries + 2 * self.kv_heads_on_rank(tp) * self.head_size)

    def _latent(self, latent: Latent, tp: int) -> int:
        """The down-projections are whole on every rank."""
        heads = self.heads // tp
        query_size = heads * (latent.nope_size + latent.rope_size)
        down, rank = (self.hidden * latent.query_rank, latent.query_rank) if latent.query_rank else (0, self.hidden)
        kv = self.hidden * (latent.kv_rank + latent.rope_size)
        kv += latent.kv_rank * heads * (latent.nope_size + latent.value_size)
        return down + rank * query_size + kv + heads * latent.value_size * self.hidden

    def _mlp(self, size: int, tp: int) -> int:
        return (3 if self.gated else 2) * self.hidden * size // tp
