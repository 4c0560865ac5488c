"""What an owner tells vLLM himself reaches the plan."""

from __future__ import annotations

import pytest

from appliance.cli.arguments import Told, told
from appliance.config import Config, EngineConfig, RoleArgs
from appliance.costs.formats import Format
from appliance.errors import ConfigError
from appliance.planner.node import Settings
from appliance.planner.wanted import SETTINGS
from appliance.records import Role


def of(*arguments: str, prefill: tuple[str, ...] = (), decode: tuple[str, ...] = ()) -> Told:
    roles = {"prefill": RoleArgs(args=prefill), "decode": RoleArgs(args=decode)}
    return told(Config(engine=EngineConfig(args=arguments, **roles)))


def test_nothing_said_is_nothing_told() -> None:
    expected = Told(context=None, open_context=False, share=None, kv=None, settings=dict(SETTINGS), firm=frozenset())
    assert of("--enforce-eager", "--seed", "1") == expected


@pytest.mark.parametrize(
    ("arguments", "context"),
    [
        (("--max-model-len", "32k"), 32_000),
        (("--max-model-len=32K",), 32_768),
        (("--max_model_len", "25.6k"), 25_600),
        (("--max-model", "4096"), 4096),
        (("--max-model-len", "4096", "--max-model-len", "8192"), 8192),
        (("--max-model-len", "auto"), None),
        (("--max-model-len=-1",), None),
    ],
)
def test_a_context_is_read_as_vllm_reads_it(arguments: tuple[str, ...], context: int | None) -> None:
    found = of(*arguments)
    assert found.context == context
    assert found.open_context is (context is None)


def test_memory_and_steps_are_read() -> None:
    found = of(
        *("--gpu-memory-utilization", "0.3", "--kv-cache-dtype=fp8_e4m3", "--max-num-seqs", "64"),
        prefill=("--max-num-batched-tokens", "16384"),
    )
    assert (found.share, found.kv) == (0.3, Format.FP8)
    assert found.settings[Role.PREFILL] == Settings(token_budget=16_384, places=64)
    assert found.settings[Role.DECODE] == Settings(token_budget=SETTINGS[Role.DECODE].token_budget, places=64)
    assert found.firm == {Role.PREFILL}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-model-len", "long"), "--max-model-len 'long' is no number of tokens"),
        (("--max-model-len",), "--max-model-len '' is no number of tokens"),
        (("--max-num-seqs", "0"), "--max-num-seqs '0' is no number of tokens or requests"),
        (("--gpu-memory-utilization", "30"), "'30' is no share of a GPU's memory"),
        (("--gpu-memory-utilization", "nan"), "'nan' is no share of a GPU's memory"),
        (("--gpu-memory-utilization", "most"), "'most' is no share of a GPU's memory"),
    ],
)
def test_what_is_no_number_is_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        of(*arguments)


@pytest.mark.parametrize("name", ["--max-model-len", "--gpu-memory-utilization", "--kv-cache-dtype"])
def test_what_must_be_the_same_for_all_is_said_for_all(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"engine.decode.args: {name} is of all engines: write it into \[engine\] args"
    ):
        of(decode=(f"{name}=1",))
