/* Lines and stacked areas over an axis. */
/* Round numbers from low to high: of a unit (binary sizes), or whole ones (layers). */
const ticks = (low, high, most, unit = 1, whole = false) => {
  const span = (high - low || 1) / unit;
  let step = 10 ** Math.floor(Math.log10(span / most));
  for (const factor of [1, 2, 5, 10]) if (span / (step * factor) <= most) { step *= factor; break; }
  step = (whole ? Math.max(1, Math.round(step)) : step) * unit;
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step)
    found.push(+value.toPrecision(12));
  return found;
};
/* Lines or stacked areas over x. series: {name, colour, points: [[x, y]], area, dashed}. */
const chart = (parent, { series, x, y, low = 0, high, start, stop, marks = [], label, binary, whole, height = 190 }) => {
  const [width, left, bottom, top] = [560, 64, 30, 10];
  const svg = picture(parent, width, height, label);
  const all = series.flatMap((each) => each.points);
  start ??= Math.min(...all.map((p) => p[0]));
  stop ??= Math.max(...all.map((p) => p[0]));
  high ??= Math.max(...all.map((p) => p[1]), ...marks.map((mark) => mark[0]), low + 1e-9);
  const unit = binary ? (high >= 2 ** 30 ? 2 ** 30 : 2 ** 20) : 1;
  const [first, next] = ticks(low, high, 4, unit);
  if (next !== undefined) high = Math.ceil(high / (next - first) - 1e-9) * (next - first);
  const across = (value) => left + ((value - start) / (stop - start || 1)) * (width - left - 8);
  const up = (value) => height - bottom - ((value - low) / (high - low || 1)) * (height - bottom - top);
  for (const value of ticks(low, high, 4, unit)) {
    draw(svg, "line", { class: "axis", x1: left, x2: width - 8, y1: up(value), y2: up(value) });
    draw(svg, "text", { x: left - 8, y: up(value) + 4, "text-anchor": "end" }, y(value));
  }
  for (const value of ticks(start, stop, 6, 1, whole))
    draw(svg, "text", { x: across(value), y: height - 10, "text-anchor": "middle" }, x(value));
  for (const each of series) {
    const path = each.points.map(([px, py]) => `${across(px).toFixed(1)},${up(py).toFixed(1)}`).join(" ");
    if (each.area) {
      const first = across(each.points[0][0]), last = across(each.points.at(-1)[0]);
      draw(svg, "polygon", { points: `${first},${up(low)} ${path} ${last},${up(low)}`, fill: each.colour });
    } else {
      draw(svg, "polyline", {
        class: "curve", points: path, fill: "none", stroke: each.colour, "stroke-width": 2,
        "stroke-linejoin": "round", ...(each.dashed ? { "stroke-dasharray": "5 4" } : {}),
      });
      if (each.points.length <= 60)
        for (const [px, py] of each.points) {
          const dot = draw(svg, "circle", { cx: across(px), cy: up(py), r: 3, fill: each.colour });
          told(dot, () => `${each.name}\n${x(px)}: ${y(py)}`, false);
        }
    }
  }
  for (const [value, name] of marks) {
    draw(svg, "line", {
      x1: left, x2: width - 8, y1: up(value), y2: up(value), stroke: "var(--c7)", "stroke-dasharray": "6 4",
    });
    draw(svg, "text", { x: width - 10, y: up(value) - 4, "text-anchor": "end", class: "on" }, name);
  }
  return svg;
};
