"""Models that ``huggingface.py`` reads, by their ``model_type``. What others call their sizes, or leave to their class, is not known."""

from __future__ import annotations

from typing import Final

# fmt: off
KNOWN: Final = frozenset({
    "apertus", "arcee", "bloom", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4",
    "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_neox", "gpt_oss", "granite", "helium",
    "hunyuan_v1_dense", "internlm2", "internlm3", "kimi_k2", "llama", "minicpm", "ministral", "mistral", "mixtral", "nemotron", "olmo",
    "olmo2", "olmo3", "olmoe", "opt", "phi", "phi3", "phimoe", "qwen2", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_moe", "qwen2_vl",
    "qwen2_vl_text", "qwen3", "qwen3_moe", "qwen3_vl_moe_text", "qwen3_vl_text", "seed_oss", "smollm3", "stablelm", "starcoder2",
})
TIED: Final = frozenset({"bloom", "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt2", "opt"})
"""Whose head is the embedding, where the ``config.json`` says nothing."""
TWO_MATRICES: Final = frozenset({"apertus", "arcee", "bloom", "gpt2", "gpt_neox", "nemotron", "opt", "phi", "starcoder2"})
"""Per MLP; others have three."""
EXPERTS_ONLY: Final = frozenset({"gpt_oss", "mixtral", "olmoe", "phimoe"})
"""Whose ``intermediate_size`` is an expert's."""
SLIDING_PERIOD: Final = {"cohere2": 4, "gemma2": 2, "gemma3_text": 6}
"""Every n-th layer is full, the others slide."""
# fmt: on
