// What is painted on the plots besides lines: stacks and boxes, targets, and what happened.

import { ink, STAGES } from "./ink.js";
import { columnOf, state, shownChanges } from "./state.js";
import { clamp } from "./words.js";

const FULL = 0.9; // of an engine's KV

const at = (u, time) => u.valToPos(time, "x", true);

function clipped(u, how) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  how(ctx, bbox);
  ctx.restore();
}

function bars(u, low, high, paint) { // a box for each step with a value
  const y = (value) => u.valToPos(value, "y", true);
  const half = state.data.step / 2;
  u.ctx.beginPath();
  for (let step = 0; step < u.data[0].length; step++) {
    const [from, to] = [low(step), high(step)];
    if (to == null || to <= from) continue;
    const x = Math.round(at(u, u.data[0][step] - half));
    const right = Math.round(at(u, u.data[0][step] + half));
    u.ctx.rect(x, y(to), Math.max(1, right - x), y(from) - y(to));
  }
  u.ctx.fillStyle = paint;
  u.ctx.fill();
}

export function stack(u) {
  const below = new Float64Array(u.data[0].length);
  clipped(u, () => {
    for (const stage of STAGES) {
      const column = columnOf(`ttft_${stage}_s`);
      bars(u, (step) => below[step], (step) => (column[step] == null ? null : below[step] + column[step]), ink.fills[stage]);
      for (let step = 0; step < below.length; step++) below[step] += column[step] ?? 0;
    }
  });
}

export function area(u) {
  const peaks = state.data.highest.queue_depth;
  clipped(u, (ctx) => {
    bars(u, () => 0, (step) => u.data[1][step], ink.fills.queue);
    if (!peaks) return;
    const edge = 1.2 * devicePixelRatio * (u.scales.y.max / u.bbox.height);
    const peak = (step) => (peaks[step] == null ? null : Math.max(edge, peaks[step])); // none waiting is a line, too
    bars(u, (step) => peak(step) - edge, peak, ink.ink);
  });
}

export function heat(u) { // ten depths of one ink; what is full has a line on top
  clipped(u, (ctx) => {
    const half = state.data.step / 2;
    const boxes = Array.from({ length: 12 }, () => []);
    state.data.engines.forEach((name, row) => {
      const [high, low] = [u.valToPos(row, "y", true), u.valToPos(row + 1, "y", true)];
      const [y, height] = [Math.min(high, low) + devicePixelRatio, Math.abs(low - high) - 2 * devicePixelRatio];
      state.data.series[name].forEach((share, step) => {
        if (share == null) return;
        const x = Math.round(at(u, u.data[0][step] - half));
        const width = Math.max(1, Math.round(at(u, u.data[0][step] + half)) - x);
        boxes[clamp(Math.round(share * 10), 0, 10)].push([x, y, width, height]);
        if (share >= FULL) boxes[11].push([x, y, width, 2 * devicePixelRatio]);
      });
    });
    boxes.forEach((some, depth) => {
      ctx.globalAlpha = depth === 11 ? 1 : 0.09 + 0.085 * depth;
      ctx.fillStyle = depth === 11 ? ink.bad : ink.prefill;
      ctx.beginPath();
      some.forEach((box) => ctx.rect(...box));
      ctx.fill();
    });
  });
}

export function paintTarget(u, target, words) {
  if (target == null) return;
  const y = u.valToPos(target, "y", true);
  const { ctx, bbox } = u;
  const above = target > u.scales.y.max;
  ctx.save();
  ctx.font = `${11 * devicePixelRatio}px ${ink.font}`;
  ctx.fillStyle = ctx.strokeStyle = ink.ink;
  ctx.textAlign = "right";
  const text = `target ${words(target)}${above ? ", far above" : ""}`;
  const place = [bbox.left + bbox.width - 3 * devicePixelRatio, above ? bbox.top + 10 * devicePixelRatio : y - 5 * devicePixelRatio];
  const wide = ctx.measureText(text).width;
  ctx.save();
  ctx.fillStyle = ink.paper;
  ctx.globalAlpha = 0.8;
  ctx.fillRect(place[0] - wide - 2, place[1] - 10 * devicePixelRatio, wide + 4, 12 * devicePixelRatio);
  ctx.restore();
  ctx.fillText(text, ...place);
  if (!above) {
    ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
  }
  ctx.restore();
}

export function paintNothing(u) { // where one chart has nothing while others do
  const { ctx, bbox } = u;
  ctx.save();
  ctx.font = `${12 * devicePixelRatio}px ${ink.font}`;
  ctx.fillStyle = ink.soft;
  ctx.textAlign = "center";
  ctx.fillText("nothing recorded in this time", bbox.left + bbox.width / 2, bbox.top + bbox.height / 2);
  ctx.restore();
}

export function paintMarks(u) { // incidents as bands with edges, changes as dots on a line
  clipped(u, (ctx, bbox) => {
    ctx.setLineDash([]);
    ctx.lineWidth = devicePixelRatio;
    for (const { opened, closed } of state.marks.incidents) {
      const [x, right] = [at(u, opened), at(u, closed ?? state.data.now)];
      ctx.fillStyle = ctx.strokeStyle = ink.bad;
      ctx.globalAlpha = 0.09;
      ctx.fillRect(x, bbox.top, Math.max(2, right - x), bbox.height);
      ctx.globalAlpha = 0.5;
      ctx.strokeRect(x, bbox.top - 5, Math.max(2, right - x), bbox.height + 10);
    }
    ctx.globalAlpha = 0.8;
    ctx.strokeStyle = ink.soft;
    ctx.setLineDash([devicePixelRatio, 3 * devicePixelRatio]);
    ctx.beginPath();
    for (const { time } of shownChanges()) {
      ctx.moveTo(at(u, time), bbox.top);
      ctx.lineTo(at(u, time), bbox.top + bbox.height);
    }
    ctx.stroke();
  });
}
