"""Output tokens of the streams under way, as the engines say them."""

from __future__ import annotations

from appliance.channel import OutputTokens


class Journal:
    """By the router's key; only of keys that were opened, and until they are closed."""

    def __init__(self) -> None:
        self._tokens: dict[str, list[list[int]]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def open(self, key: str, sequences: int) -> None:
        self._tokens[key] = [[] for _ in range(sequences)]

    def fold(self, message: OutputTokens) -> None:
        """Take what an engine says."""
        for key, number, tokens in message.items:
            known = self._tokens.get(key)
            if known is not None and number < len(known):
                known[number] += tokens

    def close(self, key: str) -> list[list[int]]:
        """What each of its sequences has said; forgotten then."""
        return self._tokens.pop(key, [])
