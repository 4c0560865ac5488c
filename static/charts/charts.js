// How the node was over time: asked for, kept up with what the live stream tells, and moved through. The range stands in the address.

import { resolveInk } from "./ink.js";
import { drawMarks, listMarks, placeMarks, showTip } from "./lane.js";
import { describe, lastOf, nameEngines, showKeys, showRange, tabulate } from "./numbers.js";
import { CHARTS, draw, plots, pointer, SERIES } from "./plots.js";
import { bounds, by, later, state, plotWidth } from "./state.js";
import { clamp, UNITS } from "./words.js";

const DEFAULT = { last: 3600 };
const LEAST_S = 10;
const MOST_S = 366 * 86400;

let asked = null; // the question that is under way
let patientUntil = 0; // after one that failed
const AGAIN_MS = 5000;
let drawnAt = 0;

const spanOf = (of) => of.last ?? of.to - of.from;

// ---- the address

function fromAddress() {
  const asked = new URL(location).searchParams;
  const last = /^(\d+(?:\.\d+)?)([smhd])$/.exec(asked.get("last") ?? "");
  const [from, to] = [Number(asked.get("from") || NaN), Number(asked.get("to") || NaN)];
  if (last) return { last: clamp(last[1] * UNITS[last[2]], LEAST_S, MOST_S) };
  return to - from >= 1 && to - from <= MOST_S ? { from, to } : DEFAULT;
}

function lastWords(last) {
  for (const unit of ["d", "h", "m"]) if (last > UNITS[unit] && last % UNITS[unit] === 0) return `${last / UNITS[unit]}${unit}`;
  return last === 3600 ? "1h" : last === 86400 ? "24h" : `${Math.round(last)}s`;
}

function toAddress(kept) {
  const at = new URL(location);
  for (const name of ["last", "from", "to"]) at.searchParams.delete(name);
  if (state.view.last) at.searchParams.set("last", state.view.last % 86400 === 0 && state.view.last < 172800 ? "24h" : lastWords(state.view.last));
  else [["from", state.view.from], ["to", state.view.to]].forEach(([name, time]) => at.searchParams.set(name, Math.round(time)));
  const depth = (history.state?.charts ?? 0) + (kept ? 1 : 0);
  history[kept ? "pushState" : "replaceState"]({ ...history.state, charts: depth }, "", at);
}

// ---- asking

async function ask() {
  asked?.abort();
  const mine = (asked = new AbortController());
  const range = state.view.last ? `from=-${Math.round(state.view.last)}s&to=now` : `from=${state.view.from.toFixed(3)}&to=${state.view.to.toFixed(3)}`;
  const address = `/api/history?${range}&points=${clamp(Math.round(plotWidth() * 0.75), 100, 720)}&series=${SERIES.join(",")},*.kv_usage`;
  try {
    const answer = await fetch(address, { signal: mine.signal });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error?.message ?? answer.statusText);
    if (mine === asked) take(body);
  } catch (error) {
    if (error.name === "AbortError" || mine !== asked) return;
    patientUntil = performance.now() + AGAIN_MS;
    say(`The history can't be read: ${error.message}`);
  } finally {
    if (mine === asked) asked = null;
  }
}

function take({ now, history: found, changes, incidents, slo_ttft_s, slo_itl_s }) {
  const engines = Object.keys(found.series).filter((name) => name.endsWith(".kv_usage"));
  state.data = { now, step: found.step_s, resolution: found.resolution_s, begin: found.time.slice(), series: found.series, highest: found.highest, engines, count: 1 };
  state.data.count = Math.max(1, (now - state.data.begin.at(-1)) / 0.5);
  state.targets = { slo_ttft_s, slo_itl_s };
  state.marks = { changes, incidents };
  state.bare = !SERIES.some((name) => found.series[name]?.some((value) => value != null));
  say(state.bare ? "Nothing was recorded in this time." : "");
  state.hovered = null;
  nameEngines();
  drawSoon();
  later("marks", drawMarks);
}

function say(words) {
  by("charts-none").textContent = words;
  by("charts-none").hidden = !words;
}

function drawSoon() {
  drawnAt = performance.now();
  for (const name of Object.keys(CHARTS)) later(`chart-${name}`, () => draw(name));
  later("range", showRange);
  later("keys", showKeys);
  later("words", describe);
}

// ---- newest values: they are added to the last step, or begin another

function live(sample) {
  state.latest = sample;
  if (!state.data || !state.view.last) return;
  const at = Math.floor(sample.time / state.data.step) * state.data.step;
  const missed = Math.round((at - state.data.begin.at(-1)) / state.data.step);
  if (Math.abs(missed) * state.data.step > Math.max(5, 2 * state.data.step)) { // we have not listened, but the node has; or its clock was set back
    if (!asked && performance.now() >= patientUntil) ask();
    return;
  }
  state.data.now = sample.time;
  if (missed > 0) grow(missed);
  if (missed >= 0) mix(sample);
  if (state.bare && SERIES.some((name) => sample[name] != null)) {
    state.bare = false;
    drawSoon();
  }
  if (!state.bare) say("");
  const pixel_ms = (1e3 * state.view.last) / plotWidth();
  if (performance.now() - drawnAt >= Math.min(30e3, pixel_ms)) drawSoon();
  else later("keys", showKeys);
  if (missed > 0) later("lane", placeMarks);
}

