// One engine: charts of the last five minutes, its log searched and followed, and its weight made an order.

import { ink, resolveInk } from "./charts/ink.js";
import { percent, second, told as saying, whole } from "./charts/words.js";

const byId = (id) => document.getElementById(id);
const KEPT_S = 300;

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

function startCharts() {
  const names = ["time", ...CHARTS.flatMap((one) => one.series)];
  const kept = Object.fromEntries(names.map((name) => [name, []]));
  const data = (one) => [kept.time, ...one.series.map((name) => kept[name])];
  const push = (sample) => names.forEach((name) => kept[name].push(sample[name] ?? null));
  let drawn = [];
  let shown = null; // which charts have anything to show

  const told = (one) => one.series.some((name) => kept[name].some((value) => value !== null));
  const show = (one) => {
    const target = byId(one.id);
    if (told(one)) {
      target.replaceChildren();
      return [{ one, plot: chart(one, data(one)) }];
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
  byId("lately").hidden = false;
  document.addEventListener("theme", () => shown !== null && draw());
  new ResizeObserver(() => drawn.forEach(({ plot }) => plot.setSize({ width: plot.root.parentNode.clientWidth, height: 150 })))
    .observe(byId("lately"));

  byId("live").addEventListener("sample", (event) => {
    const sample = JSON.parse(event.detail.data);
    const last = kept.time.at(-1);
    if (last !== undefined && sample.time - last > 5) push({ time: last + 0.001 }); // a gap, not a line across it
    push(sample);
    while (kept.time.at(-1) - kept.time[0] > KEPT_S) names.forEach((name) => kept[name].shift());
    if (document.hidden || kept.time.length < 2) return;
    for (const one of CHARTS) for (const name of one.series) byId(`now-${name}`).textContent = saying(one.words, sample[name]);
    const before = shown;
    shown = CHARTS.filter(told).map(({ id }) => id).join();
    if (shown !== before) return draw();
    drawn.forEach(({ one, plot }) => plot.setData(data(one)));
  });
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
