// The charts: small multiples over one axis of time, with one cursor.

import { ink, STAGES } from "./ink.js";
import { area, heat, paintMarks, paintNothing, paintTarget, stack } from "./paint.js";
import { AXIS, bounds, columnOf, middles, state, RIGHT } from "./state.js";
import { day, hour, number, percent, second, seconds, whole } from "./words.js";

const line = (name, ink, dash) => ({ name, ink, dash });
export const CHARTS = {
  tokens: { words: whole, floor: 10, lines: [line("prompt_tokens_s", "prefill"), line("output_tokens_s", "decode", [6, 3])] },
  ttft: { words: seconds, floor: 0.01, height: 150, target: "slo_ttft_s", lines: [line("ttft_s")], paint: stack },
  itl: { words: seconds, floor: 0.001, target: "slo_itl_s", lines: [line("itl_s", "decode")] },
  goodput: { words: number, floor: 0.1, lines: [line("ended_s", "soft", [6, 3]), line("good_s", "ok")] },
  queue: { words: whole, floor: 4, peaks: true, lines: [line("queue_depth")], paint: area },
  kv: { words: percent, heat: true, lines: [], paint: heat },
};
const WORDS = { itl_late: percent, queue_oldest_s: seconds };
export const SERIES = [...new Set([...Object.values(CHARTS).flatMap((chart) => chart.lines.map((one) => one.name)),
  ...STAGES.map((stage) => `ttft_${stage}_s`), "itl_late", "queue_oldest_s"])];
export const wordsOf = (name) => WORDS[name] ?? Object.values(CHARTS).find((one) => one.lines.some((each) => each.name === name))?.words ??
  (name.endsWith("kv_usage") ? percent : seconds);

export const plots = {}; // by the chart's name
export const pointer = { hover: (step) => {}, selected: (plot) => {} }; // what it does at them

export function draw(name) {
  if (!state.data) return;
  const chart = CHARTS[name];
  const [min, max] = bounds();
  const columns = chart.heat ? [state.data.begin.map(() => 0)] : chart.lines.map((one) => columnOf(one.name));
  if (plots[name]?.engines !== (chart.heat ? state.data.engines.length : undefined)) {
    plots[name]?.destroy();
    delete plots[name];
  }
  plots[name] ??= make(name, columns.length);
  plots[name].batch(() => {
    plots[name].setData([middles(), ...columns], false);
    plots[name].setScale("x", { min, max });
  });
}

function known(name) { // anything at all
  const names = CHARTS[name].heat ? state.data.engines : CHARTS[name].lines.map((one) => one.name);
  return names.some((one) => columnOf(one).some((value) => value != null));
}

function make(name, count) {
  const chart = CHARTS[name];
  const target = document.querySelector(`[data-chart="${name}"] > .plot`);
  const rows = Math.max(1, state.data.engines.length);
  const bottom = chart.heat;
  const height = chart.heat ? Math.max(60, 12 + 14 * rows) + 24 : (chart.height ?? 92);
  const grid = { stroke: () => ink.rule, width: 1 };
  const font = `11px ${ink.font}`;
  const series = chart.heat || chart.paint ? [{ paths: () => null, points: { show: false } }] : chart.lines.map(stroke);
  const plot = new uPlot({
    width: target.clientWidth,
    height,
    padding: [6, RIGHT, bottom ? 0 : 6, 0],
    legend: { show: false },
    scales: {
      x: { time: true, range: (_, low, high) => [low, high] },
      y: { dir: chart.heat ? -1 : 1, range: chart.heat ? () => [0, rows] : (u, low, high) => [0, top(name, high)] },
    },
    axes: [
      { stroke: () => ink.soft, grid, ticks: { show: false }, font, space: 80, size: bottom ? 24 : 0, values: bottom ? times : (_, at) => at.map(() => "") },
      chart.heat
        ? { stroke: () => ink.soft, grid: { show: false }, ticks: { show: false }, font, size: AXIS, gap: 4, splits: () => state.data.engines.map((_, row) => row + 0.5), values: () => state.data.engines.map((one) => one.split(".")[0]) }
        : { stroke: () => ink.soft, grid, ticks: { show: false }, font, size: AXIS, gap: 4, space: 34, values: (_, at) => at.map(chart.words) },
    ],
    series: [{}, ...series],
    cursor: { sync: { key: "history", setSeries: false }, y: false, points: { show: false }, drag: { x: true, y: false, setScale: false }, bind: { dblclick: () => null } },
    hooks: { drawClear: [paintMarks], draw: [...(chart.paint ? [chart.paint] : []), (u) => state.bare || known(name) || paintNothing(u), ...(chart.target ? [(u) => paintTarget(u, state.targets[chart.target], chart.words)] : [])],
      setCursor: [(u) => pointer.hover(u.cursor.idx)], setSelect: [(u) => pointer.selected(u)] },
  }, Array.from({ length: count + 1 }, () => []), target);
  if (chart.heat) plot.engines = state.data.engines.length;
  return plot;
}

const stroke = ({ ink: of, dash }) => ({
  stroke: () => ink[of],
  width: 1.5,
  dash,
  points: { show: () => false, filter: alone, size: 3, fill: () => ink[of], stroke: () => ink[of], width: 0 },
});

function alone(u, index) { // values with nothing on either side, which no line goes through
  const column = u.data[index];
  const found = [];
  for (let at = 0; at < column.length; at++)
    if (column[at] != null && column[at - 1] == null && column[at + 1] == null) found.push(at);
  return found.length ? found : null;
}

function top(name, high) {
  const { floor, peaks, lines, target } = CHARTS[name];
  const newest = Math.max(0, ...lines.map((one) => columnOf(one.name).at(-1) ?? 0)); // its step is under way: uPlot sees it later
  const most = peaks && state.data.highest[lines[0].name] ? Math.max(0, ...state.data.highest[lines[0].name]) : Math.max(high ?? 0, newest);
  const seen = most === 0 || most > 0.4 * state.targets[target]; // a target far above all would flatten them
  const limit = target && seen ? 1.15 * state.targets[target] : 0;
  return Math.max(floor, 1.1 * most, limit);
}

function times(u, at) {
  const step = at.length > 1 ? at[1] - at[0] : 1;
  let before = "";
  return at.map((time) => {
    const date = new Date(time * 1000);
    const text = step >= 86400 ? day(date) : step < 60 ? second(date) : hour(date);
    const today = day(date);
    const shown = step < 86400 && before && before !== today ? today : text; // where a day begins
    before = today;
    return shown;
  });
}
