// Colours and patterns for canvases: those of app.css and of templates/patterns.html.

export const STAGES = ["queue", "prefill_wait", "prefill_compute", "handoff_wait", "transfer", "decode_wait", "first_step"];
export const ink = {};

export function resolveInk() { // light-dark() is resolved by an element, not by a property's text
  const probe = document.body.appendChild(document.createElement("i"));
  for (const name of ["ink", "soft", "rule", "card", "paper", "prefill", "handoff", "decode", "ok", "bad", "focus"]) {
    probe.style.color = `var(--${name})`;
    ink[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  ink.font = getComputedStyle(document.body).fontFamily;
  const of = { queue: "soft", prefill: "prefill", handoff: "handoff", transfer: "handoff", decode: "decode", first: "decode" };
  ink.fills = Object.fromEntries(STAGES.map((stage) => [stage, fill(stage, ink[of[stage.split("_")[0]]])]));
}

function fill(stage, colour) { // the patterns of templates/patterns.html, for a canvas
  const tile = document.createElement("canvas");
  const size = (tile.width = tile.height = 8 * Math.max(1, Math.round(devicePixelRatio)));
  const pen = tile.getContext("2d");
  pen.fillStyle = pen.strokeStyle = colour;
  if (/wait|queue/.test(stage)) {
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
    if (stage === "transfer") pen.fillRect(size / 2, size / 2, size / 5, size / 5);
    if (stage === "first_step") pen.fillRect(0, size / 2, size, Math.max(1, size / 9));
  }
  return pen.createPattern(tile, "repeat");
}
