// Orders to the node: any element with data-order (JSON) or data-undo (a remedy's id) asks first, then gives it, and says what came of it.
"use strict";

const orderDialog = document.getElementById("order");

function askFirst(button) {
  const { order, undo, what, call, gain } = button.dataset;
  const say = (name, text) => {
    const place = orderDialog.querySelector(`[data-place="${name}"]`);
    place.textContent = text ?? "";
    place.hidden = !text;
  };
  say("what", what);
  say("call", call ?? (undo ? `POST /api/remedies/${undo}/undo` : ""));
  say("gain", gain);
  say("said", "");
  orderDialog.dataset.path = undo ? `/api/remedies/${encodeURIComponent(undo)}/undo` : "/api/remedies";
  orderDialog.dataset.body = undo ? "" : order;
  orderDialog.querySelector("[data-do]").disabled = false;
  orderDialog.showModal();
}

async function give() {
  const said = orderDialog.querySelector('[data-place="said"]');
  const button = orderDialog.querySelector("[data-do]");
  const tell = (text) => {
    said.textContent = text;
    said.hidden = false;
  };
  button.disabled = true;
  tell("Being done…");
  try {
    const headers = { "content-type": "application/json", "hx-request": "true" };
    const answer = await fetch(orderDialog.dataset.path, { method: "POST", headers, body: orderDialog.dataset.body || undefined });
    const body = await answer.json();
    if (answer.ok) {
      orderDialog.close();
      document.getElementById("given").textContent = `Done: ${body.remedy.sentence}`; // for those who don't see it appear
      return;
    }
    tell(`Not done: ${body.error?.message ?? answer.status}`);
  } catch {
    tell("Not done: the appliance does not answer.");
  }
  button.disabled = false;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-order], [data-undo]");
  if (button) askFirst(button);
});
orderDialog.querySelector("[data-do]").addEventListener("click", give);
orderDialog.querySelector("[data-close]").addEventListener("click", () => orderDialog.close());
