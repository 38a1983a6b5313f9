/* Parameters over layers. */
const curves = () => {
  if (!details) return;
  const found = new Map();
  const add = (tensor, model, index) => {
    const value = details.values[index];
    if (typeof value.value !== "number" || value.level === "default") return;
    const key = [value.parameter, model ?? "", value.filter ?? "", value.line].join("\u0000");
    if (!found.has(key)) found.set(key, { ...value, model, points: new Map(), outside: [] });
    if (tensor.layer === null) found.get(key).outside.push(value.value);
    else found.get(key).points.set(tensor.layer, value.value);
  };
  const seen = new Set();
  for (const tensor of details.tensors) {
    if (seen.has(tensor.alike)) continue;
    seen.add(tensor.alike);
    for (const index of tensor.values) add(tensor, null, index);
    for (const input of tensor.inputs) for (const index of input.values) add(tensor, details.models[input.model], index);
  }
  if (!found.size) return;
  const here = section("Parameters over layers");
  const grid = put(here, "div", { class: "grid" });
  const parameters = new Map();
  for (const each of found.values()) {
    if (!parameters.has(each.parameter)) parameters.set(each.parameter, []);
    parameters.get(each.parameter).push(each);
  }
  for (const [parameter, lines] of parameters) {
    const box = put(grid, "div");
    put(box, "h3", {}, parameter);
    const called = (line) => [line.model, line.filter ? `'${line.filter}'` : lines.some((l) => l.filter) ? "all others" : null, line.line ? `line ${line.line}` : null].filter(Boolean).join(", ");
    const series = lines
      .map((line, i) => ({ name: called(line), colour: `var(--c${i % 8})`, points: [...line.points].sort((a, b) => a[0] - b[0]) }))
      .filter((line) => line.points.length);
    const values = lines.flatMap((line) => [...line.points.values(), ...line.outside]);
    const [low, high] = [Math.min(0, ...values), Math.max(...values, 0)];
    if (series.length)
      chart(box, { series, x: (v) => `${v}`, y: shown, low, high: high > low ? high : low + 1, start: 0, stop: Math.max(1, report.output.layers - 1), whole: true, label: `${parameter} over layers` });
    legend(box, series.map((line) => [line.colour, line.name]));
    const outside = [...new Set(lines.flatMap((line) => line.outside))];
    if (outside.length) put(box, "p", { class: "dim" }, `outside the layers: ${outside.map(shown).join(", ")}`);
  }
};
