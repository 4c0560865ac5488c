// What the page does besides htmx: says whether it is live, draws two charts, remembers a theme, copies a command.
"use strict";

const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const STALE_MS = 6000; // a snapshot comes twice a second
const KEPT_S = 300;

// ---- theme

const THEMES = ["auto", "light", "dark"];

function showTheme(name) {
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
  byId("theme").textContent = `Theme: ${name}`;
}

function remember(name) {
  try {
    localStorage.setItem("theme", name);
  } catch {
    // Some browsers keep nothing for a site: the theme then lasts as long as the page.
  }
}

function startTheme() {
  const button = byId("theme");
  let name = root.dataset.theme ?? "auto";
  button.hidden = false;
  showTheme(name);
  button.addEventListener("click", () => {
    name = THEMES[(THEMES.indexOf(name) + 1) % THEMES.length];
    showTheme(name);
    remember(name);
    document.dispatchEvent(new Event("theme"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme")));
}

// ---- copying

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  getSelection().selectAllChildren(byId("curl")); // not a secure context: plain http to another machine
  if (!document.execCommand("copy")) throw new Error("refused");
}

function startCopy() {
  const button = byId("copy");
  button.hidden = false;
  button.addEventListener("click", async () => {
    const said = await copy(byId("curl").textContent).then(() => "Copied", () => "Select and copy it");
    button.textContent = said;
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

// ---- the live stream

function startLink(live, onSample) {
  let heard = Date.now();
  let connection = null;

  const say = (state, words) => {
    if (root.dataset.link === state) return;
    root.dataset.link = state;
    byId("link").textContent = words;
  };
  const lost = () => say("lost", "Connection lost, retrying…");
  const well = () => {
    heard = Date.now();
    say("live", "Live");
  };

  live.addEventListener("htmx:sse:after:connection", (event) => (connection = event.detail.connection));
  live.addEventListener("htmx:sse:close", () => (connection = null));
  live.addEventListener("htmx:sse:after:message", well);
  live.addEventListener("htmx:sse:error", lost);
  live.addEventListener("htmx:sse:before:connection", (event) => {
    if (event.detail.connection.attempt > 0 && !document.hidden) lost();
  });
  let again = 0;
  const retry = () => { // htmx tries again what broke off, but not what never began
    lost();
    clearTimeout(again);
    if (!connection) again = setTimeout(() => htmx.trigger(live, "live:open"), 2000);
  };
  live.addEventListener("htmx:error", retry);
  live.addEventListener("htmx:response:error", retry);
  live.addEventListener("sample", (event) => onSample(JSON.parse(event.detail.data)));
  document.addEventListener("visibilitychange", () => (heard = Date.now()));
  setInterval(() => {
    if (document.hidden || Date.now() - heard < STALE_MS) return;
    lost();
    heard = Date.now();
    connection?.reader?.cancel(); // half-open: the extension connects again
  }, 1000);
}

// ---- charts

function resolved(name) { // light-dark() is resolved by an element, not by a property's text
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function chart(target, data, values, floor) {
  const soft = resolved("--soft");
  const grid = { stroke: resolved("--rule"), width: 1 };
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const line = (name, dash) => ({ stroke: resolved(name), width: 1.75, dash, points: { show: false } });
  const series = [{}, line("--prefill"), line("--decode", [6, 3])];
  const options = {
    width: target.clientWidth,
    height: 150,
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { range: (_, low, high) => [Math.min(low, high - 60), high] }, y: { range: (_, low, high) => [0, Math.max(floor, (high ?? 0) * 1.1)] } },
    axes: [
      { stroke: soft, grid: { show: false }, ticks: grid, font, values: (_, ticks) => ticks.map(clock), space: 70 },
      { stroke: soft, grid, ticks: { show: false }, font, size: 56, values: (_, ticks) => ticks.map(values) },
    ],
    series,
  };
  return new uPlot(options, data, target);
}

const clock = (seconds) => new Date(seconds * 1000).toTimeString().slice(0, 8);
const whole = (value) => (value == null ? "—" : Math.round(value).toLocaleString("en"));
const length = (value) => {
  if (value == null) return "—";
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${+value.toFixed(2)} s`;
};

function startCharts() {
  const columns = ["time", "prompt_tokens_s", "output_tokens_s", "ttft_p50_s", "ttft_p99_s"];
  const kept = Object.fromEntries(columns.map((name) => [name, []]));
  const now = { "now-prompt": ["prompt_tokens_s", whole], "now-output": ["output_tokens_s", whole],
    "now-p50": ["ttft_p50_s", length], "now-p99": ["ttft_p99_s", length] };
  let drawn = [];

  const tokens = () => [kept.time, kept.prompt_tokens_s, kept.output_tokens_s];
  const ttft = () => [kept.time, kept.ttft_p50_s, kept.ttft_p99_s];
  const draw = () => {
    drawn.forEach((plot) => plot.destroy());
    drawn = [chart(byId("chart-tokens"), tokens(), whole, 10), chart(byId("chart-ttft"), ttft(), length, 0.01)];
  };
  const push = (sample) => columns.forEach((name) => kept[name].push(sample[name] ?? null));

  byId("charts").hidden = false;
  document.addEventListener("theme", () => drawn.length && draw());
  new ResizeObserver(() => drawn.forEach((plot) => plot.setSize({ width: plot.root.parentNode.clientWidth, height: 150 })))
    .observe(byId("charts"));

  return (sample) => {
    const last = kept.time.at(-1);
    if (last !== undefined && sample.time - last > 5) push({ time: last + 0.001 }); // a gap, not a line across it
    push(sample);
    while (kept.time.at(-1) - kept.time[0] > KEPT_S) columns.forEach((name) => kept[name].shift());
    for (const [id, [name, words]] of Object.entries(now)) byId(id).textContent = words(sample[name]);
    if (!drawn.length) return draw();
    drawn[0].setData(tokens());
    drawn[1].setData(ttft());
  };
}

// ---- start

startTheme();
if (byId("copy")) startCopy();
if (byId("live")) {
  const chartSample = byId("charts") ? startCharts() : () => {};
  startLink(byId("live"), (sample) => {
    if (sample.build !== document.body.dataset.build) location.reload(); // the appliance was upgraded
    else if (!document.hidden) chartSample(sample);
  });
}
