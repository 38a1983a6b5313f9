/* The configuration; a line of it lights up where a value leads there. */
const lines = [];
const light = (number) => {
  for (const line of lines) line.classList.remove("on");
  const found = lines[number - 1];
  if (!found) return;
  found.classList.add("on");
  found.scrollIntoView({ behavior: "smooth", block: "center" });
};
const configuration = () => {
  if (!details) return;
  const here = put(page, "section");
  const bar = put(here, "div", { class: "bar" });
  put(bar, "h2", {}, "Configuration");
  const copy = put(bar, "button", {}, "copy");
  copy.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(details.text); copy.textContent = "copied"; }
    catch { getSelection().selectAllChildren(box); copy.textContent = "selected: press Ctrl+C"; }
  });
  const box = put(here, "pre");
  details.text.replace(/\n$/, "").split("\n").forEach((text, i) => lines.push(put(box, "div", { "data-n": `${i + 1}` }, text)));
};
