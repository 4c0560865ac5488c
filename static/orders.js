// Orders to the node: any element with data-order (JSON) or data-undo (a remedy's id) asks first, then gives it, and says what came of it.
"use strict";

const orderDialog = document.getElementById("order");
let question = null; // what the dialog asks now: what is confirmed is what is shown, whatever is still under way

const orderPlace = (name) => orderDialog.querySelector(`[data-place="${name}"]`);

function sayInOrder(name, text) {
  orderPlace(name).textContent = text ?? "";
  orderPlace(name).hidden = !text;
}

function tell(words, done) { // what was done is seen on the page; what was not, nowhere else
  const given = document.getElementById("given");
  given.className = done ? "unseen" : "note";
  given.textContent = words;
}

function askFirst({ order, undo, what, call, gain }) {
  question = undo ? { path: `/api/remedies/${encodeURIComponent(undo)}/undo` } : { path: "/api/remedies", body: order };
  sayInOrder("what", what);
  sayInOrder("call", call ?? (undo ? `POST /api/remedies/${undo}/undo` : ""));
  sayInOrder("gain", gain);
  sayInOrder("said", "");
  orderDialog.querySelector("[data-do]").disabled = false;
  orderDialog.showModal();
}

async function give({ path, body }) { // how it ended: whether it is done, and in words
  try {
    const headers = { "content-type": "application/json", "hx-request": "true" };
    const answer = await fetch(path, { method: "POST", headers, body });
    const told = await answer.json();
    return answer.ok ? [true, `Done: ${told.remedy.sentence}`] : [false, `Not done: ${told.error?.message ?? answer.status}`];
  } catch {
    return [false, "Not done: the appliance does not answer."];
  }
}

async function confirmed() {
  const asked = question;
  const button = orderDialog.querySelector("[data-do]");
  button.disabled = true;
  sayInOrder("said", "Being done…");
  const [done, words] = await give(asked);
  const shown = orderDialog.open && asked === question; // else it was closed meanwhile, and may ask something else by now
  if (done || !shown) tell(words, done);
  if (!shown) return;
  if (done) return orderDialog.close();
  sayInOrder("said", words);
  button.disabled = false;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-order], [data-undo]");
  if (button) askFirst(button.dataset);
});
orderDialog.querySelector("[data-do]").addEventListener("click", confirmed);
orderDialog.querySelector("[data-close]").addEventListener("click", () => orderDialog.close());