function grow(steps) {
  const columns = [...Object.values(state.data.series), ...Object.values(state.data.highest)];
  for (; steps > 0; steps--) {
    state.data.begin.push(state.data.begin.at(-1) + state.data.step);
    columns.forEach((column) => column.push(null));
  }
  const old = state.data.begin.findIndex((time) => time + state.data.step > state.data.now - state.view.last);
  if (old > 0) [state.data.begin, ...columns].forEach((column) => column.splice(0, old));
  state.data.count = 0;
}

function mix(sample) {
  const last = state.data.begin.length - 1;
  for (const [name, column] of Object.entries(state.data.series)) {
    const value = sample[name] ?? null;
    if (value === null) continue;
    column[last] = column[last] === null ? value : column[last] + (value - column[last]) / (state.data.count + 1);
    const peaks = state.data.highest[name];
    if (peaks) peaks[last] = Math.max(peaks[last] ?? value, value);
  }
  state.data.count += 1;
}

// ---- moving

let soon = 0;

function go(next, { keep = true, wait = 0 } = {}) {
  state.view = next;
  toAddress(keep);
  if (state.data) {
    drawSoon();
    later("lane", placeMarks);
  }
  clearTimeout(soon);
  soon = setTimeout(ask, wait);
}

function to(from, until, how) { // what reaches up to now stays there
  const latest = state.data?.now ?? Date.now() / 1000;
  const span = clamp(until - from, LEAST_S, MOST_S);
  const end = Math.min(until, latest);
  go(end >= latest - Math.max(1, span / 500) ? { last: span } : { from: end - span, to: end }, how);
}

function move(share, how) {
  if (!state.data) return;
  const [from, until] = bounds();
  const way = share * (until - from);
  if (way < 0 || !state.view.last) to(from + way, until + way, how);
}

function zoom(times, how) {
  if (!state.data) return;
  const [from, until] = bounds();
  const middle = (from + until) / 2;
  const half = (times * (until - from)) / 2;
  if (state.view.last) go({ last: clamp(2 * half, LEAST_S, MOST_S) }, how);
  else to(middle - half, middle + half, how);
}

function back() {
  if (history.state?.charts > 0) history.back();
  else go(DEFAULT, { keep: false });
}

function hover(step) {
  if (step === state.hovered) return;
  state.hovered = step;
  later("keys", showKeys);
  later("range", showRange);
}

function selected(u) {
  if (u.select.width < 4) return;
  const [from, until] = [u.select.left, u.select.left + u.select.width].map((x) => u.posToVal(x, "x"));
  Object.values(plots).forEach((plot) => plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false));
  to(from, until);
}

const MOVES = { earlier: () => move(-0.25), later: () => move(0.25), in: () => zoom(0.5), out: () => zoom(2) };
const KEYS = { ArrowLeft: MOVES.earlier, ArrowRight: MOVES.later, "+": MOVES.in, "=": MOVES.in, "-": MOVES.out, Escape: back, End: () => go({ last: spanOf(state.view) }) };

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const mark = event.target.closest(".lane > *");
  if (mark && event.key === "Escape") return showTip(null);
  if (mark && event.key.startsWith("Arrow")) {
    const next = event.key === "ArrowLeft" || event.key === "ArrowUp" ? mark.previousElementSibling : mark.nextElementSibling;
    next?.focus();
  } else if (event.target === by("charts-plots") && KEYS[event.key]) KEYS[event.key]();
  else return;
  event.preventDefault();
}

function wheeled(event) { // sideways moves in time; up and down stay the page's
  const sideways = event.shiftKey && !event.deltaX ? event.deltaY : event.deltaX;
  if (event.ctrlKey || Math.abs(sideways) <= Math.abs(event.shiftKey ? 0 : event.deltaY)) return;
  event.preventDefault();
  move(sideways / Math.max(200, by("charts-plots").clientWidth), { keep: false, wait: 150 });
}

// ---- start

function listen(charts) {
  charts.addEventListener("click", (event) => {
    const button = event.target.closest("[data-last], [data-move]");
    if (button?.dataset.last) go({ last: lastOf(button) });
    else if (button) MOVES[button.dataset.move]();
  });
  by("charts-plots").addEventListener("keydown", pressed);
  by("charts-plots").addEventListener("wheel", wheeled, { passive: false });
  by("charts-plots").addEventListener("dblclick", back);
  for (const [type, mark] of [["mouseover", true], ["focusin", true], ["mouseout", false], ["focusout", false]])
    by("charts-lane").addEventListener(type, (event) => showTip(mark ? event.target.closest(".lane > *") : null));
  by("charts-list").addEventListener("toggle", () => by("charts-list").open && listMarks());
  by("charts-table").addEventListener("toggle", () => by("charts-table").open && tabulate());
  addEventListener("popstate", () => {
    state.view = fromAddress();
    ask();
  });
  document.addEventListener("node:sample", (event) => live(event.detail));
  document.addEventListener("theme", () => {
    resolveInk();
    for (const name of Object.keys(plots)) later(`chart-${name}`, () => plots[name].redraw());
  });
  new ResizeObserver(() => {
    for (const [name, plot] of Object.entries(plots))
      later(`size-${name}`, () => plot.setSize({ width: plot.root.parentNode.clientWidth, height: plot.height }));
    later("lane", placeMarks);
  }).observe(charts);
}

if (by("charts") && window.uPlot) {
  by("charts").hidden = false;
  resolveInk();
  state.view = fromAddress();
  Object.assign(pointer, { hover, selected });
  listen(by("charts"));
  ask();
}
