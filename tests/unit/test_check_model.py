"""What ``pd-appliance check`` says of a model's files, and whether they fit."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest
from typer.testing import CliRunner

from appliance import cli, demo
from appliance.checks import machine, model, software, weights
from appliance.checks.line import Line, Standing
from appliance.cli import cast, check
from appliance.config import Config, EngineConfig, ModelConfig, load
from appliance.errors import ConfigError, NotNowError
from appliance.records import Card, Role
from appliance.supervisor.specs import EngineSpec, Model, resolve_model

GIB = 1 << 30
HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of a model that lacks nothing but weights."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def said(directory: Path, *arguments: str) -> Line:
    return model.files(Model(str(directory), "it", True), "", arguments)


def test_a_model_that_is_whole_is_said_to_be_with_its_size(directory: Path) -> None:
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (directory / name).write_bytes(WEIGHTS)
    (directory / "training_args.bin").write_bytes(bytes(1000))
    (directory / "consolidated.safetensors").write_bytes(WEIGHTS)
    assert said(directory) == Line(what="model", standing=Standing.OK, said=f"{directory}, 0.00 GB of weights")
    assert weights.taken(directory) == 2 * 4, "neither what is of training, nor the same once more"


def test_what_an_engine_takes_is_told_by_headers_and_32_bits_count_as_16(directory: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
        }
    ).encode()
    (directory / ONE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(14))
    assert weights.taken(directory) == 4 + 6
    assert said(directory).standing is Standing.OK
    (directory / ONE).unlink()
    (directory / "pytorch_model.bin").write_bytes(bytes(100))
    assert weights.taken(directory) == 50, "it may be of 32 bits"
    (directory / ONE).write_bytes(POINTER)
    assert weights.taken(directory) == len(POINTER) // 2


Break = Callable[[Path], object]
ONE = "model.safetensors"
BROKEN: dict[str, tuple[Break, str, str]] = {
    "none": (lambda at: None, "it has no weights", "download it again"),
    "of training": (lambda at: (at / "training_args.bin").write_bytes(b"x"), "it has no weights", "download it again"),
    "empty": (lambda at: (at / ONE).touch(), f"{ONE} is empty", "download it again"),
    "cut short": (lambda at: (at / ONE).write_bytes(WEIGHTS[:-1]), f"{ONE} is damaged or cut short (inc", "download"),
    "header cut": (lambda at: (at / ONE).write_bytes(WEIGHTS[:20]), f"{ONE} is damaged or cut short (inv", "download"),
    "pointer": (lambda at: (at / ONE).write_bytes(POINTER), f"{ONE} is a pointer of git-lfs", "git lfs pull"),
    "pointer.bin": (lambda at: (at / "m.bin").write_bytes(POINTER), "m.bin is a pointer of git-lfs", "git lfs pull"),
    "link": (lambda at: (at / ONE).symlink_to("/nowhere/x"), f"{ONE} is a link to /nowhere/x, which", "download"),
    "folder": (lambda at: (at / ONE).mkdir(), f"{ONE} is no file", "download"),
    "fifo": (lambda at: os.mkfifo(at / ONE), f"{ONE} is no file", "download"),
    "shard": (
        lambda at: (at / "model-00001-of-00003.safetensors").write_bytes(WEIGHTS),
        "model-00002-of-00003.safetensors is missing; model-00003-of-00003.safetensors is missing",
        "download",
    ),
    "many": (
        lambda at: (at / "model-00001-of-00009.safetensors").write_bytes(WEIGHTS),
        "model-00004-of-00009.safetensors is missing; and 5 more",
        "download",
    ),
    "index": (
        lambda at: [
            (at / ONE).write_bytes(WEIGHTS),
            (at / "model.safetensors.index.json").write_text('{"weight_map": {"a": "other.safetensors"}}'),
        ],
        "other.safetensors is missing",
        "download",
    ),
    "no index": (
        lambda at: [
            (at / ONE).write_bytes(WEIGHTS),
            (at / "model.safetensors.index.json").write_text('{"weight_map": [1, "a"]}'),
        ],
        "model.safetensors.index.json is no index of weights",
        "download",
    ),
    "index in latin-1": (
        lambda at: [
            (at / ONE).write_bytes(WEIGHTS),
            (at / "model.safetensors.index.json").write_bytes(b'{"weight_map": {"\xe9": "a"}}'),
        ],
        "model.safetensors.index.json is no index of weights",
        "download",
    ),
    "config in latin-1": (
        lambda at: [(at / ONE).write_bytes(WEIGHTS), (at / "config.json").write_bytes(b'{"model_type": "\xe9"}')],
        "its config.json is none that can be read",
        "download",
    ),
    "config": (
        lambda at: [(at / ONE).write_bytes(WEIGHTS), (at / "config.json").write_bytes(b"\xff")],
        "its config.json is none that can be read",
        "download",
    ),
    "no kind": (
        lambda at: [(at / ONE).write_bytes(WEIGHTS), (at / "config.json").write_text("{}")],
        "its config.json says neither model_type nor architectures",
        "download",
    ),
    "tokenizer": (
        lambda at: [(at / ONE).write_bytes(WEIGHTS), (at / "tokenizer.json").unlink()],
        "it has no tokenizer",
        "download",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_model_is_named_with_its_remedy(directory: Path, name: str) -> None:
    damage, expected, remedy = BROKEN[name]
    damage(directory)
    found = said(directory)
    assert found.standing is Standing.BAD
    assert expected in found.said
    assert remedy in (found.remedy or "")
    assert weights.taken(directory) >= 0


def test_what_the_owner_has_elsewhere_is_not_looked_for(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    found = said(directory, "--load-format=dummy", "--tokenizer", "/x")
    assert found.standing is Standing.OK
    assert "weights not looked at because of --load-format" in found.said


def test_a_directory_that_can_not_be_read_is_a_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(weights, "read", refuse)
    assert said(directory).said == f"{directory} can't be read (Permission denied)"


def test_of_what_is_on_the_hub_nothing_is_known_yet() -> None:
    assert model.files(Model("org/model", "it", False)).said.startswith(
        "org/model is a hub id: its files are on the hub, and"
    )
    preset = model.files(Model("/x/presets/it", "it", True, preset=True), "org/model")
    assert preset.said.startswith("it: its weights are org/model's on the hub, and whether")


# ---- whether they fit


def test_weights_count_and_where_they_alone_are_too_large_fewer_engines_are_no_remedy() -> None:
    found = machine.memory(8 * GIB, 40 * GIB, 2, 18 * GIB)
    assert found.said.endswith("2 engines take about 40.0 GiB, 18.0 GiB of it for the weights of each")
    assert "smaller model" in (found.remedy or "")
    assert "kv_cache_bytes" in (machine.memory(30 * GIB, 40 * GIB, 2, 18 * GIB).remedy or "")


def test_serve_refuses_what_the_weights_of_all_engines_are_too_large_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [50 * GIB], "data_offsets": [0, 100 * GIB]}}).encode()
    with (directory / ONE).open("wb") as sparse:
        sparse.write(struct.pack("<Q", len(header)) + header)
        sparse.truncate(8 + len(header) + 100 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    with pytest.raises(NotNowError, match="102400 MiB of it for the weights of each, and 65536 MiB are available"):
        cast._check_memory(Config(), Model(str(directory), "it", True), [engine("a")])
    assert cast.memory_bytes(Config(engine=EngineConfig(kv_cache_bytes=GIB)), [engine("a")] * 2, 3 * GIB) == 2 * (
        cast.ENGINE_MEMORY_BYTES + 4 * GIB
    )


def engine(name: str, *gpus: str) -> EngineSpec:
    size = max(1, len(gpus))
    return EngineSpec(
        name=name, role=Role.BOTH, cores=(), tensor_parallel=size, arguments=(), environment={}, gpus=gpus
    )


@pytest.mark.parametrize(
    ("engines", "short"),
    [
        ([engine("a", "GPU-0")], "100.0 GiB on GPU 0, which has 79.0 GiB free"),
        ([engine("a", "GPU-0", "GPU-1")], None),
        ([engine("a", "GPU-0", "GPU-1"), engine("b", "GPU-1", "GPU-0")], "100.0 GiB on GPU 0, which has 79.0"),
    ],
)
def test_files_that_are_larger_than_their_gpus_are_bad_whatever_the_configuration_says(
    engines: list[EngineSpec], short: str | None
) -> None:
    cards = [
        Card(index=at, uuid=f"GPU-{at}", name="H100", memory_bytes=80 * GIB, free_bytes=79 * GIB) for at in range(2)
    ]
    line = model.on_gpus(100 * GIB, engines, cards)
    assert (line is None) if short is None else (line is not None and short in line.said)


# ---- the whole command


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (["--model", "/nowhere"], "model"),
        (["--topology", "1x"], "engines"),
        (["--port", "99999"], "configuration"),
        (["--host", ""], "port"),
        (["--model", "/nowhere\udcff"], "model"),
    ],
)
def test_whatever_is_wrong_is_a_line_in_json_and_the_rest_is_looked_at(
    given: list[str], what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(software, "builds", lambda *_: "cpu")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    arguments = [
        "check",
        "--json",
        "--no-move",
        "--state-dir",
        str(tmp_path),
        *(() if "--port" in given else ("--port", "0")),
    ]
    ended = CliRunner().invoke(cli.app, [*arguments, *given])
    assert ended.exit_code == 1
    told = msgspec.json.decode(ended.stdout)
    assert not told["ok"]
    assert [line["what"] for line in told["lines"] if line["standing"] == "bad" and line["what"] != "vLLM"] == [what]
    assert all(line["remedy"] for line in told["lines"] if line["standing"] in ("bad", "warn"))
    if what != "configuration":
        assert {"port", "file limit", "state directory", "KV"} <= {line["what"] for line in told["lines"]}


def test_a_preset_that_is_mistyped_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check._files(Model("gpt-oss-12b", "gpt-oss-12b", False), Config())
    assert (found.standing, found.remedy) == (Standing.WARN, "--model gpt-oss-120b, if that preset is meant")
    named = "openai/gpt-oss-120b"
    assert check._files(Model(named, named, False), Config()).standing is Standing.SKIPPED


def test_a_kind_of_engines_that_serve_refuses_is_bad(tmp_path: Path) -> None:
    loaded = load(None, {"PD_APPLIANCE_ENGINE_KIND": "vlm"}, {"server.state_dir": ("a test", str(tmp_path))})
    engines = next(line for line in check.lines(loaded, move=False) if line.what == "engines")
    assert engines.said == "engine.kind 'vlm' is not one: write auto, vllm or sim"


def test_what_nobody_has_foreseen_is_a_line_and_no_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise TypeError("a list")

    monkeypatch.setattr(check, "hardware", fail)
    loaded = load(None, {}, {"server.state_dir": ("a test", str(tmp_path)), "server.port": ("a test", 0)})
    found = {line.what: line for line in check.lines(loaded, move=False)}
    assert (found["engines"].standing, found["engines"].said) == (Standing.BAD, "TypeError: a list")
    assert {"model", "port", "state directory"} <= set(found)


def test_a_model_whose_directory_may_not_be_looked_into_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        resolve_model(Config(model=ModelConfig(path=str(directory))))


@pytest.mark.skipif(not (demo.MODEL_DIR / ONE).is_file(), reason="the demo model is not made here")
def test_nothing_is_wrong_with_the_demo_model() -> None:
    assert said(demo.MODEL_DIR).standing is Standing.OK
