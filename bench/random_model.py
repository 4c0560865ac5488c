"""A random model where any wrong KV block shows: its projections are scaled up, so that every token depends on every prompt token.

At the default scale a random model collapses into loops that hide errors. The tokenizer has one token per byte.

``python -m bench.random_model DIRECTORY [SIZE]`` writes it: in a process of its own, so that the caller never imports torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SCALE: Final = 8.0
SIZES: Final[dict[str, dict[str, int]]] = {
    "small": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4},
    "busy": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12},
}
"""``small``: 2.6 MB. ``busy``: 125 MB, so that engines have more to do than whoever asks them."""
END: Final = "<|end|>"
TEMPLATE: Final = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}assistant:"
)


def write(directory: Path, size: str = "small") -> Path:
    """A Hugging Face directory: 4 heads, 2 KV heads, float32; ``size`` as in ``SIZES``."""
    _tokenizer().save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        **SIZES[size],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=256,
    )
    model = LlamaForCausalLM(config).float()
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
