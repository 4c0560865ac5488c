"""Command lines and environments of engines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from appliance.config import Config, EngineConfig, ModelConfig, RoleArgs
from appliance.errors import ConfigError
from appliance.records import Role
from appliance.supervisor.runtime import Runtime, parent_directory
from appliance.supervisor.specs import (
    EngineSpec,
    arguments,
    command,
    environment,
    resolve_model,
    seated,
    share,
    shown,
    specs,
)
from appliance.supervisor.topology import parse


def config(**engine: object) -> Config:
    return Config(engine=EngineConfig(**engine))  # type: ignore[arg-type]


def test_a_command_line_names_its_life_and_hands_vllm_the_rest(short: Path) -> None:
    made = config(args=("--seed", "1"), prefill=RoleArgs(args=("--max-num-batched-tokens", "99")))
    first, second = specs(made, parse("1p1d"), resolve_model(made), [0, 1])
    runtime = Runtime(short)
    line = command(first, arguments(first, runtime, made, epoch=4, parent=77))
    ours, vllm = line[: line.index("--")], line[line.index("--") + 1 :]
    assert ours[1:3] == ["-m", "appliance.engine.main"]
    assert ours[ours.index("--epoch") + 1] == "4"
    assert ours[ours.index("--parent") + 1] == "77"
    assert ours[ours.index("--cores") + 1] == "0"
    assert vllm[-4:] == ["--seed", "1", "--max-num-batched-tokens", "99"], (
        "the owner's come last, the role's last of all"
    )
    assert second.arguments[-2:] == ("--seed", "1")
    transfer = json.loads(vllm[vllm.index("--kv-transfer-config") + 1])
    assert transfer["kv_role"] == "kv_both"
    assert transfer["kv_connector_extra_config"]["epoch"] == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--tensor-parallel-size", "2"), "topology"),
        (("--tensor_parallel_size=2",), "topology"),
        (("-tp", "2"), "topology"),
        (("-pp", "2"), "pipeline stages are not supported"),
        (("--decode-context-parallel-size=2",), "share out a request's tokens are not supported"),
        (("--seed", "1", "--port", "8001"), "the appliance sets it itself"),
        (("--served-model-name=x",), r"\[model\]"),
        (("--kv-transfer-config.kv_role", "kv_producer"), "kv-transfer-config is not to be given"),
        (("--kv_transfer_config.kv_connector_extra_config.engine=e9",), "kv-transfer-config is not to be given"),
        (("--kv-transf", "{}"), "kv-transfer-config is not to be given"),
        (("--config", "more.yaml"), r"write it into \[engine\] args"),
        (("--kv-offloading-size", "4"), "no KV would be handed over"),
        (("--device-ids=3",), "each engine gets GPUs of its own"),
        (("--kv-cache-memory-bytes", "1"), "kv_cache_bytes"),
    ],
)
@pytest.mark.parametrize("role", [{}, {"prefill"}, {"decode"}], ids=["engine", "prefill", "decode"])
def test_arguments_that_are_not_to_be_given(arguments: tuple[str, ...], says: str, role: set[str]) -> None:
    made = config(**({name: RoleArgs(args=arguments) for name in role} or {"args": arguments}))
    with pytest.raises(ConfigError, match=rf"engine\.{''.join(f'{name}.' for name in role)}args: -.*{says}"):
        specs(made, parse("1p1d"), resolve_model(made), [0, 1])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-model-len", "4096"),
        ("--seed", "-1"),
        ("--generation-config", "/models/--port.x=1"),
        ("--compilation-config.level", "0"),
        ("--override-generation-config", '{"a": "--model"}'),
        ("--no-enable-sleep-mode",),
        ("--model-impl=auto",),
        ("--gpu-memory-utilization", "0.5"),
    ],
)
def test_all_others_reach_vllm_as_they_are(arguments: tuple[str, ...]) -> None:
    made = config(args=arguments)
    [engine] = specs(made, parse("1b"), resolve_model(made), [0])
    assert engine.arguments[-len(arguments) :] == arguments


def test_tensor_parallel_engines_on_the_cpu() -> None:
    made = config(kv_cache_bytes=64 << 20, args=("--seed", "1"))
    one, two = specs(made, parse("1p1d@tp1:tp2"), resolve_model(made), [0, 1, 2, 3, 4, 5])
    assert (one.tensor_parallel, one.cores, one.environment["OMP_NUM_THREADS"]) == (1, (0, 1), "2")
    assert (two.tensor_parallel, two.cores, two.environment["OMP_NUM_THREADS"]) == (2, (2, 3, 4, 5), "2")
    text = " ".join(one.arguments)
    assert "--distributed-executor-backend uni" in text and "--tensor-parallel-size" not in text
    assert f"--kv-cache-memory-bytes {64 << 20}" in text
    text = " ".join(two.arguments)
    assert "--distributed-executor-backend mp --tensor-parallel-size 2" in text
    assert f"--kv-cache-memory-bytes {32 << 20}" in text, "of each rank"


@pytest.mark.parametrize(
    ("layout", "cores", "shares"),
    [
        ("1p1d", [0, 1], [(0,), (1,)]),
        ("2b", [0, 1, 2, 3, 4], [(0, 1), (2, 3, 4)]),
        ("1p1d@tp2", [0, 1, 2, 3], [(0, 1), (2, 3)]),
        ("1p1d@tp2", [0, 1], [(0, 1), (0, 1)]),
        ("1p1d@tp1:tp2", [0, 1], [(0,), (0, 1)]),
        ("1b@tp2", [7], [(7,)]),
    ],
)
def test_each_rank_has_an_equal_share_of_the_cores(
    layout: str, cores: list[int], shares: list[tuple[int, ...]]
) -> None:
    assert seated(parse(layout).places, cores) == shares


def test_engines_leave_nothing_outside_the_runtime_directory(short: Path) -> None:
    made = config(env={"MINE": "1"})
    spec = specs(made, parse("1b"), resolve_model(made), [0])[0]
    runtime = Runtime(short)
    found = environment(spec, runtime.temporary("e0", 3), {"PATH": "/bin", "TMPDIR": "/elsewhere"})
    assert found["TMPDIR"] == str(runtime.directory / "e0-3")
    assert (found["PATH"], found["MINE"], found["HF_HUB_OFFLINE"]) == ("/bin", "1", "1")


@pytest.mark.parametrize(
    ("cores", "count", "shares"),
    [
        ([0, 1], 2, [(0,), (1,)]),
        ([0, 1, 2, 3, 4], 2, [(0, 1), (2, 3, 4)]),
        ([3], 2, [(3,), (3,)]),
        ([0, 1], 3, [(0,), (1,), (0,)]),
    ],
)
def test_cores_are_shared_out(cores: list[int], count: int, shares: list[tuple[int, ...]]) -> None:
    assert [share(cores, number, count) for number in range(count)] == shares


def test_models(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()

    def resolve(path: str) -> object:
        return resolve_model(Config(model=ModelConfig(path=path)))

    assert resolve_model(Config()).shipped
    assert resolve_model(Config(model=ModelConfig(path=str(tmp_path / "real")))).name == "real"
    assert not resolve_model(Config(model=ModelConfig(path="org/model"))).local
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve(str(tmp_path / "empty"))
    for path in (str(tmp_path / "nothing"), "./nothing", "a/b/c", ""):
        with pytest.raises(ConfigError, match="no such directory"):
            resolve(path)


def test_where_runtime_directories_are_made() -> None:
    assert parent_directory({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/1"}) == Path("/run/a")
    assert parent_directory({"XDG_RUNTIME_DIR": "/run/user/1"}) == Path("/run/user/1")


def test_a_runtime_directory_is_private_and_goes_without_harm_to_its_neighbours(short: Path) -> None:
    (short / "precious").write_text("")
    short.chmod(0o755)
    runtime, second = Runtime(short), Runtime(short)
    assert runtime.directory.stat().st_mode & 0o777 == 0o700
    assert runtime.directory.is_dir(), "the second one left it alone"
    runtime.remove()
    runtime.remove()
    assert {path.name for path in short.iterdir()} == {"precious", second.directory.name}
    assert short.stat().st_mode & 0o777 == 0o755
    second.remove()


def test_a_life_of_an_engine_leaves_nothing_and_the_others_alone(short: Path) -> None:
    runtime = Runtime(short)
    for epoch in (1, 12):
        runtime.prepare("e0", epoch)
        (runtime.temporary("e0", epoch) / "of vllm").write_text("")
        (runtime.directory / f"e0-{epoch}-0.kv").write_text("")
        (runtime.directory / f"e0-{epoch}.leases").write_text("")
    runtime.forget("e0", 1)
    runtime.forget("e0", 1)
    assert {path.name for path in runtime.directory.iterdir()} == {"lock", "e0-12", "e0-12-0.kv", "e0-12.leases"}
    runtime.prepare("e0", 12)
    assert not list(runtime.temporary("e0", 12).iterdir())
    runtime.remove()


def test_what_a_dead_supervisor_left_is_removed(short: Path) -> None:
    left = Runtime(short)
    os.close(left._lock)  # as the kernel does
    (short / "pd-appliance-of-somebody").mkdir()  # not made by us: no lock in it
    runtime = Runtime(short)
    assert not left.directory.exists()
    assert (short / "pd-appliance-of-somebody").is_dir()
    runtime.remove()


def test_a_path_too_long_for_the_sockets_is_refused_and_nothing_stays(short: Path) -> None:
    parent = short / ("x" * (107 - len(f"{short}//pd-appliance-12345678/e63-9999/") - 36))
    Runtime(parent).remove()
    longer = Path(f"{parent}x")
    with pytest.raises(ConfigError, match="too long"):
        Runtime(longer)
    assert not list(longer.iterdir())


def test_a_runtime_directory_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="RUNTIME_DIRECTORY"):
        Runtime(tmp_path / "file")


def test_a_command_line_is_shown_without_secrets() -> None:
    arguments = ("--model", "a b", "--api-key", "sk-1", "sk-2", "--max-num-batched-tokens", "8192", "--hf-token=hf_1")
    arguments += (
        "--tokenizer",
        "t",
        "--additional-config",
        '{"hf_token": "s\\"e", "n": 1}',
        "--x",
        "http://me:pw@host/",
    )
    spec = EngineSpec(
        name="e0", role=Role.PREFILL, cores=(), tensor_parallel=1, arguments=arguments, environment={"HF_TOKEN": "hf_2"}
    )
    found = shown(spec)
    assert found[1:4] == ["-m", "appliance.engine.main", "--"]
    assert found[4:12] == ["--model", "a b", "--api-key", "…", "…", "--max-num-batched-tokens", "8192", "--hf-token=…"]
    assert found[12:] == [
        "--tokenizer",
        "t",
        "--additional-config",
        '{"hf_token": "…", "n": 1}',
        "--x",
        "http://…@host/",
    ]
