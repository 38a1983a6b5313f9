/* Which models and stages are made of which, and their licences. */
const family = () => {
  const stages = report.stages;
  const made = new Set(stages.map((stage) => stage.name).filter(Boolean));
  const parents = (stage) => [...new Set(stage.parts.flatMap((p) => p.slices.flatMap((s) => s.sources.map((x) => x.model))))];
  if (!stages.some((stage) => parents(stage).length > 1)) return;
  const here = section("Family tree");
  const roots = [...new Set(stages.flatMap(parents).filter((name) => !made.has(name)))];
  const licences = new Map(report.models.map((m) => [m.name, m.licence]));
  const columns = [roots.map((name) => ({ name, what: licences.get(name) ?? "no licence named" }))];
  stages.forEach((stage, i) => columns.push([{ name: stage.name ?? "the output", what: stage.method, from: parents(stage), last: i === stages.length - 1 }]));
  const wide = Math.min(260, 1100 / columns.length), tall = Math.max(...columns.map((c) => c.length)) * 46 + 10;
  const svg = picture(here, wide * columns.length, tall, "models and stages, and what is made of which");
  const at = new Map();
  columns.forEach((column, x) => column.forEach((node, y) => at.set(node.name, [x * wide + 4, (y + 0.5) * (tall / column.length)])));
  const ink = draw(svg, "g");
  for (const column of columns) for (const node of column) {
    const [x, y] = at.get(node.name);
    for (const parent of node.from ?? []) {
      const [px, py] = at.get(parent) ?? [0, 0];
      const [a, b] = [px + wide - 40, x];
      draw(ink, "path", { d: `M${a},${py} C${(a + b) / 2},${py} ${(a + b) / 2},${y} ${b},${y}`, fill: "none", stroke: "var(--line)", "stroke-width": 2 });
    }
    draw(svg, "rect", { x, y: y - 18, width: wide - 44, height: 36, rx: 6, fill: node.last ? "var(--accent)" : "var(--soft)", stroke: "var(--line)" });
    const room = Math.floor((wide - 60) / 6.6), text = node.name.length > room ? `…${node.name.slice(1 - room)}` : node.name;
    const label = draw(svg, "text", { x: x + 8, y: y - 1, class: "on", style: node.last ? "fill:var(--back)" : "" }, text);
    draw(label, "title", {}, node.name);
    draw(svg, "text", { x: x + 8, y: y + 13, style: node.last ? "fill:var(--back)" : "" }, node.what.length > room ? `${node.what.slice(0, room - 1)}…` : node.what);
  }
  const kinds = [...new Set(roots.map((name) => licences.get(name)).filter(Boolean))];
  if (kinds.length > 1) put(here, "p", { class: "warning" }, `The models are under different licences: ${kinds.join(", ")}. All of them hold for the output.`);
};
