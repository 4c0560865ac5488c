// Orders to the node: any element with data-order (JSON) or data-undo (a remedy's id) asks first, then gives it, and says what came of it.

const dialog = document.getElementById("order");
const given = document.getElementById("given");
const button = dialog.querySelector("[data-do]");
let question = null; // what the dialog asks now: what is confirmed is what is shown, whatever is still under way

function say(name, text) {
  const place = dialog.querySelector(`[data-place="${name}"]`);
  place.textContent = text ?? "";
  place.hidden = !text;
}

function askFirst({ order, undo, what, call, gain }) {
  question = undo ? { path: `/api/remedies/${encodeURIComponent(undo)}/undo` } : { path: "/api/remedies", body: order };
  say("what", what);
  say("call", call ?? (undo ? `POST /api/remedies/${undo}/undo` : ""));
  say("gain", gain);
  say("said", "");
  button.disabled = false;
  dialog.showModal();
}

async function give({ path, body }) { // whether it is done, and in words
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
  button.disabled = true;
  say("said", "Being done…");
  const [done, words] = await give(asked);
  const shown = dialog.open && asked === question; // else it was closed meanwhile, and may ask something else by now
  if (done || !shown) {
    given.className = done ? "unseen" : "note"; // what was done is seen on the page; what was not, nowhere else
    given.textContent = words;
  }
  if (!shown) return;
  if (done) return dialog.close();
  say("said", words);
  button.disabled = false;
}

document.addEventListener("click", (event) => {
  const asks = event.target.closest("[data-order], [data-undo]");
  if (asks) askFirst(asks.dataset);
});
button.addEventListener("click", confirmed);
dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
