"""The text that the demo model is trained on: questions in many phrasings, and answers that depend on their topic alone."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

Message = dict[str, str]

_TEXT: Final[dict[str, Any]] = tomllib.loads((Path(__file__).parent / "corpus.toml").read_text(encoding="utf-8"))
_NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ASK: Final = (
    "What is {0}?",
    "what is {0}",
    "Explain {0}.",
    "Can you explain {0}?",
    "Please explain {0} to me.",
    "Tell me about {0}.",
    "tell me something about {0}",
    "What do you know about {0}?",
    "Describe {0} in a few words.",
    "What does {0} mean?",
    "I want to know what {0} is.",
    "{0}?",
)
_STORY: Final = (
    "Tell me a story about a {0}.",
    "tell me a short story about a {0}",
    "Write a story about a {0}.",
    "I would like to hear a story about a {0}.",
    "Please tell a tale of a {0}.",
)
_ADD: Final = (
    "What is {0} plus {1}?",
    "What is {0} + {1}?",
    "{0} + {1} =",
    "Add {0} and {1}.",
    "How much is {0} plus {1}?",
)
_SYSTEM: Final = ("You are a helpful assistant.", "Be brief.", "You are a friendly guide.", "Answer in plain words.")
_UNKNOWN: Final = "I am only a small demo model, and I do not know that. Ask me about prefill, decode or the KV cache, or ask for a story."
_STRANGE: Final = (
    "Who won the match?",
    "What is the capital of France?",
    "Write some code for me.",
    "How tall is the tower?",
    "What will the weather be tomorrow?",
    "Give me a recipe for soup.",
    "Translate this sentence.",
    "What is the meaning of life?",
    "Solve this equation.",
    "Recommend a film.",
)


def story(hero: str) -> str:
    """The one story about this hero."""
    parts = _TEXT["stories"]
    number = parts["heroes"].index(hero)
    chosen = {kind: parts[kind][number % len(parts[kind])] for kind in parts if kind != "heroes"}
    name = chosen["names"]
    return (
        f"Once upon a time there was a {hero} called {name}, who lived in a {chosen['places']}. "
        f"{name} had a dream: to find {chosen['wants']}. One morning {name} packed some bread and set out. "
        f"But on the way {chosen['troubles']}, and {name} did not know what to do. "
        f"Then {chosen['helpers']} came along and said: do not worry, we will do it together. "
        f"So they went on, step by step, and in the evening they found {chosen['wants']}. "
        f"{name} laughed and danced, and all who lived in the {chosen['places']} came to see it. "
        f"From that day on {name} knew {chosen['lessons']}. And if they have not moved away, they live there still."
    )


def questions() -> list[tuple[list[str], str]]:
    """(phrasings, answer) of all that the model is asked."""
    found = [
        ([ask.format(name) for ask in _ASK], answer)
        for kind in ("terms", "things")
        for name, answer in _TEXT[kind].items()
    ]
    found += [(_spoken(said), answer) for said, answer in _TEXT["talk"].items()]
    found += [([ask.format(hero) for ask in _STORY], story(hero)) for hero in _TEXT["stories"]["heroes"]]
    found += [(_sums(a, b), f"{a} plus {b} is {a + b}.") for a in range(11) for b in range(11)]
    found.append((list(_STRANGE), _UNKNOWN))
    return found


def _spoken(said: str) -> list[str]:
    plain = said.rstrip("?!.")
    return [said, plain, plain + ".", plain + "!", plain.lower(), plain.lower() + "?", plain + "?"]


def _sums(a: int, b: int) -> list[str]:
    words = [ask.format(_NUMBERS[a], _NUMBERS[b]) for ask in _ADD if "+" not in ask]
    return [ask.format(a, b) for ask in _ADD] + words


def conversations(rng: random.Random) -> Iterator[list[Message]]:
    """Endless chats of one to three turns, half of them with a system message. The first are the same for the same seed."""
    asked = questions()
    weights = [1.0 if len(answer) > 30 else 0.25 for _, answer in asked]
    while True:
        messages = [{"role": "system", "content": rng.choice(_SYSTEM)}] if rng.random() < 0.5 else []
        for phrasings, answer in rng.choices(asked, weights, k=rng.choice((1, 1, 2, 3))):
            messages.append({"role": "user", "content": rng.choice(phrasings)})
            messages.append({"role": "assistant", "content": answer})
        yield messages


def passages() -> list[str]:
    """Plain text, for completions without a chat."""
    answers = [answer for _, answer in questions() if len(answer) > 60]
    return answers + [story(hero) for hero in _TEXT["stories"]["heroes"]]
