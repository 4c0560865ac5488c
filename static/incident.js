// One incident: a slider goes through what was seen, and the address says which moment is shown.
"use strict";

(() => {
  const scrub = document.getElementById("scrub");
  if (!scrub) return;
  const moments = JSON.parse(scrub.dataset.moments); // [uptime, x in percent, words]
  const seen = document.getElementById("seen");
  const cursor = document.getElementById("cursor");
  const words = document.getElementById("scrub-words");
  const path = location.pathname;
  const WAIT_MS = 80;
  const at = new URLSearchParams(location.search).get("at");
  const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
  let here = 0;
  let asked = null;
  let soon = 0;

  const step = (id, index) => {
    const link = document.getElementById(id);
    if (!link) return;
    const moment = moments[Math.max(0, Math.min(moments.length - 1, index))];
    link.href = `${path}?at=${moment[0]}#seen`;
  };

  function point(index) {
    const [, x, said] = moments[index];
    here = index;
    scrub.value = 10 * x;
    scrub.setAttribute("aria-valuetext", said);
    cursor.setAttribute("x1", `${x}%`);
    cursor.setAttribute("x2", `${x}%`);
    words.textContent = said;
    step("earlier", index - 1);
    step("later", index + 1);
  }

  async function show(index) {
    asked?.abort();
    asked = new AbortController();
    const at = moments[index][0];
    try {
      const answer = await fetch(`${path}/seen?at=${at}`, { signal: asked.signal });
      if (!answer.ok) throw new Error(answer.statusText);
      seen.innerHTML = await answer.text();
      seen.classList.remove("is-old");
      history.replaceState(null, "", `${path}?at=${at}`);
    } catch (error) {
      if (error.name !== "AbortError") words.textContent = `${moments[index][2]}: it can't be fetched now.`;
    }
  }

  function go(index) {
    point(index);
    seen.classList.add("is-old");
    clearTimeout(soon);
    soon = setTimeout(() => show(index), WAIT_MS);
  }

  // By uptime or by x: the moment that is nearest.
  const nearest = (value, column) => moments.reduce((best, moment, index) =>
    (Math.abs(moment[column] - value) < Math.abs(moments[best][column] - value) ? index : best), 0);
  const within = (index) => Math.max(0, Math.min(moments.length - 1, index));

  here = at === null ? nearest(Number(scrub.value) / 10, 1) : nearest(Number(at), 0);
  scrub.hidden = false;
  scrub.addEventListener("input", () => go(nearest(Number(scrub.value) / 10, 1)));
  scrub.addEventListener("keydown", (event) => { // a key goes to the next moment, however far that is
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    go(within(here + STEPS[event.key]));
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-at], #earlier, #later");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    if (!link.dataset.at) return go(within(here + (link.id === "earlier" ? -1 : 1)));
    go(nearest(Number(link.dataset.at), 0));
    document.getElementById("axis").scrollIntoView();
    scrub.focus({ preventScroll: true });
  });
})();
