"""Templates use exactly what the documented contexts hold: no unknown variable, and no field that nothing shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import pytest
from jinja2 import Environment, meta, nodes

from appliance.cli.why import explained_by
from appliance.records import STAGES
from appliance.remedies.apply import Remedies
from web import (
    assets,
    batch_curve,
    contexts,
    diagnosis,
    engine_log,
    engine_orders,
    engine_parts,
    engines,
    flow,
    gpus,
    incident_axis,
    incident_list,
    incident_page,
    ledger,
    overview,
    plan_page,
    playground,
    plot,
    refused,
    remedies,
    request_answer,
    request_list,
    request_page,
    request_rows,
    steps,
    times,
    views,
    waterfall,
)
from web.contexts import Context
from web.render import compact
from web.render import environment as new_environment
from web.views import Asked, Page, View

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_kept as kept
from made_up import FullNode
from page_states import OVERVIEW, STATES, NoActions

TEMPLATES: dict[str, type[Context]] = {
    "page": views.PageContext,
    "overview": overview.OverviewContext,
    "strip": contexts.StripContext,
    "headline": contexts.HeadlineContext,
    "announcement": contexts.AnnouncementContext,
    "flow": flow.FlowContext,
    "gpus": gpus.GpusContext,
    "remedies": remedies.RemediesContext,
    "diagnosis": diagnosis.DiagnosisContext,
    "footer": contexts.FooterContext,
    "refused": refused.RefusedContext,
    "refused_alone": refused.AloneContext,
    "engines": engines.EnginesContext,
    "engine_list": engines.ListContext,
    "engine": engines.EngineContext,
    "engine_head": engine_parts.HeadContext,
    "engine_steps": steps.StepsContext,
    "engine_figures": engine_parts.FiguresContext,
    "engine_handoffs": engine_parts.HandoffsContext,
    "engine_orders": engine_orders.OrdersContext,
    "engine_log": engine_log.LogContext,
    "request_list": request_list.RequestListContext,
    "request_rows": request_rows.RowsContext,
    "request_line": request_rows.LineContext,
    "request_page": request_page.RequestPageContext,
    "request_head": request_page.RequestHeadContext,
    "request_stages": request_page.StagesContext,
    "request_tokens": request_answer.TokensContext,
    "request_facts": request_page.RequestFactsContext,
    "incidents": incident_list.IncidentsContext,
    "incident_summary": incident_list.IncidentSummaryContext,
    "incident_list": incident_list.IncidentListContext,
    "incident": incident_page.IncidentContext,
    "incident_axis": incident_axis.AxisContext,
    "incident_events": incident_axis.EventsContext,
    "incident_facts": incident_page.IncidentFactsContext,
    "incident_seen": incident_page.SeenContext,
    "kv": ledger.KvContext,
    "ledger": ledger.LedgerContext,
    "plan": plan_page.PlanContext,
    "plans": plan_page.PlansContext,
    "curves": batch_curve.CurvesContext,
    "try": playground.TryContext,
    "readiness": playground.ReadinessContext,
}
"""Templates that are rendered over a context's fields."""

