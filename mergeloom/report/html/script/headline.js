/* What a merge is, in a line and some figures, and what looks wrong. */
const headline = () => {
  const output = report.output;
  put(page, "h1", {}, report.configuration ? report.configuration.split("/").at(-1) : "a merge");
  const what = report.document === "merge" ? `merged into ${report.directory}` : "a plan: no weight was read yet";
  put(page, "p", { class: "dim" }, `${report.method} · ${what} · mergeloom ${report.program_version}`);
  const facts = put(page, "div", { class: "facts" });
  const fact = (value, text) => {
    const box = put(facts, "div", { class: "fact" });
    put(box, "b", {}, value);
    put(box, "span", {}, text);
  };
  if (output.layers) fact(`${output.layers}`, output.layers === 1 ? "layer" : "layers");
  fact(number(output.parameters), "parameters");
  fact(bytes(output.bytes), `${Object.keys(output.dtypes).slice(0, 2).join(" and ")} in ${plural(output.shards.length, "shard")}`);
  fact(bytes(report.io.read_bytes), "to read");
  if (report.document === "merge" && !report.was_finished) {
    fact(memory(report.measured.peak_rss_bytes), `peak memory, at most ${memory(report.memory.peak_bytes)} was said`);
    fact(duration(report.wall_seconds), "took the merge");
  } else {
    fact(memory(report.memory.peak_bytes), `of memory at most; works in ${memory(report.memory.minimum_bytes)}`);
    const { seconds, low_seconds: low, high_seconds: high } = report.time;
    fact(`about ${duration(seconds)}`, low ? `${duration(low)} to ${duration(high)}, judging by earlier merges here` : "or more, by assumed rates");
  }
};

const findings = () => {
  const found = [...report.warnings, ...(report.run_warnings ?? [])];
  if (!found.length) return;
  const here = section(found.length === 1 ? "A warning" : `${found.length} warnings`);
  for (const each of found.slice(0, 40)) {
    const place = each.place ? `${each.place.file}${each.place.line ? `:${each.place.line}` : ""}${each.place.path ? `: ${each.place.path}` : ""}` : "";
    put(here, "p", { class: "warning" }, [place, each.cause, each.remedy].filter(Boolean).join(": "));
  }
  if (found.length > 40) put(here, "p", { class: "dim" }, `and ${found.length - 40} more`);
};
