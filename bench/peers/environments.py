"""Peers' packages, each peer's in an environment of its own under ``.peers``.

What a peer has in common with this checkout (vLLM, torch) it finds in the checkout's own environment, by a ``.pth`` file: the same
versions, without another minute and gigabyte. A peer whose packages don't need these sees nothing of it. A stamp, named after what the
environment is made of, is its last file: where it is, there is nothing to do; where it isn't, the environment is made anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench.servers import ROOT

CACHE: Final = ROOT / ".peers"
DELAY_VARIABLE: Final = "BENCH_NIXL_THREAD_DELAY_US"
_INSTALL_S: Final = 900.0
_NIXL_DELAY: Final = "agent_config.pthrDelay = 0"
_NIXL_DELAY_GIVEN: Final = f'agent_config.pthrDelay = int(__import__("os").environ.get("{DELAY_VARIABLE}", "0"))'
Say = Callable[[str], None]


class InstallError(Exception):
    """A peer can't be installed; the message has why."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How one environment is made."""

    name: str
    shares: bool  # sees the packages of this checkout's environment
    edits: tuple[tuple[str, str, str], ...] = ()  # file, what stands there once, what is to stand there

    @property
    def requirements(self) -> Path:
        return ROOT / "requirements" / f"peers-{self.name}.txt"


# NIXL's Python layer fixes the pause of its progress thread at 0, with which the thread takes a core. Without the variable it still does.
RECIPES: Final = {
    one.name: one
    for one in (
        Recipe(name="nixl", shares=True, edits=(("nixl_cu12/_api.py", _NIXL_DELAY, _NIXL_DELAY_GIVEN),)),
        Recipe(name="dynamo", shares=False),
    )
}


class Environment:
    """Where one peer's Python is."""

    def __init__(self, recipe: Recipe, cache: Path = CACHE) -> None:
        self.recipe = recipe
        self.directory = cache / recipe.name
        self.python = self.directory / "bin" / "python"

    @property
    def packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.directory / "lib" / version / "site-packages"

    @property
    def stamp(self) -> Path:
        return self.directory / f"made-{digest(self.recipe, self.recipe.requirements.read_text())}"

    @property
    def made(self) -> bool:
        return self.stamp.exists()


def digest(recipe: Recipe, requirements: str, python: str = f"{sys.version} {sys.prefix}") -> str:
    """Changes with whatever the environment is made of; pure."""
    return hashlib.sha256(repr((recipe, requirements, python)).encode()).hexdigest()[:16]


def steps(environment: Environment, python: str = sys.executable) -> list[list[str]]:
    """Commands that make it, in order; pure. Requirements are locked, so that pip looks for nothing besides them."""
    pip = [python, "-m", "pip", "--python", str(environment.python)]
    quiet = ["--disable-pip-version-check", "--no-input", "--quiet", "--progress-bar", "off"]
    return [
        [python, "-m", "venv", "--clear", "--without-pip", str(environment.directory)],
        [*pip, "install", *quiet, "--no-deps", "-r", str(environment.recipe.requirements)],
    ]


async def install(environment: Environment, say: Say) -> None:
    """Make it, unless it is there. Raises ``InstallError``."""
    if environment.made:
        return
    name = environment.recipe.name
    say(f"installing {environment.recipe.requirements.relative_to(ROOT)} into {environment.directory.name}")
    for command in steps(environment):
        await _run(name, command)
    if environment.recipe.shares:
        (environment.packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for file, old, new in environment.recipe.edits:
        _edit(environment.packages / file, old, new)
    environment.stamp.touch()


def edited(text: str, old: str, new: str) -> str:
    """Raises ``ValueError`` unless ``old`` stands there exactly once: another version of a peer is not to be edited blindly."""
    if text.count(old) != 1:
        raise ValueError(f"{old!r} stands there {text.count(old)} times, not once")
    return text.replace(old, new)


def locked(text: str) -> dict[str, str]:
    """Versions by package, of a requirements file."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {name: version for name, _, version in (line.partition("==") for line in lines if "==" in line)}


def _edit(path: Path, old: str, new: str) -> None:
    try:
        path.write_text(edited(path.read_text(), old, new))
    except (OSError, ValueError) as error:
        raise InstallError(f"{path.name} of {path.parent.name} can't be changed as it must be: {error}") from error


async def _run(name: str, command: Sequence[str]) -> None:
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(*command, stdout=said, stderr=said)
        try:
            async with asyncio.timeout(_INSTALL_S):
                await process.wait()
        except TimeoutError as error:
            raise InstallError(f"{name}: installing took longer than {_INSTALL_S:.0f} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            said.seek(0)
            lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
            raise InstallError(
                f"{name}: {' '.join(command[1:4])} ended with {process.returncode}: {' / '.join(lines[-3:])}"
            )
