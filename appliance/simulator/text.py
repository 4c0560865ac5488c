"""What a simulated engine reads and says. Pure.

Nobody means anything by it: an answer is a function of the prompt, and its words are made up.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

_SOUNDS: Final = [f"{first}{second}" for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u", "ai", "or")]
VOCABULARY: Final = len(_SOUNDS) ** 2
_TOKEN_BYTES: Final = 4  # of English text, in GPT's and Llama's tokenizers: nearly so many
_MASK: Final = (1 << 64) - 1


def tokens_of(text: str) -> list[int]:
    """About as many as a tokenizer would make."""
    data = text.encode(errors="surrogatepass")  # JSON may have half of a pair
    return [zlib.crc32(data[at : at + _TOKEN_BYTES]) % VOCABULARY for at in range(0, len(data), _TOKEN_BYTES)]


def word(token: int) -> str:
    """The text of a token, with the space before it."""
    first, second = divmod(token % VOCABULARY, len(_SOUNDS))
    return f" {_SOUNDS[first]}{_SOUNDS[second]}"


def answer(prompt: Sequence[int], sequence: int, count: int) -> list[int]:
    """The first tokens of what is answered: the same on every engine and in every process."""
    state = (hash(tuple(prompt)) ^ (sequence * 0x9E3779B97F4A7C15)) & _MASK
    found = []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) & _MASK
        found.append((state >> 33) % VOCABULARY)
    return found


def length(prompt: Sequence[int], sequence: int) -> int:
    """For how many tokens an answer goes on that nobody cuts short."""
    return 40 + (hash(tuple(prompt)) ^ sequence * 7919) % 240


def block_digests(tokens: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """Of each full block, all that comes before it included."""
    found, before = [], 0
    for at in range(0, len(tokens) - block_tokens + 1, block_tokens):
        before = hash((before, *tokens[at : at + block_tokens]))
        found.append(before)
    return tuple(found)
