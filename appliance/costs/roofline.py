"""How long one step of an engine takes: for each thing that it does, the longer of moving bytes and multiplying (Williams et al., 2009).

    step = linear + mixing + elementwise + allreduce + overhead

``linear``: projections, MLPs, experts and the head; weights read once per step against matrix work. ``mixing``: attention; KV read against
its products. ``elementwise``: norms, activations and residuals, which only move bytes. A ``Roofline`` is made once for a model on a GPU and
then asked for many steps; ``step`` takes some microseconds. All times are seconds, all of it is per rank, and ranks run in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from appliance.costs.formats import Format
from appliance.costs.gpus import Gpu
from appliance.costs.shape import Kind, ModelShape

LINK_REACHED: Final = (
    0.87  # 396 of 450 GB/s: nvbandwidth between two of 8 H200s (stas00/ml-engineering, network/README.md)
)
Chunk = tuple[float, float]  # (tokens computed in this step, tokens of the same prompt that were there before)


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """What real kernels make of a data sheet. One set for every GPU and model; ``docs/costs.md`` has where each comes from."""

    memory: float = 0.84  # of the bandwidth, when weights, KV or activations stream
    matrix: float = 0.80  # of the reachable peak: a layer's products are not the best-shaped one
    experts: float = 0.30  # the same for many experts' small products
    attention: float = 0.50  # of the BF16 peak: causal, ragged FlashAttention
    link: float = LINK_REACHED  # of NVLink, in large messages
    overlap: float = 1.5  # exponent in which moving and multiplying add up; infinite: perfect overlap
    allreduce_s: float = 7e-6  # one all-reduce of few bytes
    layer_s: float = 25e-6  # starts and ends of a layer's kernels in a CUDA graph
    moe_layer_s: float = 20e-6  # of those that route and gather, besides
    step_s: float = 0.5e-3  # scheduling, inputs and sampling that do not overlap


DEFAULT: Final = Efficiency()


class Batch(msgspec.Struct, frozen=True):
    """What runs in one step. ``decode_context`` is the sum over sequences of the tokens that each attends to.

    Of it, sliding layers are taken to see ``sequences`` times the window at most: too much, if only some sequences are that long.
    """

    chunks: Sequence[Chunk] = ()
    sequences: float = 0  # that decode, one token each
    decode_context: float = 0


class Bound(StrEnum):
    """What a step spends the largest part of its time on."""

    WEIGHTS = "weights"
    MATRIX = "matrix"
    KV = "kv"
    ATTENTION = "attention"
    ELEMENTWISE = "elementwise"
    ALLREDUCE = "allreduce"
    OVERHEAD = "overhead"


class StepCost(msgspec.Struct, frozen=True):
    """The first four are demands on memory and tensor cores, of which pairs overlap; the other five are what adds up to ``total_s``."""

    weights_s: float
    matrix_s: float
    kv_s: float
    attention_s: float
    linear_s: float  # weights and matrix together
    mixing_s: float  # kv and attention together
    elementwise_s: float
    allreduce_s: float
    overhead_s: float
    total_s: float

    @property
    def bound(self) -> Bound:
        parts = {
            Bound.WEIGHTS if self.weights_s >= self.matrix_s else Bound.MATRIX: self.linear_s,
            Bound.KV if self.kv_s >= self.attention_s else Bound.ATTENTION: self.mixing_s,
            Bound.ELEMENTWISE: self.elementwise_s,
            Bound.ALLREDUCE: self.allreduce_s,
            Bound.OVERHEAD: self.overhead_s,
        }
        return max(parts, key=parts.__getitem__)


IDLE: Final = StepCost(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Roofline:
    """A model on ``tp`` GPUs of one kind, in steps.

    Raises:
        ConfigError: the model's heads can't be shared out to ``tp`` ranks.
    """

    def __init__(self, shape: ModelShape, gpu: Gpu, tp: int = 1, efficiency: Efficiency = DEFAULT) -> None:
        self.shape, self.gpu, self.tp, self.efficiency = shape, gpu, tp, efficiency
        self._power, self._root = efficiency.overlap, 1 / efficiency.overlap
        self._linears(shape, gpu, tp, efficiency)
        self._mixing(shape, gpu, tp, efficiency)
        self._elementwise_token_s = _elementwise_bytes(shape, tp) / (gpu.memory_bytes_s * efficiency.memory)
        # After each attention and MLP (Megatron-LM, arXiv:1909.08053), and after the embedding.
        self._reductions = 2 * shape.layers + 1 if tp > 1 else 0
        ring = 2 * (tp - 1) / tp * shape.hidden * Format.BF16.bytes
        self._reduce_token_s = self._reductions * ring / (gpu.nvlink_bytes_s * efficiency.link)
        gaps_s = shape.layers * efficiency.layer_s + shape.moe_layers * efficiency.moe_layer_s
        self._overhead_s = efficiency.step_s + gaps_s

    def step(self, batch: Batch) -> StepCost:
        """What the batch costs; nothing at all if it is empty."""
        chunk_tokens = sum(chunk[0] for chunk in batch.chunks)
        tokens, rows = chunk_tokens + batch.sequences, len(batch.chunks) + batch.sequences
        if tokens <= 0:
            return IDLE
        weights_s, matrix_s, linear_s = self._linear(tokens, rows)
        kv_s, attention_s, mixing_s = self._mix(batch)
        elementwise_s = tokens * self._elementwise_token_s
        allreduce_s = self._reductions * self.efficiency.allreduce_s + tokens * self._reduce_token_s
        total_s = linear_s + mixing_s + elementwise_s + allreduce_s + self._overhead_s
        parts = (linear_s, mixing_s, elementwise_s, allreduce_s, self._overhead_s, total_s)
        return StepCost(weights_s, matrix_s, kv_s, attention_s, *parts)

    def experts_touched(self, tokens: float) -> float:
        """Expected number of distinct experts per layer, were routing uniform and independent.

        E(1 − (1 − k/E)^n): each expert is missed by a token with probability 1 − k/E (occupancy; Feller, volume 1, IV.2).
        Real routers prefer some, so fewer are touched than this says.
        """
        shape = self.shape
        return shape.experts * (1 - (1 - shape.active_experts / shape.experts) ** tokens) if shape.experts else 0.0

    def _linears(self, shape: ModelShape, gpu: Gpu, tp: int, efficiency: Efficiency) -> None:
        self._dense_read_s = self._dense_token_s = self._head_row_s = self._experts_read_s = self._experts_token_s = 0.0
        for part in shape.parts(tp):
            peak = gpu.peak(part.format)
            read_s = part.bytes / (gpu.memory_bytes_s * efficiency.memory)
            share = efficiency.experts if part.kind is Kind.EXPERTS else efficiency.matrix
            token_s = 2 * part.active_parameters / (peak.flops_s * peak.reachable * share)
            if part.kind is Kind.EXPERTS:
                self._experts_read_s, self._experts_token_s = read_s, token_s
            elif part.kind is Kind.HEAD:
                self._dense_read_s, self._head_row_s = self._dense_read_s + read_s, token_s
            elif part.kind is not Kind.EMBEDDING:
                self._dense_read_s, self._dense_token_s = self._dense_read_s + read_s, self._dense_token_s + token_s

    def _mixing(self, shape: ModelShape, gpu: Gpu, tp: int, efficiency: Efficiency) -> None:
        self._kv_token_s = shape.kv_bytes_per_layer(tp) / (gpu.memory_bytes_s * efficiency.memory)  # in one layer
        flops_s = gpu.bf16.flops_s * efficiency.attention
        self._decode_pair_s, self._chunk_pair_s = (flops / tp / flops_s for flops in _pair_flops(shape))
        self._full, self._sliding, self._window = shape.full_layers, shape.sliding_layers, shape.window

    def _linear(self, tokens: float, rows: float) -> tuple[float, float, float]:
        read_s, work_s = self._dense_read_s, tokens * self._dense_token_s + rows * self._head_row_s
        linear_s = self._together(read_s, work_s)
        if not self.shape.experts:
            return read_s, work_s, linear_s
        touched = self.experts_touched(tokens) / self.shape.experts
        experts_read_s, experts_work_s = touched * self._experts_read_s, tokens * self._experts_token_s
        linear_s += self._together(experts_read_s, experts_work_s)
        return read_s + experts_read_s, work_s + experts_work_s, linear_s

    def _mix(self, batch: Batch) -> tuple[float, float, float]:
        kept = self._full * batch.decode_context
        if self._sliding:
            kept += self._sliding * min(batch.decode_context, batch.sequences * self._window)
        kv_s, attention_s = kept * self._kv_token_s, kept * self._decode_pair_s
        mixing_s = self._together(kv_s, attention_s)
        for new, before in batch.chunks:
            read_s, work_s = self._chunk(new, before)
            kv_s, attention_s, mixing_s = kv_s + read_s, attention_s + work_s, mixing_s + self._together(read_s, work_s)
        return kv_s, attention_s, mixing_s

    def _chunk(self, new: float, before: float) -> tuple[float, float]:
        pairs, seen = self._full * _pairs(new, before), self._full * (new + before)
        if self._sliding:
            pairs += self._sliding * _window_pairs(new, before, self._window)
            seen += self._sliding * (new + min(before, self._window))
        return seen * self._kv_token_s, pairs * self._chunk_pair_s

    def _together(self, read_s: float, work_s: float) -> float:
        """The p-norm of both: their maximum far from the knee, and more than it near the knee, where neither hides the other."""
        return float((read_s**self._power + work_s**self._power) ** self._root)


def _pairs(new: float, before: float) -> float:
    """Query–key pairs of a causal chunk."""
    return new * before + new * (new + 1) / 2


def _window_pairs(new: float, before: float, window: float) -> float:
    """Those of them that lie within the window."""
    growing = min(new, max(0.0, window - before))
    return _pairs(growing, before) + (new - growing) * window


def _pair_flops(shape: ModelShape) -> tuple[float, float]:
    """Of one query–key pair in one layer, all heads: when decoding, and in a chunk. Two products of 2 FLOP per number.

    A latent KV is attended to as it is when decoding (absorbed), and expanded to heads in a chunk (DeepSeek-V2, appendix C).
    """
    if (latent := shape.latent) is None:
        return (4.0 * shape.heads * shape.head_size,) * 2
    absorbed = 2 * latent.kv_rank + latent.rope_size
    expanded = latent.nope_size + latent.rope_size + latent.value_size
    return 2.0 * shape.heads * absorbed, 2.0 * shape.heads * expanded


def _elementwise_bytes(shape: ModelShape, tp: int) -> float:
    """Moved per token by what is fused into no product, BF16.

    Per layer: two norms with residual (4 reads or writes of the hidden state each), rotation of queries and keys (2),
    the MLP's activation (2 reads, 1 write), and the experts' outputs written and summed.
    """
    heads = 2 * (shape.heads // tp + shape.kv_heads_on_rank(tp)) * shape.head_size
    inner = shape.dense_layers * shape.dense_size
    inner += shape.moe_layers * (shape.shared_size + shape.active_experts * shape.expert_size)
    gathered = 2 * shape.moe_layers * shape.active_experts * shape.hidden
    return (shape.layers * (8 * shape.hidden + heads) + 3 * inner / tp + gathered) * Format.BF16.bytes
