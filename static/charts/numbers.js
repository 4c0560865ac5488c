// The charts in numbers and words: values at the pointer, a table, and a sentence for those who can't see them.

import { wordsOf } from "./plots.js";
import { bounds, by, state } from "./state.js";
import { clock, length, told, UNITS } from "./words.js";

function shown(name) { // at the pointer; else now, or at the end
  const column = state.data.series[name];
  if (!column) return null;
  if (state.hovered == null && state.view.last && state.latest) return state.latest[name] ?? null;
  return state.hovered == null ? (column.at(-1) ?? column.at(-2) ?? null) : column[state.hovered];
}

export function showKeys() {
  if (!state.data) return;
  for (const key of document.querySelectorAll("#charts [data-series]"))
    key.lastElementChild.textContent = told(wordsOf(key.dataset.series), shown(key.dataset.series));
}

export function nameEngines() {
  by("charts-engines").replaceChildren(...state.data.engines.map((name) => {
    const key = document.createElement("li");
    key.className = "key";
    key.dataset.series = name;
    key.append(`${name.split(".")[0]} `, document.createElement("b"));
    return key;
  }));
}

export function showRange() {
  if (!state.data) return;
  const fine = state.data.step < 60;
  const [from, to] = bounds();
  const each = state.data.step < 1.5 && state.data.resolution < 1.5 ? "" : `, a point per ${length(state.data.step)}`;
  const range = state.view.last ? `the last ${length(state.view.last)}${each}` : `${clock(from, fine)} to ${clock(to, fine)}${each}`;
  by("charts-range").textContent = state.hovered == null ? range : `at ${clock(state.data.begin[state.hovered], fine)}`;
  for (const button of document.querySelectorAll("[data-last]"))
    button.setAttribute("aria-pressed", String(state.view.last === lastOf(button)));
}

function figures(name) {
  let [least, most, sum, count] = [Infinity, -Infinity, 0, 0];
  for (const value of state.data.series[name] ?? []) {
    if (value == null) continue;
    least = Math.min(least, value);
    most = Math.max(most, value);
    sum += value;
    count += 1;
  }
  const newest = state.data.series[name]?.findLast((value) => value != null) ?? null;
  return count ? [newest, least, sum / count, Math.max(most, ...(state.data.highest[name] ?? []).filter((value) => value != null))] : [null, null, null, null];
}

const nameOf = (name) => {
  const key = document.querySelector(`#charts [data-series="${name}"]`);
  const title = key?.closest("figure").querySelector("b").textContent;
  return key ? `${title}, ${[...key.childNodes].filter((node) => node.nodeType === 3).map((node) => node.nodeValue.trim()).join("")}` : name;
};

export function describe() { // each chart in a sentence, for those who can't see it
  for (const figure of document.querySelectorAll("#charts figure")) {
    const parts = [...figure.querySelectorAll("[data-series]")].flatMap((key) => {
      const values = figures(key.dataset.series);
      const [newest, least, , most] = values.map((value) => told(wordsOf(key.dataset.series), value));
      return values[0] === null ? [] : [`${nameOf(key.dataset.series).split(", ").at(-1)}: newest ${newest}, from ${least} to ${most}`];
    });
    figure.lastElementChild.setAttribute("aria-label", `${figure.querySelector("b").textContent}. ${parts.join("; ") || "nothing recorded"}.`);
  }
  if (by("charts-table").open) tabulate();
}

export function tabulate() {
  if (!state.data) return;
  const names = [...document.querySelectorAll("#charts [data-series]")].map((key) => key.dataset.series);
  by("charts-table").querySelector("tbody").replaceChildren(...names.map((name) => {
    const row = document.createElement("tr");
    const head = row.appendChild(document.createElement("th"));
    head.scope = "row";
    head.textContent = nameOf(name);
    for (const value of figures(name)) row.insertCell().textContent = told(wordsOf(name), value);
    return row;
  }));
}

export const lastOf = (button) => parseInt(button.dataset.last, 10) * UNITS[button.dataset.last.at(-1)];
