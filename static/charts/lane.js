// What happened: incidents and changes above the charts, on their axis, and as a list.

import { bounds, by, state, shownChanges } from "./state.js";
import { clamp, clock } from "./words.js";

const spellWords = (one) => `Incident ${one.id}, ${clock(one.opened, true)} ${one.closed ? `to ${clock(one.closed, true)}` : "until now"}\n${one.summary}`;

function groups() { // changes whose marks would lie on each other share one
  const [from, to] = bounds();
  const near = (24 * (to - from)) / Math.max(1, by("charts-lane").clientWidth);
  const found = [];
  for (const change of shownChanges()) {
    const last = found.at(-1);
    if (last && change.time - last.at(-1).time < near) last.push(change);
    else found.push([change]);
  }
  return found;
}

export function drawMarks() {
  const focused = by("charts-lane").contains(document.activeElement);
  const spells = state.marks.incidents.map((one) => {
    const link = document.createElement("a");
    link.className = "spell";
    link.href = `/incidents/${one.id}`;
    return dressed(link, spellWords(one), [one.opened, one.closed]);
  });
  const changes = groups().map((some) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "change";
    button.textContent = some.length > 1 ? `${some.length}` : "▾";
    const lines = some.slice(-6).map((one) => `${clock(one.time, true)}  ${one.sentence}`);
    if (some.length > 6) lines.unshift(`${some.length - 6} more before:`);
    return dressed(button, lines.join("\n"), [some[0].time, null]);
  });
  const all = [...spells, ...changes].sort((one, other) => one.begins - other.begins);
  all.forEach((mark, index) => (mark.tabIndex = index === all.length - 1 ? 0 : -1)); // one stop; arrows go on from there
  by("charts-lane").replaceChildren(...all);
  if (focused) all.at(-1)?.focus();
  placeMarks();
  summarise();
}

function dressed(mark, words, [begins, ends]) {
  Object.assign(mark, { begins, ends, words });
  mark.setAttribute("aria-label", words.replaceAll("\n", "; "));
  return mark;
}

export function placeMarks() {
  if (!state.data) return;
  const [from, to] = bounds();
  const share = (time) => (100 * (time - from)) / (to - from);
  for (const mark of by("charts-lane").children) {
    const band = mark.className === "spell";
    const [left, right] = [share(mark.begins), band ? share(mark.ends ?? state.data.now) : share(mark.begins)];
    mark.hidden = right < 0 || left > 100;
    mark.style.left = `${band ? Math.max(0, left) : left}%`;
    if (band) mark.style.width = `${Math.min(100, right) - Math.max(0, left)}%`;
  }
}

export function showTip(mark) {
  const tip = by("charts-tip");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.words;
  const [box, around] = [mark.getBoundingClientRect(), by("charts-plots").getBoundingClientRect()];
  tip.style.left = `${clamp(box.left - around.left, 0, Math.max(0, around.width - tip.offsetWidth))}px`;
}

function summarise() {
  const several = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  const { incidents, changes } = state.marks;
  by("charts-list").firstElementChild.textContent =
    incidents.length + changes.length ? `${several(incidents.length, "incident")} and ${several(changes.length, "change")} in this time` : "No incident and no change in this time";
  if (by("charts-list").open) listMarks();
}

export function listMarks() {
  const items = [...state.marks.incidents.map((one) => ({ time: one.opened, words: spellWords(one).replace("\n", ": "), href: `/incidents/${one.id}` })),
    ...state.marks.changes.map((one) => ({ time: one.time, words: one.sentence }))].sort((one, other) => other.time - one.time).slice(0, 200);
  by("charts-list").lastElementChild.replaceChildren(...items.map(({ time, words, href }) => {
    const item = document.createElement("li");
    const when = item.appendChild(document.createElement("time"));
    when.dateTime = new Date(time * 1000).toISOString();
    when.textContent = clock(time, true);
    const text = item.appendChild(document.createElement(href ? "a" : "span"));
    if (href) text.href = href;
    text.textContent = words;
    return item;
  }));
}
