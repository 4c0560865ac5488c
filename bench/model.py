"""The model that is benchmarked: a random Llama of 32.5 million parameters in bfloat16. What it says means nothing; what it costs does.

``python -m bench.model DIRECTORY`` writes it: in a process of its own, so that the load client never imports torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY: Final = 1024
CONTEXT: Final = 4096
END: Final = "<|end|>"


def write(directory: Path) -> Path:
    """A Hugging Face directory of 65 MB; the same weights each time."""
    _tokenizer().save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=256,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, one for the end, and as many unused ones as make every id of the model's a token."""
    vocabulary = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for name in (END, *(f"<|{number}|>" for number in range(len(vocabulary) + 1, VOCABULARY))):
        vocabulary[name] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
