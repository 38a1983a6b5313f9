/* The table of tensors, drawn as far as it is seen. */
const tensorTable = () => {
  if (!details?.tensors.length) return;
  const here = section(plural(details.tensors.length, "tensor"));
  const search = put(here, "input", { type: "search", placeholder: "a part of a name, a model, a method", "aria-label": "search tensors" });
  const count = put(here, "span", { class: "dim", style: "margin-left:12px" });
  const list = put(here, "div", { class: "list", tabindex: "0", role: "listbox", "aria-label": "tensors" });
  const inner = put(list, "div");
  const detail = put(here, "div", { class: "detail", "aria-live": "polite" });
  const height = 30;
  let rows = details.tensors.map((_, i) => i), chosen = -1;
  const made = (tensor) => tensor.inputs.map((i) => details.models[i.model] + (i.layer === null ? "" : ` ${i.layer}`)).join(" + ");
  const paint = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / height) - 5);
    const lines = [];
    for (let place = first; place < Math.min(rows.length, first + list.clientHeight / height + 12); place++) {
      const tensor = details.tensors[rows[place]];
      const on = rows[place] === chosen;
      const line = put(null, "div", { class: on ? "row on" : "row", id: `tensor-${rows[place]}`, role: "option", "aria-selected": on, style: `top:${place * height}px` });
      for (const text of [tensor.name, shape(tensor.shape), tensor.how, made(tensor)]) put(line, "span", { title: text }, text);
      line.addEventListener("click", () => choose(place));
      lines.push(line);
    }
    inner.replaceChildren(...lines);
  };
  const find = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (tensor) => { const text = `${tensor.name} ${tensor.how} ${made(tensor)}`.toLowerCase(); return words.every((word) => text.includes(word)); };
    rows = details.tensors.map((_, i) => i);
    if (words.length) rows = rows.filter((i) => fits(details.tensors[i]));
    inner.style.height = `${rows.length * height}px`;
    count.textContent = words.length ? `${rows.length.toLocaleString("en")} found` : "";
    list.scrollTop = 0;
    paint();
  };
  const value = (index) => {
    const found = details.values[index];
    const text = put(null, "div", {}, `${found.parameter} = ${shown(found.value)} `);
    const filter = found.filter === null ? "" : `, filter '${found.filter}'`;
    if (found.line) {
      const link = put(text, "button", {}, `${found.level}, line ${found.line}${filter}`);
      link.addEventListener("click", () => light(found.line));
    } else put(text, "span", { class: "dim" }, `(${found.level}${filter})`);
    return text;
  };
  const choose = (place) => {
    if (place < 0 || place >= rows.length) return;
    chosen = rows[place];
    const tensor = details.tensors[chosen];
    detail.replaceChildren();
    put(detail, "h3", {}, tensor.name);
    put(detail, "p", {}, `${shape(tensor.shape)} ${tensor.dtype}, ${tensor.because ? `copied: ${tensor.because}` : `by ${tensor.how}`}`);
    const found = (values) => { const cell = put(null, "div"); for (const index of values) cell.append(value(index)); return cell; };
    table(detail, ["from", "tensor", "layer", "parameters"], tensor.inputs.map((input) => [
      details.models[input.model] + (input.base ? " (base)" : ""), input.tensor ?? tensor.name,
      input.layer === null ? "" : `${input.layer}`, found(input.values)]));
    detail.append(found(tensor.values));
    const top = place * height;
    list.setAttribute("aria-activedescendant", `tensor-${chosen}`);
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
    paint();
  };
  list.addEventListener("scroll", paint, { passive: true });
  list.addEventListener("keydown", (event) => {
    const all = rows.length;
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -all, End: all }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(rows.length - 1, rows.indexOf(chosen) + step)));
  });
  search.addEventListener("input", find);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "ArrowDown") return;
    event.preventDefault();
    list.focus();
    choose(0);
  });
  find();
};
