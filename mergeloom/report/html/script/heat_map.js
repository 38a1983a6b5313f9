/* Tensors of two models beside each other, by kind and layer: the darker, the further apart. */
const heat = (share) => `color-mix(in oklab, var(--heat1) ${(100 * Math.min(1, Math.max(0, share))).toFixed(0)}%, var(--heat0))`;

/* What a cell may show, of models that are called a and b. */
const measuresOf = (values, a, b) => {
  const found = [["difference", `‖${b}−${a}‖ / ‖${a}‖`], ["changed", "share of elements that are not equal"]];
  if (values.change_a !== null)
    found.push(["change_a", `‖${a}−base‖ / ‖base‖`], ["change_b", `‖${b}−base‖ / ‖base‖`], ["opposed", "changed by both, in opposite directions"]);
  return found;
};
const measured = (diff, measure) => diff.tensors.filter((pair) => pair.values && pair.values[measure] !== null);
const largestOf = (diff, measure) => measured(diff, measure).reduce((most, pair) => Math.max(most, pair.values[measure]), 1e-12);

/* most: what the darkest colour stands for. */
const heatMap = (parent, diff, measure, most, a, b) => {
  const pairs = measured(diff, measure);
  const kinds = [...new Set(pairs.filter((p) => p.layer !== null).map((p) => p.kind))];
  const outside = pairs.filter((p) => p.layer === null);
  const depth = pairs.reduce((deep, p) => Math.max(deep, (p.layer ?? -1) + 1), 0);
  const left = 270, row = 22, size = Math.min(40, (1100 - left) / Math.max(depth, 1));
  const svg = picture(parent, Math.max(left + depth * size, left + 60) + 8, (kinds.length + outside.length) * row + 34, "each tensor, by kind and layer; arrow keys lead from one to the next");
  const cell = (pair, x, y, wide) => {
    const rect = draw(svg, "rect", { class: "cell", x, y, width: wide, height: row, fill: heat(pair.values[measure] / most) });
    told(rect, () => {
      const v = pair.values;
      return `${pair.tensor}${pair.tensor_a ? `\nbeside ${pair.tensor_a}` : ""}\n‖${b}−${a}‖ / ‖${a}‖ ${percent(v.difference)}, cosine ${v.cosine?.toFixed(5) ?? "-"}, changed ${percent(v.changed)}` +
        (v.change_a === null ? "" : `\n${a} changed ${percent(v.change_a)}, ${b} ${percent(v.change_b)} of the base; opposed ${percent(v.opposed)}`);
    });
  };
  const label = (text, y) => draw(svg, "text", { x: left - 8, y: y + 15, "text-anchor": "end" }, text.length > 38 ? `…${text.slice(-37)}` : text);
  kinds.forEach((kind, i) => label(kind, i * row));
  const rows = new Map(kinds.map((kind, i) => [kind, i * row]));
  for (const pair of pairs) if (pair.layer !== null) cell(pair, left + pair.layer * size, rows.get(pair.kind), size);
  for (const value of ticks(0, depth, 12, 1, true)) if (value < depth) draw(svg, "text", { x: left + (value + 0.5) * size, y: kinds.length * row + 14, "text-anchor": "middle" }, `${value}`);
  outside.forEach((pair, i) => {
    const y = kinds.length * row + 24 + i * row;
    label(pair.tensor, y - 2);
    cell(pair, left, y - 4, 60);
  });
  steered(svg);
  legend(parent, most > 1e-12 ? [[heat(0), "0"], [heat(0.5), percent(most / 2)], [heat(1), percent(most)]] : [[heat(0), "0 everywhere"]]);
};
