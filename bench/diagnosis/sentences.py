"""Whether a reader of the sentence alone would do the right thing.

    python -m bench.diagnosis.sentences write DIR/diagnosis.json --seed 1 --out SHEET
    python -m bench.diagnosis.sentences score SHEET ANSWERS

``write`` picks cases that cost somebody something, evenly over what was done, right or wrong, and puts what the page said of each (without
the cause's name and what to do) into SHEET/sentences.md, with the list of all remedies; SHEET/key.json has the answers. ``score`` reads a
line for each sentence: its number, and that of the remedy.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench.diagnosis.report import Report
from bench.diagnosis.score import Scored, wilson

REMEDIES: Final[dict[str, tuple[str, ...]]] = {
    "An engine has failed. Let it be started again by itself, and find out from its log why it failed.": (
        "engine_hung",
        "engine_crashed",
    ),
    "Nothing has failed. Wait until the engine that is being started is ready.": ("engine_starting",),
    "Take work off one engine, and see to its GPU: cooling, power, memory, somebody else on it.": (
        "prefill_straggler_gpu",
        "decode_straggler_gpu",
    ),
    "Take work off one engine, and give its processes CPU cores of their own, or a higher CPU quota.": (
        "prefill_straggler_cpu",
        "decode_straggler_cpu",
    ),
    "Relieve the API process of an engine: several tokens in one piece, token ids instead of text, a core of its own.": (
        "frontend_bound",
    ),
    "Mend the link between engines that KV is copied over; meanwhile copy nothing over it.": ("handoff_link_slow",),
    "See to the engine that does not fetch the KV that is kept for it, or shorten the leases.": ("prefill_kv_pinned",),
    "Give decoding more memory for KV: another decode engine, fp8 KV.": ("decode_kv_full",),
    "Let decode engines run more requests at once (--max-num-seqs).": ("handoff_decode_admission",),
    "Set the routing weights of engines of one role equal again.": ("routing_skew",),
    "See to the prefix cache: keep conversations where their beginning is, and find out what emptied it.": (
        "cache_miss_storm",
    ),
    "Let prefill steps be larger (--max-num-batched-tokens).": ("prefill_budget_small",),
    "Let short prompts pass very long ones (--long-prefill-token-threshold), or give these an engine of their own.": (
        "long_prompt_blocking",
    ),
    "Do not split requests between engines: let each of them do both.": ("disaggregation_not_worth_it",),
    "Prefill with more engines (give another one that role), or take fewer prompts.": ("prefill_saturated",),
    "Decode with more engines (give another one that role), or let fewer requests run at once.": ("decode_saturated",),
}
"""What to do, and for which causes. ``pool_imbalance`` comes with one of those that have too much to do."""
_SENTENCES: Final = 20


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, and the numbers of the remedies that are right, by a sentence's number."""

    done: dict[int, str]
    right: dict[int, tuple[int, ...]]


def pick(rows: Sequence[Scored], seed: int, count: int = _SENTENCES) -> list[Scored]:
    """Of those of which something was said: one of each cause in turn, by chance."""
    chance = random.Random(seed)
    causes: dict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        if row.impactful and row.sentence and row.cause != "ok":
            causes[row.expected].append(row)
    for found in causes.values():
        chance.shuffle(found)
    order = sorted(causes)
    chance.shuffle(order)
    turns = [causes[cause][turn] for turn in range(count) for cause in order if turn < len(causes[cause])]
    picked = turns[:count]
    chance.shuffle(picked)
    return picked


def sheet(picked: Sequence[Scored], seed: int) -> tuple[str, Key]:
    """What a reader is given, and what is right."""
    remedies = list(REMEDIES)
    random.Random(f"remedies {seed}").shuffle(remedies)
    lines = [
        "# What would you do?",
        "",
        "You look after a node that serves a language model. Engines that prefill compute prompts and hand their KV over to engines",
        "that decode; some do both. For each message, choose the one remedy that you would try first.",
        "",
        "## Remedies",
        "",
        *(f"{number}. {remedy}" for number, remedy in enumerate(remedies, 1)),
        "",
        "## Messages",
        "",
    ]
    for number, row in enumerate(picked, 1):
        lines += [f"### {number}", "", row.sentence, "", *(f"- {one}" for one in row.evidence), ""]
    right = {
        number: tuple(at for at, remedy in enumerate(remedies, 1) if set(REMEDIES[remedy]) & set(row.causes))
        for number, row in enumerate(picked, 1)
    }
    done = {
        number: f"{row.name} ({row.expected}) on {row.node}, seed {row.seed}" for number, row in enumerate(picked, 1)
    }
    return "\n".join(lines), Key(done=done, right=right)


def answers(text: str) -> dict[int, int]:
    """By a sentence's number: ``3: 7``, one a line. Raises ``ValueError`` for a line that is none."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        numbers = re.fullmatch(r"(\d+)\s*[:.),]?\s+(\d+)\.?", line)
        if numbers is None:
            raise ValueError(f"{line!r} is no answer: the sentence's number, then the remedy's")
        found[int(numbers[1])] = int(numbers[2])
    return found


def marked(key: Key, given: Mapping[int, int]) -> str:
    """How many are right, and which are not. What is not answered is not right."""
    wrong = [number for number, right in key.right.items() if given.get(number) not in right]
    of = len(key.right)
    low, high = wilson(of - len(wrong), of)
    lines = [f"{of - len(wrong)} of {of} right (95 % interval {low:.0%}–{high:.0%})"]
    lines += [
        f"- {number}: said {given.get(number, 'nothing')}, right {' or '.join(map(str, key.right[number]))}: {key.done[number]}"
        for number in wrong
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="bench.diagnosis.sentences", description="Sentences for readers.")
    doing = parser.add_subparsers(dest="doing", required=True)
    writes = doing.add_parser("write")
    writes.add_argument("report", type=Path)
    writes.add_argument("--seed", type=int, default=1)
    writes.add_argument("--out", type=Path, required=True)
    scores = doing.add_parser("score")
    scores.add_argument("sheet", type=Path)
    scores.add_argument("answers", type=Path)
    options = parser.parse_args()
    if options.doing == "write":
        report = msgspec.json.decode(options.report.read_bytes(), type=Report)
        text, key = sheet(pick(report.scored, options.seed), options.seed)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "sentences.md").write_text(text)
        (options.out / "key.json").write_bytes(msgspec.json.encode(key))
    else:
        key = msgspec.json.decode((options.sheet / "key.json").read_bytes(), type=Key)
        sys.stdout.write(marked(key, answers(options.answers.read_text())))


if __name__ == "__main__":
    main()
