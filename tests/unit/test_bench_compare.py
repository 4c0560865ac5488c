"""The bench of two trees: what it calls worse, and where it gets the other one from. Nothing is measured."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from pathlib import Path

import pytest

from bench.compare import run, trees
from bench.compare.report import Report, Round, _chance, markdown, ratios, worse

CPU, RATE = "CPU of the supervisor per streamed token, µs", "requests/s, 4 at once"


def report(*pairs: tuple[float, float], name: str = CPU) -> Report:
    """``pairs``: this tree's figure and the other's, by round."""
    rounds = tuple(Round(this={name: this}, that={name: that}) for this, that in pairs)
    return Report(this="aaaaaaa with changes", that="bbbbbbb", machine={"cores": "2"}, rounds=rounds)


@pytest.mark.parametrize(
    ("pairs", "name", "expected"),
    [
        ([(55, 50), (57, 50), (51, 50), (55, 49), (56, 50)], CPU, "**worse**"),
        ([(55, 50), (57, 50), (51, 49), (55, 52), (56, 50)], CPU, "**worse**"),  # one is as good as one of the other's
        ([(55, 50), (57, 50), (49, 50), (55, 51), (56, 50)], CPU, ""),  # one is as good as five of them
        ([(55, 50), (57, 50), (49, 50), (55, 51), (56, 50)] * 3, CPU, "**worse**"),  # which is less among fifteen
        ([(51, 50), (52, 50), (51, 50), (51, 50), (52, 50)], CPU, ""),  # too little
        ([(55, 50)] * 4, CPU, ""),  # too few
        ([(40, 50), (45, 50), (44, 50), (40, 50), (44, 50)], CPU, "better"),
        ([(9, 10), (9, 10), (8, 10), (9, 10), (9, 10)], RATE, "**worse**"),
        ([(12, 10), (11, 10), (12, 10), (11, 10), (12, 10)], RATE, "better"),
        ([(1, 0)] * 5, CPU, ""),  # nothing to take a ratio of
    ],
)
def test_what_is_called_worse_is_so_beyond_chance(pairs: list[tuple[float, float]], name: str, expected: str) -> None:
    found = report(*pairs, name=name)
    assert worse(found) == ([name] if expected == "**worse**" else [])
    [row] = [line for line in markdown(found).splitlines() if line.startswith(f"| {name}")]
    assert row.split("|")[-2].strip() == expected


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_chance_is_what_counting_all_orders_says(rounds: int) -> None:
    numbers = range(2 * rounds)
    splits = [(high, [n for n in numbers if n not in high]) for high in itertools.combinations(numbers, rounds)]
    crossed = [sum(one < other for one in high for other in low) for high, low in splits]
    for (high, low), count in zip(splits, crossed, strict=True):
        assert _chance(high, low) == sum(other <= count for other in crossed) / len(splits)


def test_ratios_are_taken_round_by_round_of_what_both_have() -> None:
    both = Round(this={CPU: 60.0, RATE: 9.0}, that={CPU: 50.0})
    alone = Round(this={RATE: 9.0}, that={CPU: 50.0})
    found = Report(this="a", that="b", machine={}, rounds=(both, alone))
    assert ratios(found, CPU) == [1.2]
    assert found.names == [CPU]
    assert RATE not in markdown(found)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With two commits, and what set-up has brought."""
    place = tmp_path / "repository"
    place.mkdir()

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=place, check=True, capture_output=True)

    git("init", "--quiet")
    (place / ".gitignore").write_text("static/vendor\n")
    for content in ("old", "new"):
        (place / "file").write_text(content)
        git("add", ".")
        git("commit", "--quiet", "-m", content)
    (place / "static/vendor").mkdir(parents=True)
    (place / "static/vendor/a.js").write_text("//")
    monkeypatch.setattr(trees, "ROOT", place)
    return place


async def test_a_commit_gets_a_work_tree_that_goes_again(repository: Path, tmp_path: Path) -> None:
    async with trees.earlier("HEAD~1", tmp_path) as tree:
        assert (tree.path / "file").read_text() == "old"
        assert (tree.path / "static/vendor/a.js").is_file()
        assert (await trees.here()).path == repository
    assert not tree.path.exists()
    assert len((await trees._git("worktree", "list")).splitlines()) == 1


async def test_changes_that_are_not_committed_are_told_of(repository: Path) -> None:
    clean = (await trees.here()).name
    (repository / "file").write_text("newer")
    assert (await trees.here()).name == f"{clean} with changes"


async def test_it_goes_too_when_measuring_fails(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with trees.earlier("HEAD", tmp_path) as tree:
            raise asyncio.CancelledError
    assert not tree.path.exists()


@pytest.mark.parametrize("commit", ["no-such-commit", "--help", "HEAD:file"])
def test_what_is_no_commit_is_told_in_gits_words(
    commit: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["--rounds", "1", "--", commit]) == 2
    assert "bench.compare: " in capsys.readouterr().err


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_a_number_of_rounds_is_one(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["HEAD", f"--rounds={rounds}"])
    assert "is no number of rounds" in capsys.readouterr().err
