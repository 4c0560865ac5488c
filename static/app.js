// What the page does besides htmx: says whether it is live, remembers a theme, copies a command.

import { second } from "./charts/words.js";

const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const STALE_MS = 6000; // a snapshot comes twice a second

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
  if (!button) return;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const said = await copy(byId("curl").textContent).then(() => "Copied", () => "Select and copy it");
    button.textContent = said;
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

// ---- the tab says how the node is, while another one is looked at

const TITLE = document.title;

function showTone() {
  const tone = byId("strip").firstElementChild;
  const calm = !tone || ["tone-ok", "tone-off"].some((name) => tone.classList.contains(name));
  document.title = calm ? TITLE : `${tone.querySelector(".glyph").textContent} ${TITLE}`;
}

// ---- the live stream

function startLink(live, onSample) {
  let heard = performance.now(); // whatever the clock is set to meanwhile
  let shown = new Date(); // when what is shown was told
  let connection = null;
  let asked = false; // that we begin anew: nothing is wrong then
  let over = false; // what the page is about is no longer kept

  const say = (state, words) => {
    if (root.dataset.link === state) return;
    root.dataset.link = state;
    byId("link").textContent = words();
  };
  const lost = () => say("lost", () => `Connection lost: all this is as it was at ${second(shown)}. Retrying…`);
  const well = () => {
    heard = performance.now();
    shown = new Date();
    asked = false;
    say("live", () => "Live");
    showTone();
  };
  const failed = (status) => {
    if (status !== 404) return lost();
    over = true;
    say("over", () => `No longer kept: all this is as it was at ${second(shown)}.`);
  };
  const anew = () => { // everything comes again
    asked = true;
    connection?.reader?.cancel();
  };

  live.addEventListener("htmx:sse:after:connection", (event) => (connection = event.detail.connection));
  live.addEventListener("htmx:sse:close", () => (connection = null));
  live.addEventListener("htmx:sse:after:message", well);
  live.addEventListener("htmx:sse:error", (event) => failed(event.detail.status));
  live.addEventListener("htmx:sse:before:connection", (event) => {
    if (over) event.preventDefault();
    else if (event.detail.connection.attempt > 0 && !asked && !document.hidden) lost();
  });
  say("waiting", () => "Connecting…");
  let again = 0;
  const retry = (event) => { // htmx tries again what broke off, but not what never began
    failed(event.detail.ctx?.response?.status);
    clearTimeout(again);
    if (!connection && !over) again = setTimeout(() => htmx.trigger(live, "live:open"), 2000);
  };
  live.addEventListener("htmx:error", retry);
  live.addEventListener("htmx:response:error", retry);
  live.addEventListener("sample", (event) => onSample(JSON.parse(event.detail.data)));
  document.addEventListener("visibilitychange", () => {
    heard = performance.now();
    asked ||= document.hidden; // htmx listens to nothing in the background
  });
  document.addEventListener("focusout", () => setTimeout(() => {
    if (!leftOut || document.querySelector(BEING_READ)) return;
    leftOut = false;
    anew();
  }));
  setInterval(() => {
    if (over || document.hidden || performance.now() - heard < STALE_MS) return;
    lost();
    heard = performance.now();
    connection?.reader?.cancel(); // half-open: the extension connects again
  }, 1000);
}

// ---- lists that rows are added to stand still while the keyboard is in them: it would be carried away

const BEING_READ = "[data-stands]:has(:focus-visible)";

let leftOut = false;

function leaveOut({ detail: { tasks } }) {
  for (let at = tasks.length - 1; at >= 0; at--) {
    if (!tasks[at].target?.matches?.(BEING_READ)) continue;
    tasks.splice(at, 1);
    leftOut = true;
  }
}

// ---- start

startTheme();
if (byId("copy")) startCopy();
if (byId("live")) {
  byId("live").addEventListener("htmx:before:swap", leaveOut);
  startLink(byId("live"), (sample) => {
    if (sample.build !== document.body.dataset.build) location.reload(); // the appliance was upgraded
    else if (!document.hidden) document.dispatchEvent(new CustomEvent("node:sample", { detail: sample })); // to charts.js
  });
}
