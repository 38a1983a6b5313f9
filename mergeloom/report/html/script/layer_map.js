/* Which layers of which model make which layers of the output. */
const tensorsOfLayer = new Map();
for (const tensor of details?.tensors ?? []) {
  if (!tensorsOfLayer.has(tensor.layer)) tensorsOfLayer.set(tensor.layer, []);
  tensorsOfLayer.get(tensor.layer).push(tensor.name);
}

const map = () => {
  const here = section("Which layers of which model");
  report.stages.forEach((stage, place) => {
    const last = place === report.stages.length - 1;
    if (report.stages.length > 1)
      put(here, "h3", {}, `stage ${place + 1}${stage.name ? ` '${stage.name}'` : ""}: ${stage.method}, ${last ? "the output" : "kept in memory"}`);
    for (const part of stage.parts) {
      if (part.name !== "default") put(here, "h3", {}, part.name);
      if (part.slices.length && part.layers) bands(here, stage, part, last);
      else for (const each of part.slices)
        put(here, "p", {}, `${each.how === "merged" ? stage.method : each.how}: ${each.sources.map((s) => s.model).join(", ")}`);
      put(here, "p", { class: "dim" }, inWords(part, stage));
    }
    for (const note of stage.notes) put(here, "p", { class: "dim" }, note);
  });
  legend(here, names.map((name) => [colour(name), name]));
};
const inWords = (part, stage) => {
  const slices = part.slices;
  if (slices.length > 1) return `${plural(slices.length, "slice")}, stacked one after the other: ${part.layers} layers`;
  const sources = slices.length ? slices[0].sources.length : 0;
  if (sources > 1) return `${sources} sources are merged with each other, layer by layer, by ${stage.method}`;
  return part.layers ? `${plural(part.layers, "layer")} of one model` : "";
};
const bands = (parent, stage, part, last) => {
  const width = 1100, left = 4, lane = 30;
  const lanes = Math.max(...part.slices.map((each) => each.sources.length));
  const height = lanes * lane + 40;
  const svg = picture(parent, width, height, "output layers from left to right; what each is made of; arrow keys lead from one to the next");
  const size = (width - left) / part.layers;
  for (const slice of part.slices) {
    const [start, stop] = slice.layers;
    slice.sources.forEach((source, row) => {
      const tall = (lanes * lane) / slice.sources.length;
      const y = row * tall + 4;
      const how = slice.how === "merged" ? `${stage.method} of ${slice.sources.length}` : slice.detail || slice.how;
      const paint = { y, height: tall - 2, fill: colour(source.model), opacity: source.base ? 0.55 : 1 };
      const band = draw(svg, "rect", { class: "cell", x: left + start * size, width: (stop - start) * size, ...paint });
      const single = part.layers <= 300; // more would be too narrow to point at
      if (!single) told(band, () => `output ${layers(slice.layers)}: ${how}\n${source.model}, ${layers(source.layers)}${source.base ? " (base)" : ""}`);
      for (let i = start; i < stop && single; i++) {
        const from = source.layers ? source.layers[0] + i - start : null;
        const cell = draw(svg, "rect", { class: "cell", x: left + i * size, width: size, ...paint });
        told(cell, () => {
          const own = last && part.name === "default" ? tensorsOfLayer.get(i) ?? [] : [];
          const listed = own.slice(0, 12).join("\n") + (own.length > 12 ? `\nand ${own.length - 12} more` : "");
          return `output layer ${i}: ${how}\n${source.model}, layer ${from}${source.base ? " (base)" : ""}${listed ? `\n\n${listed}` : ""}`;
        });
      }
      const wide = (stop - start) * size;
      const text = `${source.model.split("/").at(-1)}  ${source.layers ? `${source.layers[0]}-${source.layers[1] - 1}` : ""}`;
      const room = Math.floor((wide - 10) / 6.6);
      if (room > 4)
        draw(svg, "text", {
          x: left + start * size + 6, y: y + tall / 2 + 3, style: "fill:#fff;pointer-events:none;font-weight:600;paint-order:stroke;stroke:#0007;stroke-width:2.5px",
        }, text.length > room ? `${text.slice(0, room - 1)}…` : text);
    });
  }
  for (const value of ticks(0, part.layers, 12, 1, true))
    if (value < part.layers) draw(svg, "text", { x: left + (value + 0.5) * size, y: height - 18, "text-anchor": "middle" }, `${value}`);
  draw(svg, "text", { x: left, y: height - 2 }, "output layer");
  steered(svg);
};
