"""Sources to measure: those that are here, and those of an earlier commit."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.servers import ROOT

_VENDOR: Final = "static/vendor"  # what set-up has brought; no commit has it


class NoCommitError(Exception):
    """It is not there, or this is no checkout; git's own words."""


@dataclass(frozen=True)
class Tree:
    name: str  # in the report
    path: Path


async def here() -> Tree:
    """With whatever is not committed yet. Raises ``NoCommitError``."""
    changed = " with changes" if await _git("status", "--porcelain", "--untracked-files=no") else ""
    return Tree(f"{await _git('rev-parse', '--short', 'HEAD')}{changed}", ROOT)


@asynccontextmanager
async def earlier(commit: str, directory: Path) -> AsyncIterator[Tree]:
    """A work tree of that commit below ``directory``, until the end of the block. Raises ``NoCommitError``."""
    name = await _git("rev-parse", "--short", "--verify", "--end-of-options", f"{commit}^{{commit}}")
    path = directory / "earlier"
    await _git("worktree", "add", "--quiet", "--detach", str(path), name)
    try:
        if (ROOT / _VENDOR).is_dir():
            await asyncio.to_thread(shutil.copytree, ROOT / _VENDOR, path / _VENDOR, dirs_exist_ok=True)
        yield Tree(name, path)
    finally:
        await _git("worktree", "remove", "--force", str(path))


async def _git(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "git", *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, said = await process.communicate()
    if process.returncode != 0:
        raise NoCommitError(said.decode(errors="replace").strip())
    return output.decode().strip()
