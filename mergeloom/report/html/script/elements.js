/* Making elements, pictures, tables, and the box that tells of what the pointer or the focus is on. */
const page = document.getElementById("page");
const tip = document.getElementById("tip");
const SVG = "http://www.w3.org/2000/svg";

const put = (parent, name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  if (parent) parent.append(element);
  return element;
};
const draw = (parent, name, attributes = {}, text) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
};
const section = (title) => {
  const found = put(page, "section");
  put(found, "h2", {}, title);
  return found;
};
/* As wide as there is room, at most as wide as its letters are drawn for; where they would be too
   small to read, it is scrolled. */
const picture = (parent, width, height, label) =>
  draw(put(parent, "div", { class: "scroll" }), "svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, style: `max-width:${width}px;--least:${Math.min(width, 640) * 0.85}px`,
  });
const table = (parent, titles, rows, numbers = []) => {
  const found = put(put(parent, "div", { class: "scroll" }), "table");
  const kind = (i) => (numbers.includes(i) ? { class: "n" } : {});
  const head = put(put(found, "thead"), "tr");
  titles.forEach((title, i) => put(head, "th", kind(i), title));
  const body = put(found, "tbody");
  for (const row of rows) {
    const line = put(body, "tr");
    row.forEach((cell, i) => put(line, "td", kind(i), cell));
  }
};
const legend = (parent, items) => {
  const found = put(parent, "div", { class: "legend" });
  for (const [colour, text] of items) {
    const item = put(found, "span");
    put(item, "i", { style: `background:${colour}` });
    item.append(text);
  }
};
const told = (element, text, focused = true) => {
  const show = (x, y) => {
    tip.textContent = text();
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
  };
  element.addEventListener("mousemove", (event) => show(event.clientX, event.clientY));
  element.addEventListener("mouseleave", () => (tip.hidden = true));
  if (!focused) return; // what listens to the focus in a picture is a stop of the Tab key
  element.setAttribute("tabindex", "0");
  element.addEventListener("focus", () => {
    const box = element.getBoundingClientRect();
    show(box.left, box.bottom - 14);
  });
  element.addEventListener("blur", () => (tip.hidden = true));
};
addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

/* Buttons of which one is chosen. items: [value, text]. The chosen one keeps the focus that the
   one before it had, since a choice draws them anew. */
const choice = (parent, label, items, chosen, pick) => {
  const bar = put(parent, "div", { class: "legend", role: "group", "aria-label": label });
  for (const [value, text] of items) {
    const button = put(bar, "button", { "aria-pressed": value === chosen }, text);
    button.addEventListener("click", () => {
      pick(value);
      const again = [...parent.querySelectorAll("button")].find((each) => each.textContent === text);
      again?.focus();
    });
  }
};

/* One stop of the Tab key for a whole picture; within it arrow keys lead to the nearest thing on
   that side that has something to tell. */
const steered = (svg) => {
  const all = [...svg.querySelectorAll("[tabindex]")];
  all.forEach((each, i) => each.setAttribute("tabindex", i ? "-1" : "0"));
  const middle = (element) => {
    const box = element.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  svg.addEventListener("keydown", (event) => {
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (!way || !all.includes(event.target)) return;
    event.preventDefault();
    const [x, y] = middle(event.target);
    let best = null, least = Infinity;
    for (const each of all) {
      const [cx, cy] = middle(each), along = (cx - x) * way[0] + (cy - y) * way[1];
      const aside = Math.abs((cx - x) * way[1]) + Math.abs((cy - y) * way[0]);
      if (along > 1 && along + 4 * aside < least) [best, least] = [each, along + 4 * aside];
    }
    if (!best) return;
    event.target.setAttribute("tabindex", "-1");
    best.setAttribute("tabindex", "0");
    best.focus();
  });
};
