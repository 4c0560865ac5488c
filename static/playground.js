// The playground: sends a prompt to the node's own API, shows the stream, and where its time went. Nothing is kept.

import { seconds, told, whole } from "./charts/words.js";

const byId = (id) => document.getElementById(id);
const place = byId("playground");
const SVG = "http://www.w3.org/2000/svg";
const itlTarget = Number(place.dataset.itlTargetS);
const ttftTarget = Number(place.dataset.ttftTargetS);
const ONE_STEP_MS = 0.5; // pieces that come closer are of one step, and no two that a reader waited for
let running = null;

// ---- words

const median = (values) => (values.length ? [...values].sort((a, b) => a - b)[values.length >> 1] : null);
const say = (text, bad = false) => {
  byId("try-state").textContent = text;
  byId("try-state").classList.toggle("is-bad", bad);
};

// ---- the request

const number = (id) => (byId(id).value.trim() === "" ? undefined : Number(byId(id).value));

function asked() {
  const body = { model: place.dataset.model, stream: true, max_tokens: number("tokens"), temperature: number("temperature"), seed: number("seed") };
  if (byId("kind").value === "chat") return ["/v1/chat/completions", { ...body, messages: [{ role: "user", content: byId("prompt").value }] }];
  return ["/v1/completions", { ...body, prompt: byId("prompt").value }];
}

const piece = (data) => {
  const choice = data.choices?.[0];
  return choice?.delta ? (choice.delta.content ?? choice.delta.reasoning_content ?? choice.delta.reasoning ?? "") : (choice?.text ?? "");
};

// Events end with an empty line; several may come at once, or a part of one.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const one of whole) {
      const data = one.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function refused(answer) {
  const said = await answer.json().catch(() => null);
  const later = answer.headers.get("retry-after");
  const message = said?.error?.message ?? `The node answers ${answer.status}.`;
  return new Error(message + (later ? ` Try again in ${later} s.` : ""));
}

async function send() {
  if (running) return;
  const [path, body] = asked();
  const seen = { began: performance.now(), first: null, last: null, pieces: 0, gaps: [] };
  running = new AbortController();
  begin();
  let id = null;
  try {
    const answer = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal: running.signal });
    id = answer.headers.get("x-request-id");
    if (answer.status < 500 && !answer.ok || answer.status === 503) id = null; // it got no further than the door
    if (!answer.ok) throw await refused(answer);
    for await (const data of events(answer.body)) {
      if (data.error) throw new Error(data.error.message ?? "The stream broke off.");
      const text = piece(data);
      if (text) came(seen, text);
    }
    say(seen.pieces ? "The answer is complete." : "The answer is empty.");
  } catch (error) {
    if (error.name === "AbortError") say("Stopped. The node has let go of it.");
    else if (error instanceof TypeError) say(seen.pieces ? "The stream broke off: the connection was lost." : "The node can't be reached.", true);
    else say(error.message, true);
  } finally {
    running = null;
    end(seen);
    if (id) await timeline(id);
  }
}

// ---- what is seen

function begin() {
  byId("answer").textContent = "";
  byId("answer").hidden = false;
  byId("server").hidden = true;
  byId("send").disabled = true;
  byId("stop").hidden = false;
  for (const id of ["ttft", "pieces", "rate", "itl", "gap", "total"]) byId(`saw-${id}`).textContent = "—";
  byId("spark").replaceChildren();
  byId("spark-top").textContent = "";
  say("Sent. Waiting for the first piece…");
}

function came(seen, text) {
  const now = performance.now();
  if (seen.first === null) {
    seen.first = now;
    say("The answer comes.");
  } else if (now - seen.last >= ONE_STEP_MS) {
    seen.gaps.push((now - seen.last) / 1000);
  }
  seen.last = now;
  seen.pieces += 1;
  const box = byId("answer");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  box.append(text);
  if (atEnd) box.scrollTop = box.scrollHeight;
  if (!seen.drawing) seen.drawing = requestAnimationFrame(() => { seen.drawing = 0; show(seen, now); });
}

function end(seen) {
  byId("send").disabled = false;
  byId("stop").hidden = true;
  cancelAnimationFrame(seen.drawing);
  show(seen, performance.now());
  if (!seen.pieces) byId("answer").hidden = true;
}

