// What is shown, and the tasks in which it is: one job each, so that none is long.

export const AXIS = 56; // px on the left of each plot, and
export const RIGHT = 16; // on its right: the lane's margins in charts.css are the same
export const state = {
  view: { last: 3600 }, // {last} up to now, or {from, to}
  data: null, // columns, each with a value for every step
  bare: false, // nothing at all is known of the time that is shown
  marks: { changes: [], incidents: [] },
  targets: {},
  latest: null, // what the live stream has told last
  hovered: null, // index of the step under the pointer
};

export const by = (id) => document.getElementById(id);
export const bounds = () => (state.view.last ? [state.data.now - state.view.last, state.data.now] : [state.view.from, state.view.to]);
export const plotWidth = () => Math.max(1, document.querySelector(".plot").clientWidth - AXIS - RIGHT);
export const middles = () => state.data.begin.map((time) => time + state.data.step / 2);
export const columnOf = (name) => state.data.series[name] ?? state.data.begin.map(() => null);
export const shownChanges = () => state.marks.changes.filter((one) => one.kind !== "ready"); // an engine's restart has a mark already

const jobs = new Map();
const bell = new MessageChannel();
bell.port1.onmessage = () => {
  const [name, job] = jobs.entries().next().value ?? [];
  if (!name) return;
  jobs.delete(name);
  job();
  if (jobs.size) bell.port2.postMessage(0);
};

export function later(name, job) {
  if (!jobs.size) bell.port2.postMessage(0);
  jobs.set(name, job);
}
