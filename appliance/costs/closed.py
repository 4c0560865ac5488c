"""What follows from steps: rates, the batch that saturates, and the time of a hand-off."""

from __future__ import annotations

import msgspec

from appliance.costs.formats import Format
from appliance.costs.gpus import Gpu
from appliance.costs.roofline import LINK_REACHED, Batch, Chunk, Roofline
from appliance.costs.shape import ModelShape


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A way for KV from one engine to another. ``bytes_s`` is what it carries in one direction, by the data sheet."""

    bytes_s: float
    reached: float = LINK_REACHED
    latency_s: float = 50e-6  # of asking for it and being told that it's there
    lanes: int = 1  # pairs of ranks that copy at the same time


def nvlink(gpu: Gpu, tp: int = 1) -> Link:
    """Between two engines of ``tp`` ranks each; rank copies from rank."""
    return Link(bytes_s=gpu.nvlink_bytes_s, lanes=tp)


def pcie(gpu: Gpu, tp: int = 1) -> Link:
    """The same where GPUs see each other over PCIe only."""
    return Link(bytes_s=gpu.pcie_bytes_s, lanes=tp)


def handoff_s(total_bytes: float, link: Link) -> float:
    """Seconds until ``total_bytes`` (of all ranks together) have arrived."""
    return link.latency_s + total_bytes / (link.lanes * link.bytes_s * link.reached)


def handoff_bytes(shape: ModelShape, tokens: int, tp: int = 1) -> float:
    """What a prompt's KV comes to, on all ranks together."""
    return tp * shape.kv_bytes(tokens, tp)


def saturating_tokens(gpu: Gpu, stored: Format = Format.BF16, shape: ModelShape | None = None) -> float:
    """n*: tokens from which on a dense product takes longer than reading its weights, at the data sheet's rates.

    2·n·parameters/peak = parameters·bytes/bandwidth (Williams et al., 2009). Of a mixture's tokens an expert gets active/experts only,
    so with such a ``shape`` it takes that many times more.
    """
    sparsity = shape.experts / shape.active_experts if shape and shape.experts else 1.0
    return sparsity * gpu.peak(stored).flops_s * stored.bytes / (2 * gpu.memory_bytes_s)


def prefill_tokens_s(roofline: Roofline, chunk_tokens: int, before: int = 0) -> float:
    """Of an engine that does nothing but chunks of that size."""
    return chunk_tokens / roofline.step(Batch([(chunk_tokens, before)])).total_s


def decode_tokens_s(roofline: Roofline, sequences: int, context: float) -> float:
    """Of an engine that does nothing but decode ``sequences`` with ``context`` tokens each; all of them together."""
    return sequences / roofline.step(Batch((), sequences, sequences * context)).total_s


def steady_step_s(roofline: Roofline, sequences: float, prompt: int, output: int) -> float:
    """The mean step of an engine that both prefills and decodes, always ``sequences`` at once.

    Whoever has its ``output`` tokens leaves and another comes, so that a step brings ``sequences``/``output`` new prompts.
    """
    context = sequences * (prompt + output / 2)
    return roofline.step(Batch(_chunks(sequences / output, prompt), sequences, context)).total_s


def steady_output_tokens_s(roofline: Roofline, sequences: float, prompt: int, output: int) -> float:
    """What such an engine says."""
    return sequences / steady_step_s(roofline, sequences, prompt, output)


def _chunks(prompts: float, prompt: int) -> list[Chunk]:
    """Whole prompts, and a part of one with as much before it as parts have on average."""
    whole, part = int(prompts), prompts - int(prompts)
    rest = [(part * prompt, (1 - part) * prompt / 2)] if part > 0 else []
    return [(float(prompt), 0.0)] * whole + rest
