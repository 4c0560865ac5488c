"""Values of a ``config.json``, each of its type and in its range: people write such files, and a wrong one is told by the key's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from appliance.errors import ConfigError

_MOST: Final = 1 << 40  # more is no size of anything
_SHOWN: Final = 60  # characters of what is wrong


class Keys:
    """One object of it. Absent and null are the same: None, or empty. All raise ``ConfigError`` for what can't be."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def whole(self, *names: str, least: int = 0, most: int = _MOST) -> int | None:
        """The first that is there."""
        name, found = self._first(names)
        if found is None or (type(found) is int and least <= found <= most):  # True is no number
            return found
        below = "" if most == _MOST else f" and not above {most:,}"
        raise self._wrong(name, found, f"a whole number {f'above {least - 1}' if least else 'of 0 or more'}{below}")

    def need(self, *names: str, least: int = 1, most: int = _MOST) -> int:
        """One of them must be there."""
        found = self.whole(*names, least=least, most=most)
        if found is None:
            raise ConfigError(f"{self.where} has no {' or '.join(names)}; a whole number above 0 would be right")
        return found

    def number(self, name: str) -> float | None:
        """Above 0."""
        found = self.values.get(name)
        if found is None or (type(found) in (int, float) and 0 < found <= _MOST):
            return found
        raise self._wrong(name, found, "a number above 0")

    def flag(self, name: str, usual: bool) -> bool:
        found = self.values.get(name)
        if found is None or isinstance(found, bool):
            return usual if found is None else found
        raise self._wrong(name, found, "true or false")

    def text(self, name: str) -> str:
        found = self.values.get(name)
        if found is None or isinstance(found, str):
            return found or ""
        raise self._wrong(name, found, "a text")

    def texts(self, name: str) -> tuple[str, ...]:
        return self._several(name, str, "a list of texts")

    def wholes(self, name: str) -> tuple[int, ...]:
        return self._several(name, int, "a list of whole numbers")

    def table(self, name: str) -> Keys:
        """An object within it."""
        found = self.values.get(name)
        if found is None or isinstance(found, dict):
            return Keys(found or {}, f"{name} in {self.where}")
        raise self._wrong(name, found, "an object")

    def tables(self, name: str) -> tuple[Keys, ...]:
        """All objects of one within it."""
        within = self.table(name)
        return tuple(within.table(one) for one in within.values)

    def _several(self, name: str, kind: type, right: str) -> tuple[Any, ...]:
        found = self.values.get(name)
        if found is None:
            return ()
        if isinstance(found, list) and all(type(one) is kind for one in found):
            return tuple(found)
        raise self._wrong(name, found, right)

    def _first(self, names: tuple[str, ...]) -> tuple[str, Any]:
        name = next((name for name in names if self.values.get(name) is not None), names[0])
        return name, self.values.get(name)

    def _wrong(self, name: str, found: object, right: str) -> ConfigError:
        said = repr(found)
        return ConfigError(
            f"{self.where} has {name}: {said[:_SHOWN]}{'…' if len(said) > _SHOWN else ''}; {right} would be right"
        )
