/* How far the output is from each model that it was made of. */
const inputsDiff = () => {
  const found = (data.compared?.inputs ?? []).filter((each) => each.whole);
  if (!found.length) {
    const adapter = report.output.shards.some((shard) => shard.name.startsWith("adapter_")); // only factors
    if (report.document === "merge" && details && !adapter && !data.compared)
      put(section("How far the output is from its inputs"), "p", { class: "dim" }, `mergeloom report ${report.directory} --diff --html FILE reads the weights and shows it here.`);
    return;
  }
  const here = section("How far the output is from its inputs");
  const based = found.some((each) => each.base);
  put(here, "p", { class: "dim" }, `Each tensor of the output beside those that it was made of${based ? "; changes are of the base" : ""}.`);
  table(here, ["input", "‖output−input‖ / ‖input‖", "cosine", "changed", ...(based ? ["cosine of changes", "opposed"] : [])], found.map((each) => {
    const v = each.whole;
    return [each.a.name, percent(v.difference), cosine(v.cosine), percent(v.changed), ...(based ? [cosine(v.change_cosine), percent(v.opposed)] : [])];
  }), [1, 2, 3, 4, 5]);
  const bars = [put(here, "div", { style: "margin-top:14px" }), put(here, "div")];
  const place = put(here, "div");
  let one = found[0], measure = "difference";
  const paint = () => {
    const measures = measuresOf(one.whole, "input", "output");
    if (!measures.some(([name]) => name === measure)) measure = "difference";
    for (const bar of bars) bar.replaceChildren();
    choice(bars[0], "input", found.map((each) => [each, each.a.name]), one, (picked) => { one = picked; paint(); });
    choice(bars[1], "what is shown", measures, measure, (picked) => { measure = picked; paint(); });
    place.replaceChildren();
    put(place, "h3", {}, `${one.a.name}: ${measures.find(([name]) => name === measure)[1]}`);
    // One scale for all inputs, so that they can be compared.
    const most = Math.max(...found.map((each) => largestOf(each, measure)));
    heatMap(place, one, measure, most, "input", "output");
  };
  paint();
  const layered = new Map();
  for (const each of found) for (const group of each.layers) layered.set(group.layer ?? -1, group.name);
  put(here, "h3", {}, "layer by layer: ‖output−input‖ / ‖input‖");
  const of = (each, layer) => each.layers.find((group) => (group.layer ?? -1) === layer);
  table(here, ["", ...found.map((each) => each.a.name)], [...layered].sort((x, y) => x[0] - y[0]).map(([layer, name]) => [
    name, ...found.map((each) => percent(of(each, layer)?.values.difference ?? null))]), found.map((_, i) => i + 1));
};