function show(seen, now) {
  const ttft = seen.first === null ? null : (seen.first - seen.began) / 1000;
  const since = seen.first === null ? 0 : (seen.last - seen.first) / 1000;
  byId("saw-ttft").textContent = told(seconds, ttft) + (ttft > ttftTarget ? ` ▲ target ${seconds(ttftTarget)}` : "");
  byId("saw-pieces").textContent = seen.pieces;
  byId("saw-rate").textContent = since > 0 ? ((seen.pieces - 1) / since).toFixed(1) : "—";
  byId("saw-itl").textContent = told(seconds, median(seen.gaps));
  byId("saw-gap").textContent = seen.gaps.length ? seconds(Math.max(...seen.gaps)) : "—";
  byId("saw-total").textContent = seconds((now - seen.began) / 1000);
  spark(seen.gaps);
}

const shape = (name, attributes) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

function spark(gaps) {
  if (gaps.length < 2) return;
  const top = Math.max(itlTarget, ...gaps) * 1.05;
  const y = (gap) => (60 * (1 - gap / top)).toFixed(1);
  const line = gaps.map((gap, index) => `${((300 * index) / (gaps.length - 1)).toFixed(1)} ${y(gap)}`).join("L");
  const target = shape("path", { class: "target", d: `M0 ${y(itlTarget)}H300` });
  byId("spark").replaceChildren(target, shape("path", { class: "line", d: `M${line}` }));
  byId("spark").setAttribute("aria-label", `${gaps.length} gaps, median ${seconds(median(gaps))}, longest ${seconds(Math.max(...gaps))}; target ${seconds(itlTarget)}`);
  byId("spark-top").textContent = `to ${seconds(top / 1.05)}; dashed: target ${seconds(itlTarget)}`;
}

// ---- the node's own word

async function timeline(id) {
  const answer = await fetch(`/api/requests/${encodeURIComponent(id)}`).catch(() => null);
  if (!answer?.ok) return;
  const found = await answer.json();
  const all = found.stages.reduce((sum, stage) => sum + stage.duration_s, 0);
  byId("server").hidden = false;
  byId("server-link").href = `/requests/${encodeURIComponent(id)}`;
  byId("server-link").textContent = `…${id.slice(-6)}`;
  waterfall(found.stages, all);
  for (const entry of document.querySelectorAll("#server [data-stage]")) {
    const stage = found.stages.find((one) => one.name === entry.dataset.stage);
    entry.hidden = !stage;
    entry.querySelector("b").textContent = told(seconds, stage?.duration_s);
  }
  facts([
    ["TTFT", told(seconds, found.ttft_s)],
    ["decoding", found.total_s == null || found.ttft_s == null ? "—" : seconds(found.total_s - found.ttft_s)],
    ["engines", found.split ? `${found.prefill_engine} → ${found.decode_engine}` : (found.prefill_engine ?? "—")],
    ["prompt tokens", told(whole, found.prompt_tokens)],
    ["handed over", found.transfer_bytes == null ? "—" : `${(found.transfer_bytes / 1e6).toFixed(1)} MB`],
    ["outcome", found.outcome],
  ]);
}

const stageWords = ({ name, duration_s }) => `${document.querySelector(`#server [data-stage="${name}"] span`)?.textContent ?? name} ${seconds(duration_s)}`;

function waterfall(stages, all) {
  const bar = byId("server-bar");
  bar.replaceChildren();
  let start = 0;
  for (const stage of stages) {
    const share = all ? (100 * stage.duration_s) / all : 0;
    const rect = shape("rect", { x: `${start}%`, width: `${share}%`, fill: `url(#fill-${stage.name})` });
    const title = shape("title", {});
    title.textContent = stageWords(stage);
    rect.append(title);
    bar.append(rect);
    start += share;
  }
  bar.setAttribute("aria-label", stages.map(stageWords).join(", "));
}

function facts(rows) {
  byId("server-facts").replaceChildren(...rows.map(([label, value]) => {
    const row = document.createElement("div");
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    dt.textContent = label;
    dd.textContent = value;
    row.append(dt, dd);
    return row;
  }));
}

// ---- start

byId("send").addEventListener("click", send);
byId("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && place.contains(event.target)) send();
});
