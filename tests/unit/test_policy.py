"""Which engine a request goes to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.records import EngineState, EngineView, Role
from appliance.router.loads import Loads
from appliance.router.policy import _AHEAD, Load, choose, choose_decode, none_ready

P, D, B = Role.PREFILL, Role.DECODE, Role.BOTH
READY, STARTING, DEAD = EngineState.READY, EngineState.STARTING, EngineState.BACKOFF


def node(
    *engines: Role | tuple[Role, EngineState], window: int = 100, peers: bool = True, running: int = 256
) -> list[EngineView]:
    names = [f"e{number}" for number in range(len(engines))]
    pairs = [engine if isinstance(engine, tuple) else (engine, READY) for engine in engines]
    return [
        EngineView(
            name=name,
            role=role,
            state=state,
            epoch=1,
            socket=name,
            peers=tuple(peer for peer in names if peer != name and peers),
            max_batched_tokens=window,
            max_running=running,
        )
        for name, (role, state) in zip(names, pairs, strict=True)
    ]


def table(**loads: Load) -> dict[str, Load]:
    return {name: loads.get(name, Load()) for name in (f"e{number}" for number in range(9))}


def test_prefill_goes_to_the_engine_with_the_fewest_tokens_outstanding() -> None:
    chosen = choose(node(P, P, D), table(e0=Load(1, 90), e1=Load(5, 10)))
    assert chosen is not None
    assert (chosen.engine.name, chosen.unsplit_reason) == ("e1", None)


def test_decode_goes_to_the_engine_with_the_fewest_legs() -> None:
    chosen = choose_decode(node(P, D, D), table(e1=Load(3), e2=Load(2)), "e0")
    assert chosen is not None
    assert chosen.name == "e2"


def test_of_engines_of_unequal_weight_the_one_that_would_have_least_for_its_weight_is_next() -> None:
    views = node(P, P, D, D)
    views[0] = msgspec.structs.replace(views[0], weight=0.5)
    views[2] = msgspec.structs.replace(views[2], weight=0.5)

    def prefill(outstanding: int) -> str:
        chosen = choose(views, table(e1=Load(1, outstanding)), prompt_tokens=10)
        assert chosen is not None
        return chosen.engine.name

    assert [prefill(0), prefill(9), prefill(11)] == ["e1", "e1", "e0"]

    def decode(legs: int) -> str:
        chosen = choose_decode(views, table(e3=Load(legs)), "e1")
        assert chosen is not None
        return chosen.name

    assert [decode(0), decode(2)] == ["e3", "e2"]


def test_a_full_window_makes_a_request_wait() -> None:
    views = node(P, D)
    assert choose(views, table(e0=Load(1, 99))) is not None
    assert choose(views, table(e0=Load(1, 100))) is None


def test_nothing_is_prefilled_that_no_engine_has_room_to_decode() -> None:
    views, full = node(P, D, D, running=8), Load(8 + _AHEAD)
    assert choose(views, table(e1=full, e2=Load(8 + _AHEAD - 1))) is not None
    assert choose(views, table(e1=full, e2=full)) is None


def test_a_prefill_engine_whose_own_decoder_is_full_is_passed_over() -> None:
    views = node(P, P, D, D, running=8)
    views[2] = msgspec.structs.replace(views[2], peers=("e0",))
    views[3] = msgspec.structs.replace(views[3], peers=("e1",))
    chosen = choose(views, table(e1=Load(5, 99), e2=Load(8 + _AHEAD)))
    assert chosen is not None
    assert chosen.engine.name == "e1"


def test_what_prefills_only_is_not_bound_by_its_legs() -> None:
    assert choose(node(P, D, running=8), table(e0=Load(50))) is not None


@pytest.mark.parametrize(("views", "must"), [(node(B, B, running=8), None), (node(P, D, running=8), "echo")])
def test_a_whole_request_needs_a_place_where_it_runs(views: list[EngineView], must: str | None) -> None:
    full = Load(8 + _AHEAD)
    chosen = choose(views, table(e0=full, e1=Load(8 + _AHEAD - 1)), must)
    assert chosen is not None
    assert chosen.engine.name == "e1"
    assert choose(views, table(e0=full, e1=full), must) is None


def test_what_has_been_prefilled_is_decoded_where_there_is_room_or_else_where_there_is_none() -> None:
    views = node(P, D, D)
    views[1] = msgspec.structs.replace(views[1], max_running=2)
    roomy = choose_decode(views, table(e1=Load(2 + _AHEAD), e2=Load(100)), "e0")
    full = choose_decode(views, table(e1=Load(2 + _AHEAD), e2=Load(256 + _AHEAD)), "e0")
    assert roomy is not None
    assert full is not None
    assert (roomy.name, full.name) == ("e2", "e1")


def test_an_engine_with_nothing_to_do_takes_even_a_prompt_larger_than_its_window() -> None:
    assert choose(node(P, D, window=0), table()) is not None


def test_the_second_prefill_engine_takes_what_the_first_has_no_room_for() -> None:
    chosen = choose(node(P, P, D), table(e0=Load(1, 500), e1=Load(1, 20)))
    assert chosen is not None
    assert chosen.engine.name == "e1"


@pytest.mark.parametrize(
    ("views", "engine", "reason"),
    [
        (node(B, B), "e0", "aggregated"),
        (node(B), "e0", "aggregated"),
        (node(P, (D, STARTING)), "e0", "no decode engine is ready (e1 is starting)"),
        (node((P, DEAD), D), "e1", "no prefill engine is ready (e0 is backoff)"),
        (node(P), "e0", "no decode engine is ready"),
        (node(P, D, peers=False), "e0", "no two engines share their KV memory yet"),
        (node(B, (D, DEAD)), "e0", "only e0 is ready"),
    ],
)
def test_where_no_split_is_possible_it_runs_whole_and_says_why(
    views: list[EngineView], engine: str, reason: str
) -> None:
    chosen = choose(views, table())
    assert chosen is not None
    assert (chosen.engine.name, chosen.unsplit_reason) == (engine, reason)


def test_a_peer_error_is_the_reason() -> None:
    views = [msgspec.structs.replace(view, peer_errors=("e1: other dtype",)) for view in node(P, D, peers=False)]
    chosen = choose(views, table())
    assert chosen is not None
    assert chosen.unsplit_reason == "no two engines share their KV memory: e1: other dtype"


def test_what_must_run_whole_prefers_an_engine_that_does_both() -> None:
    chosen = choose(node(P, D, B), table(e2=Load(5, 50)), "echo")
    assert chosen is not None
    assert (chosen.engine.name, chosen.unsplit_reason) == ("e2", "echo")


def test_a_prefill_engine_that_no_decode_engine_has_mapped_is_not_used_to_split() -> None:
    views = node(P, P, D)
    views[2] = msgspec.structs.replace(views[2], peers=("e1",))
    chosen = choose(views, table(e1=Load(9, 90)))
    assert chosen is not None
    assert (chosen.engine.name, chosen.unsplit_reason) == ("e1", None)


def test_an_engine_that_both_prefills_and_decodes_never_decodes_its_own_prefill() -> None:
    assert choose_decode(node(B, P), table(), "e0") is None
    decode = choose_decode(node(B, B, P), table(e1=Load(9)), "e0")
    assert decode is not None
    assert decode.name == "e1"


def test_engines_that_failed_are_avoided_while_there_are_others() -> None:
    chosen = choose(node(P, P, D), table(e1=Load(1, 50)), avoid={"e0"})
    assert chosen is not None
    assert chosen.engine.name == "e1"
    alone = choose(node(B), table(), avoid={"e0"})
    assert alone is not None
    assert alone.engine.name == "e0"
    decode = choose_decode(node(P, D, D), table(e2=Load(9)), "e0", avoid={"e1"})
    assert decode is not None
    assert decode.name == "e2"
    assert choose_decode(node(P, D), table(), "e0", avoid={"e1"}) is not None


def test_an_engine_that_has_not_mapped_the_prefill_engine_does_not_decode_for_it() -> None:
    assert choose_decode(node(P, D, peers=False), table(), "e0") is None


def test_equals_take_turns() -> None:
    loads, views = Loads(), node(P, P, P, D)
    taken: Counter[str] = Counter()
    for _ in range(9):
        chosen = choose(views, loads)
        assert chosen is not None
        taken[chosen.engine.name] += 1
        loads.begin(chosen.engine.name, 5).end()
    assert taken == {"e0": 3, "e1": 3, "e2": 3}


# ---- ready or not


def test_one_engine_that_is_ready_serves_alone() -> None:
    assert none_ready(node(P, D)) is None
    assert none_ready(node(P, (D, EngineState.FAILED))) is None
    draining = node((P, EngineState.FAILED), (D, EngineState.DRAINING))
    assert none_ready(draining) == "e0 has failed; e1 takes no new requests"


@pytest.mark.parametrize(
    ("state", "fields", "reason"),
    [
        (STARTING, {"stage": "importing vLLM", "progress": 0.05}, "e0 is starting (importing vLLM, 5 %)"),
        (STARTING, {}, "e0 is starting (its process)"),
        (EngineState.FAILED, {"cause": "out of memory: use fewer"}, "e0 has failed: out of memory: use fewer"),
        (EngineState.BACKOFF, {"cause": "killed"}, "e0 has died and is started again: killed"),
        (EngineState.STOPPED, {}, "e0 is stopped"),
    ],
)
def test_the_reason_is_said_in_words(state: EngineState, fields: dict[str, Any], reason: str) -> None:
    [view] = node((P, state))
    assert none_ready([msgspec.structs.replace(view, **fields)]) == reason


def test_all_that_are_missing_are_named() -> None:
    assert none_ready(node((P, STARTING), (D, EngineState.FAILED))) == "e0 is starting (its process); e1 has failed"
    assert none_ready([]) == "there are no engines"


@pytest.mark.parametrize("state", [state for state in EngineState if state is not EngineState.READY])
def test_every_state_has_words(state: EngineState) -> None:
    said = none_ready(node((P, state))) or ""
    assert said.startswith("e0 ")
    assert said != f"e0 {state.value}"


ENGINES = st.lists(st.tuples(st.sampled_from(list(Role)), st.sampled_from(list(EngineState))), min_size=1, max_size=6)
LOADS = st.dictionaries(
    st.sampled_from([f"e{number}" for number in range(6)]),
    st.builds(Load, st.integers(0, 9), st.integers(0, 300), st.integers(0, 50)),
)


@given(ENGINES, LOADS, st.none() | st.just("echo"), st.sets(st.sampled_from(["e0", "e1", "e2"])), st.booleans())
def test_whatever_the_node_only_ready_engines_with_room_are_chosen(
    engines: list[tuple[Role, EngineState]],
    loads: dict[str, Load],
    must: str | None,
    avoid: set[str],
    peers: bool,
) -> None:
    views, known = node(*engines, peers=peers, running=2), table(**loads)
    chosen = choose(views, known, must, avoid)
    ready = [view for view in views if view.state is READY]

    def takes_legs(view: EngineView) -> bool:
        return known[view.name].legs < 2 + _AHEAD

    if chosen is None:
        assert not ready or any(known[view.name].prompt_tokens >= 100 or not takes_legs(view) for view in ready)
        return
    assert chosen.engine.state is READY
    assert known[chosen.engine.name].prompt_tokens < 100
    if chosen.unsplit_reason is not None:
        assert takes_legs(chosen.engine)
    else:
        decode = choose_decode(views, known, chosen.engine.name, avoid)
        assert chosen.engine.role.prefills
        assert decode is not None
        assert takes_legs(decode)
        assert decode.role.decodes
        assert decode.state is READY
        assert decode.name != chosen.engine.name