PARTIALS: dict[str, dict[str, type[Context]]] = {
    "page": {"place": contexts.ChoiceContext},
    "card": {"card": flow.CardContext, "rate": flow.RateContext},
    "link": {"link": flow.LinkContext, "ribbon": flow.RibbonContext},
    "flow": {
        "queue": flow.QueueContext,
        "handoff": flow.HandoffContext,
        "answers": flow.AnswersContext,
        "pair": flow.PairContext,
    },
    "charts": {"entry": waterfall.LegendContext},
    "legend": {"entry": waterfall.LegendContext},
    "gpus": {"gpu": gpus.GpuContext},
    "remedies": {"one": remedies.RemedyContext},
    "diagnosis": {"one": diagnosis.EvidenceContext},
    "plot": {"plot": plot.PlotContext, "tick": plot.TickContext, "one": plot.DrawnContext},
    "engine_list": {"row": engines.ListedContext},
    "engine": {"levels": contexts.ChoicesContext, "level": contexts.ChoiceContext},
    "engine_head": {"engine": engine_parts.NeighbourContext},
    "engine_steps": {"size": steps.SizeContext},
    "engine_figures": {"group": engine_parts.GroupContext},
    "engine_handoffs": {"row": engine_parts.HandoffRowContext},
    "engine_orders": {"one": engine_orders.OrderContext},
    "engine_log": {"line": engine_log.LineContext},
    "choices": {"group": contexts.ChoicesContext, "choice": contexts.ChoiceContext},
    "request_line": {"bar": request_rows.BarContext},
    "request_stages": {
        "way": request_page.WayContext,
        "bar": request_page.StretchContext,
        "stage": request_page.StageContext,
    },
    "fact": {"fact": contexts.FactContext},
    "request_facts": {"leg": request_page.LegContext},
    "incident_summary": {
        "lane": incident_list.LaneContext,
        "bar": incident_list.SpellContext,
        "tick": times.TickContext,
    },
    "incident_list": {"row": incident_list.IncidentRowContext},
    "incident": {"scrub": incident_page.ScrubContext},
    "incident_events": {"event": incident_axis.EventContext},
    "incident_axis": {
        "said": incident_axis.SaidContext,
        "mark": incident_axis.MarkContext,
        "curve": incident_axis.CurveContext,
        "tick": times.TickContext,
    },
    "ledger": {
        "leak": ledger.LeakContext,
        "engine": ledger.HeldContext,
        "lease": ledger.LeaseContext,
        "total": ledger.TotalContext,
    },
    "plans": {"row": plan_page.LayoutContext, "load": plan_page.LoadContext},
    "curves": {"curve": batch_curve.BatchCurveContext},
    "try": {"entry": waterfall.LegendContext},
}
"""Variables of templates that hold a context of their own."""


@pytest.fixture(scope="module")
def environment() -> Environment:
    return new_environment()


def tree(environment: Environment, name: str) -> nodes.Template:
    source = (assets.directory("templates") / f"{name}.html").read_text(encoding="utf-8")
    return environment.parse(source)


def variables(environment: Environment, name: str) -> set[str]:
    """Also those of the templates that it includes, less what these are given in passing."""
    parsed = tree(environment, name)
    found = meta.find_undeclared_variables(parsed)
    included = {include for include in meta.find_referenced_templates(parsed) if include}
    for include in included:
        stem = include.removesuffix(".html")
        found |= variables(environment, stem) - set(PARTIALS.get(stem, {}))
    return found


def attributes(parsed: nodes.Template, variable: str) -> set[str]:
    return {
        node.attr
        for node in parsed.find_all(nodes.Getattr)
        if isinstance(node.node, nodes.Name) and node.node.name == variable
    }


def test_every_template_is_held_to_a_context() -> None:
    files = {path.stem for path in assets.directory("templates").glob("*.html")}
    assert files == set(TEMPLATES) | set(PARTIALS) | {"patterns", "advice"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_uses_its_context_and_all_of_it(environment: Environment, name: str) -> None:
    assert variables(environment, name) == set(TEMPLATES[name].__struct_fields__)


@pytest.mark.parametrize(("name", "variable"), [(name, variable) for name in PARTIALS for variable in PARTIALS[name]])
def test_a_partial_uses_its_context_and_all_of_it(environment: Environment, name: str, variable: str) -> None:
    used = attributes(tree(environment, name), variable)
    fields = set(PARTIALS[name][variable].__struct_fields__)
    assert used == fields


NODE = FullNode("busy")
ACTIONS = Remedies(NODE, NODE.latest)
PAGES: tuple[Page, ...] = (
    OVERVIEW,
    engines.Engines(),
    engines.EnginePage(NODE, NoActions()),
    request_list.RequestList(NODE),
    request_page.RequestPage(NODE, explained_by),
    incident_list.IncidentList(kept.FakeIncidents()),
    incident_page.IncidentPage(NODE, kept.FakeIncidents(), ACTIONS),
    ledger.Kv(),
    plan_page.PlanPage(NODE, kept.FakePlanning(NODE), ACTIONS),
    playground.Playground(),
)
"""Each kind of page."""


async def viewed(page: Page) -> View:
    """Also of one that has to wait for something."""
    return await views.of(page, asked(kept.OPEN.id if page.template == "incident" else NODE.timelines(20)[15].id))


def asked(id: str) -> Asked:
    """By what any of them can be asked for."""
    names = {"name": "e0", "id": id}
    return Asked(origin="http://localhost:8000", names=names)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.template)
