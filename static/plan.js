// Applying a layout: what it will do, a question, and what the node says. What it brought comes with the page's live part.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const dialog = byId("apply");
  let layout = "";

  async function post(path, body) {
    const headers = { "content-type": "application/json", "hx-request": "true" }; // the node notes that it was the page
    const answer = await fetch(path, { method: "POST", headers, body: body && JSON.stringify(body) });
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(said.error?.message ?? `The node answers ${answer.status}.`);
    return said.remedy;
  }

  function ask(button) {
    layout = button.dataset.layout;
    byId("apply-layout").textContent = layout;
    byId("apply-what").textContent = button.dataset.what;
    byId("apply-result").textContent = "";
    byId("apply-do").hidden = false;
    byId("apply-close").textContent = "Cancel";
    dialog.showModal();
  }

  async function apply() {
    byId("apply-do").disabled = true;
    try {
      const remedy = await post("/api/topology", { topology: layout });
      byId("apply-result").textContent = `Done: ${remedy.sentence} What it brings is shown here in half a minute.`;
      byId("apply-do").hidden = true;
      byId("apply-close").textContent = "Close";
      byId("apply-close").focus();
    } catch (error) {
      byId("apply-result").textContent = `It was not applied: ${error.message}`;
    } finally {
      byId("apply-do").disabled = false;
    }
  }

  async function undo(button) {
    button.disabled = true;
    try {
      await post(`/api/remedies/${encodeURIComponent(button.dataset.undo)}/undo`);
    } catch (error) {
      button.textContent = error.message;
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.layout) ask(button);
    else if (button.dataset.undo) undo(button);
    else if (button.id === "apply-do") apply();
    else if (button.id === "apply-close") dialog.close();
  });
  document.addEventListener("htmx:after:swap", () => byId("curves")?.removeAttribute("aria-busy"));
})();
