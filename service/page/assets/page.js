// What pages do beyond links and forms: sliders beside number fields, and buttons that copy. Pages work without it.
"use strict";

(() => {
  const STEPS = 400;

  /** Where the sliders of a field go from and to: its own limits, or those of the plan that is shown. */
  function boundsOf(name) {
    if (name === "sparsity") return [0, 0.95];
    const result = document.getElementById("result");
    const key = { memory_mib: "memoryMib", latency_ms: "latencyMs" }[name];
    const told = result && key ? result.dataset[key] : undefined;
    return told ? told.split(" ").map(Number) : null;
  }

  /** Three figures are finer than a hand drags. */
  function rounded(value, name) {
    return name === "sparsity" ? value.toFixed(3).replace(/0+$/, "").replace(/\.$/, "") : value.toPrecision(4);
  }

  function place(range, input, name) {
    const bounds = boundsOf(name);
    range.hidden = !bounds;
    if (!bounds) return;
    const [least, most] = bounds;
    range.dataset.least = least;
    range.dataset.most = most;
    const value = input.value === "" ? most : Number(input.value);
    range.value = Math.round(((value - least) / (most - least || 1)) * STEPS);
    range.setAttribute("aria-valuetext", input.value === "" ? "no limit" : input.value);
  }

  function addSlider(field) {
    const name = field.dataset.slider;
    if (!["sparsity", "memory_mib", "latency_ms"].includes(name)) return;
    const input = field.querySelector("input");
    const range = document.createElement("input");
    range.type = "range";
    range.min = 0;
    range.max = STEPS;
    range.setAttribute("aria-label", field.querySelector("label").firstChild.textContent.trim() + ", slider");
    field.append(range);
    place(range, input, name);
    range.addEventListener("input", () => {
      const least = Number(range.dataset.least);
      const most = Number(range.dataset.most);
      input.value = rounded(least + (range.value / STEPS) * (most - least), name);
      range.setAttribute("aria-valuetext", input.value);
      const radio = document.querySelector(`input[name=ask][value=${name === "sparsity" ? "sparsity" : "budget"}]`);
      radio.checked = true;
      input.form.dispatchEvent(new CustomEvent("slide"));
    });
    input.addEventListener("input", () => place(range, input, name));
    document.body.addEventListener("htmx:afterSettle", () => {
      if (document.activeElement !== range) place(range, input, name);
    });
  }

  function addCopyButtons(within) {
    if (!navigator.clipboard) return;
    for (const block of within.querySelectorAll("pre[data-copy]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "quiet copy";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
      block.before(button);
      block.removeAttribute("data-copy");
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("[data-slider]").forEach(addSlider);
    addCopyButtons(document);
    document.body.addEventListener("htmx:afterSettle", () => addCopyButtons(document));
    // Open details stay open when the plan under them changes.
    let open = null;
    document.body.addEventListener("htmx:beforeSwap", (event) => {
      open = [...event.detail.target.querySelectorAll("details")].map((x) => x.open);
    });
    document.body.addEventListener("htmx:afterSwap", () => {
      const now = document.querySelectorAll("#result details, #job details");
      if (open && open.length === now.length) now.forEach((x, i) => { x.open = open[i]; });
    });
  });
})();
