// One incident: a slider goes through what was seen, and the address says which moment is shown. While the incident is open, more comes.

const byId = (id) => document.getElementById(id);
const scrub = byId("scrub");
const seen = byId("seen");
const cursor = byId("cursor");
const words = byId("scrub-words");
const path = location.pathname;
const WAIT_MS = 80;
const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
let told = "";
let moments = []; // [uptime, x in percent, words], oldest first
let here = -1; // the one that is shown
let asked = null;
let soon = 0;

const within = (index) => Math.max(0, Math.min(moments.length - 1, index));
// By uptime (0) or by x (1): the moment that is nearest.
const nearest = (value, column) => moments.reduce((best, moment, index) =>
  (Math.abs(moment[column] - value) < Math.abs(moments[best][column] - value) ? index : best), 0);

function lead(id, moment) { // beyond the first and the last one there is nothing
  const link = byId(id);
  if (moment) link.href = `${path}?at=${moment[0]}#seen`;
  else {
    if (document.activeElement === link) scrub.focus();
    link.removeAttribute("href");
  }
}

function point(index) {
  const [, x, said] = moments[index];
  here = index;
  scrub.value = 10 * x;
  scrub.setAttribute("aria-valuetext", said);
  cursor.setAttribute("x1", `${x}%`);
  cursor.setAttribute("x2", `${x}%`);
  words.textContent = said;
  lead("earlier", moments[index - 1]);
  lead("later", moments[index + 1]);
}

async function show([at, , said]) {
  asked?.abort();
  asked = new AbortController();
  try {
    const answer = await fetch(`${path}/seen?at=${at}`, { signal: asked.signal });
    if (!answer.ok) throw new Error(answer.status === 404 ? "it is no longer kept" : "it can't be fetched now");
    seen.innerHTML = await answer.text();
    seen.classList.remove("is-old");
    history.replaceState(null, "", `${path}?at=${at}`);
  } catch (error) {
    if (error.name !== "AbortError") words.textContent = `${said}: ${error instanceof TypeError ? "it can't be fetched now" : error.message}.`;
  }
}

function go(index) {
  point(index);
  seen.classList.add("is-old");
  clearTimeout(soon);
  soon = setTimeout(show, WAIT_MS, moments[index]);
}

function learn() { // what there is to be looked at: at the start, and whenever the axis has been drawn anew
  const text = byId("moments").value;
  if (text === told) return;
  const at = moments[here]?.[0] ?? scrub.dataset.at; // the first time, what the page came with
  const atEnd = here >= 0 && here === moments.length - 1;
  told = text;
  moments = JSON.parse(text);
  if (!moments.length) return;
  for (const part of [scrub, cursor, byId("steps-by")]) part.removeAttribute("hidden");
  if (at === undefined || (atEnd && Number(at) < moments.at(-1)[0])) go(moments.length - 1);
  else point(nearest(Number(at), 0));
}

scrub.addEventListener("input", () => go(nearest(Number(scrub.value) / 10, 1)));
scrub.addEventListener("keydown", (event) => { // a key goes to the next moment, however far that is
  if (!(event.key in STEPS)) return;
  event.preventDefault();
  go(within(here + STEPS[event.key]));
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-at], :is(#earlier, #later)[href]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (!link.dataset.at) return go(within(here + (link.id === "earlier" ? -1 : 1)));
  go(nearest(Number(link.dataset.at), 0));
  byId("axis").scrollIntoView();
  scrub.focus({ preventScroll: true });
});
new MutationObserver(learn).observe(byId("incident_axis"), { attributes: true, attributeFilter: ["value"], childList: true, subtree: true });
learn();
