"""Why an engine ended, told from its last lines."""

from __future__ import annotations

import pytest

from appliance.config import Config
from appliance.supervisor.engine import Engine
from appliance.supervisor.exits import Exit, explain
from appliance.supervisor.lifecycle import Life
from appliance.supervisor.oom import Evidence
from appliance.supervisor.process import LOG_LINES
from appliance.supervisor.specs import resolve_model, specs
from appliance.supervisor.topology import parse

PREFIX = "(EngineCore pid=7) ERROR 11-24 03:14:19 [core.py:1512] "


@pytest.mark.parametrize(
    ("code", "line", "says", "terminal"),
    [
        (2, "vllm: error: unrecognized arguments: --wrong", "correct [engine] args", True),
        (1, PREFIX + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "smaller model", True),
        (1, PREFIX + "RuntimeError: CUDA error: an illegal memory access was encountered", "nvidia-smi", False),
        (
            1,
            PREFIX + "appliance.errors.HandoffError: /dev/shm has 64 MiB free and needs 256",
            "/dev/shm has 64 MiB free",
            True,
        ),
        (1, "ModuleNotFoundError: No module named 'vllm'", "install it", True),
        (1, "ValueError: To serve one request, 2.00 GiB KV cache is needed, which is larger", "kv_cache_bytes", True),
        (1, "OSError: x/y is not a local folder and is not a valid model identifier", "check [model] path", True),
        (1, "ValueError: Pooling models do not support custom logits processors.", "continue_streams = false", True),
        (1, "RuntimeError: Cannot find any model weights with `/m/noweights`", "pd-appliance check says which", True),
        (1, "ValueError: Following weights were not initialized from checkpoint: {'a'}", "pd-appliance check", True),
        (1, PREFIX + "FileNotFoundError: [Errno 2] No such file: '/m/model.safetensors'", "damaged or missing", True),
        (1, "safetensors_rust.SafetensorError: Error while deserializing header: header too small", "damaged or", True),
        (
            1,
            "FileNotFoundError: [Errno 2] No such file or directory: '/m/x.sock'",
            "exit status 1: FileNotFound",
            False,
        ),
        (-9, "INFO all is well", "SIGKILL", False),
        (-9, "ImportError: of something that may be missing", "SIGKILL", False),
        (-11, "", "SIGSEGV", False),
        (7, "SomethingError: of its own", "exit status 7: SomethingError: of its own", False),
    ],
)
def test_causes(code: int, line: str, says: str, terminal: bool) -> None:
    found = explain(code, ["INFO before", line, "INFO after" if line else ""])
    assert says in found.cause
    assert found.terminal is terminal
    assert "\x1b" not in found.cause
    assert len(found.cause) < 600


def test_an_unknown_signal_is_still_told() -> None:
    assert "signal 63" in explain(-63, []).cause
    assert explain(7, []).cause == "exit status 7: it said nothing"


def test_the_kernels_own_count_tells_a_kill_for_want_of_memory_from_others() -> None:
    for code, lines in ((-9, ["INFO fine"]), (0, ["INFO fine", DEAD])):
        assert explain(code, lines, oom=Evidence.HERE).cause.startswith(
            "killed by the kernel for want of memory: lower"
        )
        assert explain(code, lines, oom=Evidence.ELSEWHERE).cause.startswith("probably killed by the kernel")
        assert "perhaps" in explain(code, lines).cause
    assert "SIGSEGV" in explain(-11, [], oom=Evidence.HERE).cause, "that is another death"


def test_a_rank_that_was_killed_is_told() -> None:
    said = [
        "(EngineCore pid=7) ERROR 11-24 05:22:12 [multiproc_executor.py:315] "
        "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor.",
        DEAD,
    ]
    assert explain(0, said).cause.startswith("rank 1 was killed (SIGKILL): perhaps by the kernel for want of memory")
    assert explain(0, said, oom=Evidence.HERE).cause.startswith("killed by the kernel for want of memory")


