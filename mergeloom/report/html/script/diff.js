/* Two models beside each other. */
const compared = () => {
  const diff = data.diff;
  put(page, "h1", {}, `${diff.a.name} and ${diff.b.name}`);
  put(page, "p", { class: "dim" }, `${diff.base ? `beside their base ${diff.base.name} · ` : ""}mergeloom ${diff.program_version}`);
  let here = section("The models");
  const rows = [["a", diff.a], ["b", diff.b], ["base", diff.base]].filter(([, model]) => model);
  table(here, ["", "model", "layers", "tensors", "parameters", "types"], rows.map(([role, m]) => [role, m.name, `${m.layers}`, m.tensors.toLocaleString("en"), number(m.parameters), Object.keys(m.dtypes).join(", ")]), [2, 3, 4]);
  for (const [name, only] of [[diff.a.name, diff.only_a], [diff.b.name, diff.only_b]])
    if (only.length) put(here, "p", { class: "warning" }, `only in ${name}: ${only.slice(0, 8).join(", ")}${only.length > 8 ? ` and ${only.length - 8} more` : ""}`);
  if (diff.settings.length) {
    put(here, "h3", {}, "config.json differs");
    table(here, ["key", "a", "b"], diff.settings.map((s) => [s.key, JSON.stringify(s.a), JSON.stringify(s.b)]));
  }
  if (!diff.whole) return;
  here = section("Where they differ");
  const bar = put(here, "div");
  const place = put(here, "div");
  const measures = measuresOf(diff.whole, "a", "b");
  const paint = (measure) => {
    bar.replaceChildren();
    choice(bar, "what is shown", measures, measure, paint);
    place.replaceChildren();
    put(place, "h3", {}, measures.find(([name]) => name === measure)[1]);
    heatMap(place, diff, measure, largestOf(diff, measure), "a", "b");
  };
  paint("difference");
  here = section("Layer by layer");
  const based = diff.whole.change_a !== null;
  const line = ({ name, values: v }) => [name, percent(v.difference), cosine(v.cosine), percent(v.changed),
    ...(based ? [percent(v.change_a), percent(v.change_b), cosine(v.change_cosine), percent(v.opposed)] : [])];
  const titles = ["", "‖b−a‖ / ‖a‖", "cosine", "changed", ...(based ? ["change of a", "change of b", "cosine of changes", "opposed"] : [])];
  table(here, titles, [{ name: "everything", values: diff.whole }, ...diff.layers].map(line), [1, 2, 3, 4, 5, 6, 7]);
};
