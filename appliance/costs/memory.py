"""What a model takes of its GPUs' memory under vLLM: weights as kernels want them, KV as blocks are shared out, and all that a step needs.

None of it is measured here. Weights and KV follow vLLM's own rules (0.32); what steps need follows from sizes of tensors, with constants
that fit start-up logs which others have published (``tests/unit/memory_logs.toml``, ``docs/costs.md``).
"""

from __future__ import annotations

import math
from typing import Final

from appliance.costs.formats import Format
from appliance.costs.shape import ModelShape

BLOCK_TOKENS: Final = 16  # of KV, as vLLM has it unless an attention backend wants more
_GIB: Final = 1 << 30
_BF16: Final = 2

_PADDED: Final = {Format.MXFP4: (256, 128)}
"""To multiples of what experts' sizes are rounded up: the hidden one, and a rank's part of the inner one. Most kernels want so much
(vLLM's ``fused_moe/oracle/mxfp4.py``: Marlin, TensorRT-LLM's); Triton's is content with less, by some 2 %."""

_LIBRARIES: Final = 0.5 * _GIB  # modules of kernels, cuBLAS: logs have 0.25 on one GPU
_RANKS: Final = (
    2.2 * _GIB
)  # the same and what ranks meet over (NCCL, all-reduce): logs have 2.06 to 2.2 on 2 and 4 GPUs
_HIDDEN_STATES: Final = 4.2  # of a token, that there are at once in a layer
_LOGIT_BYTES: Final = (
    15.0  # of each place and word of the vocabulary: as computed, in 32 bits, as probabilities, sorted
)
_EXPERTS: Final = 1.25  # times the intermediate results that are kept: some kernels keep one more
_GRAPHS: Final = (0.3 * _GIB, 0.019 * _GIB)  # CUDA graphs of all batch sizes: of any model, and per layer
_MOST_CAPTURED: Final = 512  # tokens of a batch that graphs are made for


class Memory:
    """Of one model, on each of ``tp`` ranks. Implements ``planner.room.Footprint``."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape

    def weight_bytes(self, tp: int = 1) -> float:
        """Raises ``ConfigError`` where the model can't be shared out to so many."""
        return self.shape.weight_bytes(tp) + self._padding_bytes(tp)

    def kv_bytes(self, tokens: int, tp: int = 1, in_flight: int = 0) -> float:
        """Of one request of so many tokens, in whole blocks.

        Layers that slide keep their window, and what is in flight besides: tokens of steps that are under way, whose blocks are given
        back only afterwards. vLLM keeps as much as ``max_in_flight_tokens`` of them free, which is two steps' budgets with asynchronous
        scheduling, and ends at start if the longest request does not fit (``kv_cache_interface.py``, ``config/vllm.py``). Layers that
        differ are dealt to groups of equal size, the last of which is filled up (``kv_cache_utils.py``).
        """
        full, sliding, layers = self._groups()
        kept = min(tokens, self.shape.window - 1 + in_flight if in_flight else self.shape.window)
        blocks = full * math.ceil(tokens / BLOCK_TOKENS)
        blocks += sliding * (math.ceil(kept / BLOCK_TOKENS) + 1)  # windows begin within blocks
        return blocks * layers * BLOCK_TOKENS * self.shape.kv_bytes_per_layer(tp)

    def working_bytes(self, tp: int, token_budget: int, places: int) -> float:
        """All else: of the largest step what is there at once, of sampling, of experts, libraries and CUDA graphs."""
        sampling = places * self.shape.vocabulary * _LOGIT_BYTES + token_budget * self.shape.hidden * _BF16
        step = max(token_budget * self._token_bytes(tp), sampling)  # one after the other
        return (
            (_RANKS if tp > 1 else _LIBRARIES)
            + step
            + self._experts_bytes(tp, token_budget)
            + self._graphs_bytes(places)
        )

    def _padding_bytes(self, tp: int) -> float:
        shape = self.shape
        if not shape.experts or shape.expert_format not in _PADDED:
            return 0.0
        hidden, inner = _PADDED[shape.expert_format]
        own = shape.expert_size / tp
        more = _up(shape.hidden, hidden) * _up(own, inner) - shape.hidden * own
        return shape.moe_layers * shape.experts * (3 if shape.gated else 2) * more * shape.expert_format.bytes

    def _groups(self) -> tuple[int, int, int]:
        """Of layers that see everything, of those that slide, and how many layers each has, filled up or not."""
        full, sliding = self.shape.full_layers, self.shape.sliding_layers
        if not full or not sliding:
            return min(1, full), min(1, sliding), full + sliding
        few, many = sorted((full, sliding))
        size = many if many < 1.5 * few else few
        return math.ceil(full / size), math.ceil(sliding / size), size

    def _token_bytes(self, tp: int) -> float:
        """Of one token in a step: hidden states, and the widest MLP's results."""
        shape = self.shape
        widest = max(shape.dense_size, shape.shared_size if shape.moe_layers else 0)
        return (_HIDDEN_STATES * shape.hidden + (3 if shape.gated else 2) * widest / tp) * _BF16

    def _experts_bytes(self, tp: int, token_budget: int) -> float:
        """Results of each token's experts; they are kept from step to step."""
        shape = self.shape
        if not shape.experts:
            return 0.0
        own = shape.expert_size / tp
        return _EXPERTS * token_budget * shape.active_experts * (max(2 * own, shape.hidden) + own) * _BF16

    def _graphs_bytes(self, places: int) -> float:
        any_model, layer = _GRAPHS
        return (any_model + layer * self.shape.layers) * _captured(places) / _captured(_MOST_CAPTURED)


def _captured(places: int) -> int:
    """Batch sizes that graphs are made for: 1, 2, 4, every eighth up to 256, every sixteenth up to twice the places."""
    most = min(_MOST_CAPTURED, 2 * places)
    return 3 + min(most, 256) // 8 + max(0, most - 256) // 16


def _up(size: float, multiple: int) -> float:
    return math.ceil(size / multiple) * multiple
