// One engine: charts of the last five minutes, its log searched and followed, and its weight made an order.

import { ink, resolveInk } from "./charts/ink.js";
import { percent, second, told, whole } from "./charts/words.js";

const byId = (id) => document.getElementById(id);
const KEPT_S = 300;
const GAP_S = 5; // without a sample

// ---- charts

const times = (ratio) => ratio.toFixed(2);

const CHARTS = [
  { id: "chart-requests", series: ["running", "waiting", "fetching"], words: whole, least: 4 },
  { id: "chart-shares", series: ["kv_usage", "busy"], words: percent, least: 1 },
  { id: "chart-slowdown", series: ["slowdown"], words: times, least: 2 },
];
const LINES = [["prefill"], ["decode", [6, 3]], ["handoff", [2, 3]]];

function chart({ id, series, words, least }, data) {
  const target = byId(id);
  const { soft, rule } = ink;
  const grid = { stroke: rule, width: 1 };
  const font = `11px ${ink.font}`;
  const options = {
    width: target.clientWidth,
    height: 150,
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { range: (_, low, high) => [Math.min(low, high - 60), high] }, y: { range: (_, low, high) => [0, Math.max(least, (high ?? 0) * 1.1)] } },
    axes: [
      { stroke: soft, grid: { show: false }, ticks: { ...grid, size: 4 }, font, size: 24, gap: 2, values: (_, ticks) => ticks.map((time) => second(new Date(time * 1000))), space: 70 },
      { stroke: soft, grid, ticks: { show: false }, font, size: 48, values: (_, ticks) => ticks.map(words) },
    ],
    series: [{}, ...series.map((_, number) => ({ stroke: ink[LINES[number][0]], width: 1.75, dash: LINES[number][1], points: { show: false } }))],
  };
  return new uPlot(options, data, target);
}

const NAMES = CHARTS.flatMap((one) => one.series);

class Lately { // the last five minutes: a column for each name, and one of times
  constructor() {
    this.forget();
  }

  forget() {
    this.columns = Object.fromEntries(["time", ...NAMES].map((name) => [name, []]));
  }

  get times() {
    return this.columns.time;
  }

  push(sample) {
    for (const [name, column] of Object.entries(this.columns)) column.push(sample[name] ?? null);
    while (this.times.at(-1) - this.times[0] > KEPT_S) for (const column of Object.values(this.columns)) column.shift();
  }

  put(samples) { // before what is there
    const first = this.times[0] ?? Infinity;
    const since = (this.times.at(-1) ?? samples.at(-1)?.time) - KEPT_S;
    const before = samples.filter(({ time }) => time >= since && time < first);
    for (const [name, column] of Object.entries(this.columns)) column.unshift(...before.map((sample) => sample[name] ?? null));
  }

  knows(one) { // anything of what a chart shows
    return one.series.some((name) => this.columns[name].some((value) => value !== null));
  }

  of(one) {
    return [this.times, ...one.series.map((name) => this.columns[name])];
  }
}

async function before(engine) { // as the node remembers it; of what it does not keep there is nothing
  const answer = await fetch(`/api/history?from=-${KEPT_S}s&to=now&points=${KEPT_S}&series=${engine}.*`).catch(() => null);
  if (!answer?.ok) return [];
  const { time, step_s, series } = (await answer.json()).history;
  const samples = time.map((begin, step) => Object.fromEntries(
    [["time", begin + step_s / 2], ...NAMES.map((name) => [name, series[`${engine}.${name}`]?.[step] ?? null])]));
  return samples.slice(0, 1 + samples.findLastIndex((sample) => NAMES.some((name) => sample[name] !== null)));
}

function startCharts() {
  const lately = new Lately();
  const { engine } = byId("lately").dataset;
  let drawn = [];
  let shown = null; // which charts have anything to show
  let asked = 0; // questions for what was before

  const show = (one) => {
    const target = byId(one.id);
    if (lately.knows(one)) {
      target.replaceChildren();
      return [{ one, plot: chart(one, lately.of(one)) }];
    }
    const words = Object.assign(document.createElement("p"), { className: "faint", textContent: "It tells nothing of this now." });
    target.replaceChildren(words);
    return [];
  };
  const draw = () => {
    drawn.forEach(({ plot }) => plot.destroy());
    resolveInk();
    drawn = CHARTS.flatMap(show);
  };
  const update = () => {
    if (document.hidden || lately.times.length < 2) return;
    const known = CHARTS.filter((one) => lately.knows(one)).map(({ id }) => id).join();
    if (known === shown) return drawn.forEach(({ one, plot }) => plot.setData(lately.of(one)));
    shown = known;
    draw();
  };
  const fill = async () => {
    const mine = ++asked;
    lately.forget();
    const samples = await before(engine);
    if (mine !== asked) return;
    lately.put(samples);
    update();
  };
  const heard = (sample) => {
    const apart_s = sample.time - (lately.times.at(-1) ?? sample.time);
    if (apart_s < 0 || apart_s > GAP_S) fill(); // the node's clock was set back, or we have not listened; the node has
    lately.push(sample);
    if (!document.hidden) for (const one of CHARTS) for (const name of one.series) byId(`now-${name}`).textContent = told(one.words, sample[name]);
    update();
  };

  byId("lately").hidden = false;
  document.addEventListener("theme", () => shown !== null && draw());
  new ResizeObserver(() => drawn.forEach(({ plot }) => plot.setSize({ width: plot.root.parentNode.clientWidth, height: 150 })))
    .observe(byId("lately"));
  byId("live").addEventListener("sample", (event) => heard(JSON.parse(event.detail.data)));
  fill();
}

// ---- log

function startLog() {
  const log = byId("engine_log");
  const find = byId("find");
  const follow = byId("follow");

  const show = () => {
    const sought = find.value.toLowerCase();
    for (const line of log.querySelectorAll("li")) line.hidden = !line.textContent.toLowerCase().includes(sought);
    if (follow.checked) log.scrollTop = log.scrollHeight;
  };
  new MutationObserver(show).observe(log, { childList: true, subtree: true, characterData: true });
  find.addEventListener("input", show);
  find.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const address = new URL(location.href);
    address.searchParams.set("find", find.value);
    if (!find.value) address.searchParams.delete("find");
    address.hash = "log";
    if (address.href === location.href) return;
    if (address.search === location.search) location.hash = "log";
    else location.assign(address);
  });
  follow.addEventListener("change", show);
  log.addEventListener("wheel", () => (follow.checked = log.scrollTop + log.clientHeight >= log.scrollHeight - 4), { passive: true });
  show();
}

// ---- weight

function startWeight() {
  const input = byId("weight");
  const button = byId("weigh");
  const engine = input.dataset.engine;
  const write = () => {
    const weight = input.valueAsNumber;
    button.disabled = !input.validity.valid || Number.isNaN(weight);
    button.dataset.order = JSON.stringify({ kind: "weight", engine, weight });
    button.dataset.call = `POST /api/engines/${engine}/weight {"weight": ${weight}}`;
    button.dataset.what = `${engine} is given ${weight} times as much of the work as an engine of weight 1. Nothing restarts.`;
  };
  input.addEventListener("input", write);
  write();
}

if (byId("live")) startCharts();
startLog();
startWeight();
