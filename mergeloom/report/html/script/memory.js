/* Memory and time: planned, and measured. */
const memoryPicture = () => {
  const here = section("Memory and time");
  const grid = put(here, "div", { class: "grid" });
  if (details?.steps.length) {
    const box = put(grid, "div");
    put(box, "h3", {}, "planned: what merges need, as the output grows");
    const parts = [
      ["interpreter, libraries, scratch", () => details.overhead_bytes, "var(--c0)"],
      ["inputs held completely", (step) => step.kept_bytes, "var(--c4)"],
      ["inputs that stay through all passes", (step) => step.resident_bytes, "var(--c2)"],
      ["tiles in flight", (step) => step.moving_bytes, "var(--c1)"],
    ];
    const steps = [{ ...details.steps[0], written_bytes: 0 }, ...details.steps];
    const heights = steps.map(() => 0);
    const series = parts.map(([name, of, paint]) => ({
      name, colour: paint, area: true,
      points: steps.map((step, i) => [step.written_bytes, (heights[i] += of(step))]),
    })).reverse();
    const budget = report.memory.budget_bytes, most = Math.max(...heights, report.memory.peak_bytes);
    chart(box, {
      series, x: bytes, y: memory, start: 0, high: Math.max(most, budget <= 2 * most ? budget : 0) * 1.08,
      marks: [
        [report.memory.peak_bytes, `at most ${memory(report.memory.peak_bytes)}, with what is read ahead`],
        ...(budget <= 2 * most && budget > report.memory.peak_bytes * 1.1 ? [[budget, `budget ${memory(budget)}`]] : []),
      ],
      label: "planned memory", binary: true,
    });
    legend(box, parts.filter(([, of]) => steps.some((step) => of(step))).map(([name, , paint]) => [paint, name]));
    if (budget > 2 * most) put(box, "p", { class: "dim" }, `the budget is ${memory(budget)}`);
  }
  const samples = details?.samples ?? [];
  if (samples.length > 1) {
    let box = put(grid, "div");
    put(box, "h3", {}, "measured: memory of the process");
    chart(box, {
      series: [{ name: "memory", colour: "var(--c0)", points: samples.map((s) => [s.seconds, s.memory_bytes]) }],
      x: clock, y: memory, start: 0, high: report.memory.peak_bytes * 1.1,
      marks: [[report.memory.peak_bytes, `said: at most ${memory(report.memory.peak_bytes)}`]], label: "measured memory", binary: true,
    });
    box = put(grid, "div");
    put(box, "h3", {}, "measured: bytes read and written");
    chart(box, {
      series: [
        { name: "read", colour: "var(--c0)", points: samples.map((s) => [s.seconds, s.read_bytes]) },
        { name: "written", colour: "var(--c1)", points: samples.map((s) => [s.seconds, s.write_bytes]) },
      ],
      x: clock, y: bytes, start: 0, label: "bytes read and written over time",
    });
    legend(box, [["var(--c0)", "read"], ["var(--c1)", "written"]]);
  }
  const rows = [];
  if (report.document === "merge" && report.predicted) {
    rows.push(["read", bytes(report.measured.read_bytes), bytes(report.predicted.read_bytes)]);
    rows.push(["written", bytes(report.measured.write_bytes), bytes(report.predicted.write_bytes)]);
    rows.push(["peak memory", memory(report.measured.peak_rss_bytes), `at most ${memory(report.predicted.peak_bytes)}`]);
    rows.push(["time", duration(report.wall_seconds), `about ${duration(report.time.seconds)}`]);
    put(here, "h3", {}, "measured beside planned");
    table(here, ["", "measured", "planned"], rows, [1, 2]);
  }
  put(here, "p", { class: "dim" }, `The estimate: ${duration(report.time.storage_seconds)} of storage and ${duration(report.time.compute_seconds)} of arithmetic, side by side, in ${plural(report.workers, "worker")}.` + (report.io.repeated_bytes ? ` ${bytes(report.io.repeated_bytes)} are read again because memory is short.` : ""));
};