def test_what_failed_in_a_rank_is_the_cause_of_what_engine_core_says() -> None:
    said = [
        "(Worker_TP1 pid=9) ERROR 11-25 22:20:03 [multiproc_executor.py:1] ValueError: a head too few",
        PREFIX + "Exception: WorkerProc initialization failed due to an exception in a background process.",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert explain(1, said).cause == "exit status 1: ValueError: a head too few"


DEAD = "ERROR 11-24 05:22:12 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."


def test_the_death_of_engine_core_is_told_by_what_led_to_it() -> None:
    assert explain(0, ["INFO fine", DEAD]).cause.startswith("its EngineCore ended without a word")
    assert explain(0, [PREFIX + "RuntimeError: a kernel", DEAD]).cause.endswith("RuntimeError: a kernel")


def test_what_failed_in_engine_core_is_the_cause_of_what_the_api_process_says() -> None:
    root = "(EngineCore pid=7) ERROR 11-25 22:20:03 [core.py:1510] ValueError: Invalid logits processor"
    said = explain(1, [root, "RuntimeError: Engine core initialization failed. See root cause above."])
    assert said.cause == "exit status 1: ValueError: Invalid logits processor"


def test_what_a_warning_warns_of_has_not_happened() -> None:
    warning = "WARNING 11-25 20:54:58 [system_utils.py:255] This can cause fd limit errors like `OSError: [Errno 24] Too many`"
    assert explain(0, [warning, DEAD]).cause.startswith("its EngineCore ended without a word")
    stream = "ERROR 11-25 21:00:00 [serving.py:926] Error in chat completion stream generator."
    assert explain(0, [warning, stream, DEAD]).cause.startswith("its EngineCore ended without a word")


def test_colours_and_prefixes_are_taken_off() -> None:
    assert explain(1, ["\x1b[31m(APIServer pid=1)\x1b[0m MyError: red"]).cause == "exit status 1: MyError: red"


def test_an_earlier_life_is_not_asked_why_this_one_ended() -> None:
    engine = Engine(specs(Config(), parse("1b"), resolve_model(Config()), [0])[0])
    for epoch, said in ((1, "MemoryError: of the first life"), (2, "INFO loading")):
        engine.life = Life(epoch=epoch)
        engine.begin_log()
        engine.log.append(said)
    assert engine.last_words() == ["INFO loading"]
    engine.log.extend(f"line {number}" for number in range(LOG_LINES))  # its beginning is no longer kept
    assert len(engine.last_words()) == LOG_LINES


FILES = "the model's files are damaged or missing: pd-appliance check says which; fetch them again"
HEADER = '  File "/x/vllm/transformers_utils/utils.py", line 112, in parse_safetensors_file_metadata'


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([HEADER, "    metadata = json.loads(f.read(length))", "MemoryError"], FILES),
        ([HEADER, "struct.error: unpack requires a buffer of 8 bytes"], FILES),
        (
            [
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig",
                "  Value error, Unterminated string starting at: line 1 column 975 (char 974) [type=value_error, …]",
            ],
            f"Unterminated string starting at: line 1 column 975 (char 974): {FILES}",
        ),
        (["MemoryError"], "MemoryError: lower [engine] kv_cache_bytes, or run fewer engines"),
        (
            ["pydantic_core._pydantic_core.ValidationError: 1 validation error", "  Value error, max_model_len is 1"],
            "pydantic_core._pydantic_core.ValidationError: 1 validation error: correct [engine] args, or [model] path",
        ),
    ],
)
def test_weights_that_are_none_are_told_from_memory_that_is_short(lines: list[str], cause: str) -> None:
    """As vLLM 0.32 ends with a pointer of git-lfs, an empty file, and one that is cut short."""
    assert explain(1, ["INFO before", *lines]) == Exit(cause, terminal=True)
