"use strict";
// Filters, order and copying; the pages are whole without it.
const form = document.querySelector(".filters");
if (form) {
  const list = document.querySelector(".cards");
  const none = document.querySelector(".none");
  const count = form.querySelector(".count");
  const cards = [...list.children].map((element) => ({
    element, ...element.dataset, scores: JSON.parse(element.dataset.scores),
  }));
  const choices = new URLSearchParams(location.hash.slice(1));
  for (const select of form.querySelectorAll("select"))
    if ([...select.options].some((o) => o.value === choices.get(select.name))) select.value = choices.get(select.name);

  const update = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const score = (card) => card.scores.find(
      (s) => (!wanted.protocol || s.protocol === wanted.protocol) && (!wanted.network || s.network === wanted.network));
    const orders = {
      name: (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }),
      accuracy: (a, b) => (score(b)?.mean ?? -1) - (score(a)?.mean ?? -1),
      bytes: (a, b) => a.bytes - b.bytes,
      date: (a, b) => b.date.localeCompare(a.date),
    };
    cards.sort(orders[wanted.sort]);
    let shown = 0;
    for (const card of cards) {
      const one = score(card);
      const measured = !(wanted.protocol || wanted.network) || one;
      const visible = Boolean((!wanted.source || card.source === wanted.source) && (!wanted.ipc || card.ipc === wanted.ipc) && measured);
      card.element.hidden = !visible;
      shown += visible;
      if (one) {
        const [text, label] = [card.element.querySelector(".score b"), card.element.querySelector(".score span")];
        text.textContent = one.text;
        label.textContent = one.label;
      }
      list.append(card.element);
    }
    none.hidden = shown > 0;
    count.textContent = `${shown} of ${cards.length} sets`;
    const chosen = new URLSearchParams(Object.entries(wanted).filter(([key, value]) => value && value !== "name"));
    history.replaceState(null, "", chosen.size ? `#${chosen}` : location.pathname + location.search);
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.querySelector(".reset").addEventListener("click", () => {
    form.reset();
    for (const select of form.querySelectorAll("select")) select.selectedIndex = 0;
    update();
    form.querySelector("select").focus();
  });
  form.hidden = false;
  update();
}
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // not on pages of a file
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
