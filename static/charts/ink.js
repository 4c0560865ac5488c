// Colours and patterns for canvases: those of app.css and of templates/patterns.html.

// The stages of a request, in their order: each has a pattern on every page.
export const STAGES = [...document.querySelectorAll('pattern[id^="fill-"]')].map(({ id }) => id.slice("fill-".length));
export const ink = {};

export function resolveInk() { // light-dark() is resolved by an element, not by a property's text
  const probe = document.body.appendChild(document.createElement("i"));
  for (const name of ["ink", "soft", "rule", "card", "paper", "prefill", "handoff", "decode", "ok", "bad", "focus"]) {
    probe.style.color = `var(--${name})`;
    ink[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  ink.font = getComputedStyle(document.body).fontFamily;
  ink.fills = Object.fromEntries(STAGES.map((stage) => [stage, fill(document.getElementById(`fill-${stage}`))]));
}

function fill(pattern) { // the same for a canvas
  const has = (part) => pattern.querySelector(`.${part}`) !== null;
  const tile = document.createElement("canvas");
  const size = (tile.width = tile.height = 8 * Math.max(1, Math.round(devicePixelRatio)));
  const pen = tile.getContext("2d");
  pen.fillStyle = pen.strokeStyle = getComputedStyle(pattern).color;
  if (has("hatch-line")) {
    pen.globalAlpha = 0.18;
    pen.fillRect(0, 0, size, size);
    pen.globalAlpha = 1;
    pen.lineWidth = size / 4.5;
    pen.beginPath();
    for (const at of [-size, 0, size]) {
      pen.moveTo(at - 2, size + 2);
      pen.lineTo(at + size + 2, -2);
    }
    pen.stroke();
  } else {
    pen.fillRect(0, 0, size, size);
    pen.fillStyle = ink.card;
    if (has("dot")) pen.fillRect(size / 2, size / 2, size / 5, size / 5);
    if (has("dash")) pen.fillRect(0, size / 2, size, Math.max(1, size / 9));
  }
  return pen.createPattern(tile, "repeat");
}
