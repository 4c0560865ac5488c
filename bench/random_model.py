"""Random models where any wrong KV block shows: their projections are scaled up, so that every token depends on every prompt token.

At the default scale a random model collapses into loops that hide errors. The tokenizer has one token per byte.

``python -m bench.random_model DIRECTORY [KIND]`` writes one: in a process of its own, so that the caller never imports torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

SCALE: Final = 8.0
END: Final = "<|end|>"
TEMPLATE: Final = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}assistant:"
)
_SIZES: Final[dict[str, Any]] = {
    "vocab_size": 260,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": 256,
}
_WINDOW: Final = 200  # tokens, of layers that slide


def _llama() -> LlamaConfig:
    return LlamaConfig(**_SIZES, head_dim=32, tie_word_embeddings=False)


def _mistral() -> MistralConfig:
    """All layers slide."""
    return MistralConfig(**_SIZES, head_dim=32, sliding_window=_WINDOW, tie_word_embeddings=False)


def _gemma3() -> Gemma3TextConfig:
    """One KV head; five layers slide, then one does not."""
    sizes = {**_SIZES, "num_hidden_layers": 6, "num_key_value_heads": 1}
    return Gemma3TextConfig(**sizes, head_dim=32, sliding_window=_WINDOW, query_pre_attn_scalar=32, pad_token_id=None)


def _gpt_oss() -> GptOssConfig:
    """Every other layer slides; four experts, of which two are asked."""
    return GptOssConfig(
        **_SIZES,
        head_dim=32,
        sliding_window=_WINDOW,
        num_local_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    )


def _deepseek() -> DeepseekV2Config:
    """A latent (MLA) of the size that vLLM's CPU kernel knows, and no experts."""
    sizes = {**_SIZES, "num_key_value_heads": 4}
    return DeepseekV2Config(
        **sizes,
        first_k_dense_replace=sizes["num_hidden_layers"],
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=32,
        qk_rope_head_dim=64,
        v_head_dim=32,
    )


def _busy() -> LlamaConfig:
    """125 MB, so that engines have more to do than whoever asks them."""
    sizes = {**_SIZES, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12}
    return LlamaConfig(**sizes, head_dim=32, tie_word_embeddings=False)


KINDS: Final[Mapping[str, Callable[[], Any]]] = {
    "llama": _llama,
    "busy": _busy,
    "mistral": _mistral,
    "gemma3": _gemma3,
    "gpt-oss": _gpt_oss,
    "deepseek": _deepseek,
}


def write(directory: Path, kind: str = "llama") -> Path:
    """A Hugging Face directory, float32, of some MB."""
    _tokenizer().save_pretrained(directory)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind]()).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(SCALE)
    model.save_pretrained(directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary[END] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    fast.chat_template = TEMPLATE
    return fast


if __name__ == "__main__":
    write(Path(sys.argv[1]), *sys.argv[2:3])