async def test_every_state_renders_strictly(page: Page, state: str) -> None:
    view = await viewed(page)
    for tick in (0, 17):
        snapshot = STATES[state](tick)
        html = views.paint(page, view, snapshot, "/live/")
        assert all(compact(name, context) in html for name, context in view.parts(snapshot).items())


def test_every_context_says_what_it_is() -> None:
    for context in {*TEMPLATES.values(), *(context for partial in PARTIALS.values() for context in partial.values())}:
        assert context.__doc__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.template)
async def test_live_parts_are_elements_of_their_page(page: Page) -> None:
    snapshot = STATES["busy"](0)
    frame, body = (
        (assets.directory("templates") / f"{name}.html").read_text(encoding="utf-8") for name in ("page", page.template)
    )
    for name in (await viewed(page)).parts(snapshot):
        assert f'id="{name}"' in body
        assert f"parts.{name}" in body
    for name in views.shared(snapshot):
        assert f'id="{name}"' in frame
        assert f"shared.{name}" in frame


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.template)
async def test_live_parts_depend_on_nothing_of_a_query_that_their_page_does_not_name(
    page: Page, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who ask for something else besides share one stream."""
    monkeypatch.setattr(NODE, "latest", lambda: STATES["busy"](0))  # its time stands still between the two
    query = {
        "show": "slow",
        "engine": "e0",
        "route": "/v1/completions",
        "limit": "200",
        "level": "error",
        "find": "met",
    }
    query |= {"state": "open", "cause": "engine_hung", "at": "742", "last": "24h", "from": "1", "to": "9", "x": "y"}
    id = kept.OPEN.id if page.template == "incident" else NODE.timelines(20)[15].id
    everything = msgspec.structs.replace(asked(id), query=query)
    named = msgspec.structs.replace(asked(id), query={name: query[name] for name in page.query})
    snapshot = STATES[state](0)
    one, other = [views.fragments(await views.of(page, by), snapshot) for by in (everything, named)]
    assert one == other


def test_the_stages_of_a_request_are_known_by_name_pattern_and_ink_and_written_down_once() -> None:
    html = views.paint(OVERVIEW, OVERVIEW.view(asked("")), STATES["busy"](0), None)
    assert re.findall(r'<pattern id="fill-(\w+)" class="ink-\1"', html) == list(STAGES)
    assert re.findall(r'data-series="ttft_(\w+)_s"', html) == list(STAGES)
    assert list(waterfall.LABELS) == list(STAGES)
    static = assets.directory("static")
    style = (static / "app.css").read_text(encoding="utf-8")
    assert all(re.search(rf"\.ink-{stage}\b", style) for stage in STAGES)
    scripts = {path: path.read_text(encoding="utf-8") for path in static.rglob("*.js") if path.parent.name != "vendor"}
    named = {path.name: stage for path, text in scripts.items() for stage in STAGES if "_" in stage and stage in text}
    assert not named, "scripts take them from the page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.template)
def test_every_page_has_its_place_in_the_navigation(page: Page) -> None:
    assert page.place in views.PLACES
