// Requests held still: what is being read is a copy that no update touches, while the list goes on beneath it.

import { second } from "./charts/words.js";

const pause = document.getElementById("pause");
const live = document.getElementById("request_rows");
const said = document.getElementById("held");

function hold() {
  const copy = live.cloneNode(true);
  copy.id = "request_rows_held";
  copy.querySelectorAll("[id]").forEach((element) => element.removeAttribute("id"));
  live.hidden = true;
  live.after(copy);
  pause.textContent = "Go on";
  said.textContent = `Held still since ${second(new Date())}.`;
}

function goOn() {
  document.getElementById("request_rows_held").remove();
  live.hidden = false;
  pause.textContent = "Hold still";
  said.textContent = "";
}

pause.addEventListener("click", () => { // its words say what it will do: "pressed" would then say the opposite
  const held = "held" in pause.dataset;
  (held ? goOn : hold)();
  pause.toggleAttribute("data-held", !held);
});
