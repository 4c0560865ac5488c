"""What is in the wheel, by an interpreter that has nothing else of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest

from appliance import presets

ROOT = Path(__file__).parents[2]
READ = """
import json, sys
sys.path += sys.argv[1:]
from appliance import presets
from appliance.costs import huggingface
found = {name: (presets.load(name).layouts, huggingface.read(presets.described(name)).layers) for name in presets.names()}
json.dump({"at": presets.__file__, "found": found}, sys.stdout)
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``make wheel`` does, but for pip around it."""
    if not (ROOT / "static" / "vendor").is_dir():
        pytest.skip("static/vendor is not here: make setup fetches it, and without it no wheel is built")
    built, found = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(built)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(found)
    return found


def test_presets_resolve_by_name_from_an_installed_wheel(unpacked: Path, tmp_path: Path) -> None:
    """``-S`` leaves out all that is installed; of that, msgspec is lent to it."""
    (tmp_path / "msgspec").symlink_to(Path(msgspec.__file__).parent)
    command = [sys.executable, "-I", "-S", "-c", READ, str(unpacked), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    said = json.loads(done.stdout)
    assert Path(said["at"]).is_relative_to(unpacked)
    assert list(said["found"]) == presets.names()
    assert "gpt-oss-120b" in said["found"]
    for name, (layouts, layers) in said["found"].items():
        assert layouts == presets.load(name).layouts
        assert layers > 20


def test_it_has_what_pages_and_the_unit_need(unpacked: Path) -> None:
    vendored = "web/_assets/static/vendor/htmx-sse.min.js"
    for there in ("web/_assets/templates/page.html", "web/_assets/static/app.css", vendored, "appliance/_systemd"):
        assert (unpacked / there).exists(), there


def test_without_the_libraries_that_pages_load_none_is_built(tmp_path: Path) -> None:
    """As from a checkout in which nothing was set up."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "appliance/__init__.py", "requirements/wheel_hook.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "templates", tmp_path / "templates")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode
    [said] = done.stderr.splitlines()
    assert "static/vendor/htmx-sse.min.js" in said
    assert "run make setup" in said
    assert not list(tmp_path.glob("dist/*.whl"))
