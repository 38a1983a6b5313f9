"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page");
  const tip = document.getElementById("tip");
  const SVG = "http://www.w3.org/2000/svg";

  // --- making elements ---------------------------------------------------------------------

  const put = (parent, name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    if (parent) parent.append(element);
    return element;
  };
  const draw = (parent, name, attributes = {}, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const section = (title) => {
    const found = put(page, "section");
    put(found, "h2", {}, title);
    return found;
  };
  const picture = (parent, width, height, label) =>
    draw(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const table = (parent, titles, rows, numbers = []) => {
    const found = put(put(parent, "div", { class: "scroll" }), "table");
    const kind = (i) => (numbers.includes(i) ? { class: "n" } : {});
    const head = put(put(found, "thead"), "tr");
    titles.forEach((title, i) => put(head, "th", kind(i), title));
    const body = put(found, "tbody");
    for (const row of rows) {
      const line = put(body, "tr");
      row.forEach((cell, i) => put(line, "td", kind(i), cell));
    }
  };
  const legend = (parent, items) => {
    const found = put(parent, "div", { class: "legend" });
    for (const [colour, text] of items) {
      const item = put(found, "span");
      put(item, "i", { style: `background:${colour}` });
      item.append(text);
    }
  };
  const told = (element, text, focused = true) => {
    const show = (x, y) => {
      tip.textContent = text();
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
      tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
    };
    if (focused) element.setAttribute("tabindex", "0");
    element.addEventListener("mousemove", (event) => show(event.clientX, event.clientY));
    element.addEventListener("focus", () => {
      const box = element.getBoundingClientRect();
      show(box.left, box.bottom - 14);
    });
    for (const event of ["mouseleave", "blur"]) element.addEventListener(event, () => (tip.hidden = true));
  };

  // --- numbers -----------------------------------------------------------------------------

  const scaled = (value, units) => {
    for (const [unit, size] of units) if (value >= size) return `${trim(value / size)} ${unit}`;
    return `${value}`;
  };
  const trim = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3).replace(/\.?0+$/, ""));
  const bytes = (value) => scaled(value, [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3], ["bytes", 1]]);
  const memory = (value) => scaled(value, [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["bytes", 1]]);
  const number = (value) => scaled(value, [["B", 1e9], ["M", 1e6], ["k", 1e3]]);
  const duration = (seconds) => {
    if (seconds < 60) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  };
  const clock = (seconds) => (seconds < 10 ? `${+seconds.toPrecision(2)} s` : duration(seconds));
  const percent = (value) => (value === null ? "-" : `${trim(100 * value)} %`);
  const layers = (range) => {
    if (!range) return "all of it";
    const [start, stop] = range;
    if (stop <= start) return "no layer";
    return stop - start === 1 ? `layer ${start}` : `layers ${start}-${stop - 1}`;
  };
  const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
  const shape = (sizes) => sizes.join("x") || "one number";
  const shown = (value) => (typeof value === "number" ? `${+value.toPrecision(6)}` : `${value}`);

  const names = [];
  const colour = (name) => {
    if (!names.includes(name)) names.push(name);
    return `var(--c${names.indexOf(name) % 8})`;
  };

  // --- charts ------------------------------------------------------------------------------

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

  // --- the parts of a merge ----------------------------------------------------------------

  const { report, details, diff } = data;

  /* Tensors are lines of numbers: positions of what they share, and the numbers in their names. */
  if (details) {
    const parts = details.templates.map((template) => template.split("\0"));
    const inputs = details.inputs.map((all) => all.map(([model, layer, tensor, base, values]) => ({ model, layer, tensor, base, values })));
    const lines = details.tensors ? details.tensors.split("\n") : [];
    details.tensors = lines.map((line) => {
      const [template, kind, own, ...numbers] = line.split(" ");
      const pieces = parts[template];
      let name = pieces[0];
      for (let i = 0; i < numbers.length; i++) name += numbers[i] + pieces[i + 1];
      const [shape, dtype, layer, how, because, values] = details.kinds[kind];
      return { name, shape, dtype, layer, how, because, values, inputs: inputs[own], alike: `${kind} ${own}` };
    });
  }

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
      const { seconds, measured, low_seconds: low, high_seconds: high } = report.time;
      fact(`about ${duration(seconds)}`, low ? `${duration(low)} to ${duration(high)}, as earlier estimates came true` : measured ? "by rates measured here" : "or more, by assumed rates");
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
    const svg = picture(parent, width, height, "output layers from left to right; what each is made of");
    const size = (width - left) / part.layers;
    for (const slice of part.slices) {
      const [start, stop] = slice.layers;
      slice.sources.forEach((source, row) => {
        const tall = (lanes * lane) / slice.sources.length;
        const y = row * tall + 4;
        const how = slice.how === "merged" ? `${stage.method} of ${slice.sources.length}` : slice.detail || slice.how;
        const paint = { y, height: tall - 2, fill: colour(source.model), opacity: source.base ? 0.55 : 1 };
        const band = draw(svg, "rect", { class: "cell", x: left + start * size, width: (stop - start) * size, ...paint });
        told(band, () => `output ${layers(slice.layers)}: ${how}\n${source.model}, ${layers(source.layers)}${source.base ? " (base)" : ""}`);
        for (let i = start; i < stop && part.layers <= 300; i++) {
          const from = source.layers ? source.layers[0] + i - start : null;
          const cell = draw(svg, "rect", { class: "cell", x: left + i * size, width: size, ...paint });
          told(cell, () => {
            const own = last && part.name === "default" ? tensorsOfLayer.get(i) ?? [] : [];
            const listed = own.slice(0, 12).join("\n") + (own.length > 12 ? `\nand ${own.length - 12} more` : "");
            return `output layer ${i}: ${how}\n${source.model}, layer ${from}${source.base ? " (base)" : ""}${listed ? `\n\n${listed}` : ""}`;
          }, false);
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
  };

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

  const memoryPicture = () => {
    const here = section("Memory and time");
    const grid = put(here, "div", { class: "grid" });
    if (details?.steps.length) {
      const box = put(grid, "div");
      put(box, "h3", {}, "planned: what merges need, as the output grows");
      const parts = [
        ["interpreter, libraries, scratch", () => details.overhead_bytes, "var(--c0)"],
        ["inputs kept for later merges", (step) => step.kept_bytes, "var(--c4)"],
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

  // --- what rounding to codes has lost -------------------------------------------------------

  const codes = () => {
    const errors = report.coding_errors ?? [];
    if (!errors.length) return;
    const here = section("Rounded to codes");
    put(here, "p", { class: "dim" }, `${plural(errors.length, "tensor")}, each with the length of what is written less what was computed, beside the length of that; the largest first.`);
    table(here, ["tensor", "relative error"], errors.slice(0, 40).map((each) => [each.tensor, `${(100 * each.error).toPrecision(3)} %`]), [1]);
    if (errors.length > 40) put(here, "p", { class: "dim" }, `and ${errors.length - 40} more, with ${(100 * errors.at(-1).error).toPrecision(3)} % at least`);
  };

  // --- what each thread did --------------------------------------------------------------------

  const lanes = () => {
    const all = details?.lanes ?? [];
    if (!all.length) return;
    const here = section("What each thread did");
    const [width, left, tall] = [1100, 92, 30];
    const stop = Math.max(...all.map((lane) => lane.busy.length * lane.seconds));
    const svg = picture(here, width, all.length * tall + 26, "how busy each thread was over time");
    const across = (seconds) => left + (seconds / stop) * (width - left - 8);
    const kinds = [...new Set(all.map((lane) => lane.title.replace(/ \d+$/, "")))];
    all.forEach((lane, row) => {
      const top = row * tall + 3, bottom = top + tall - 6;
      const paint = `var(--c${kinds.indexOf(lane.title.replace(/ \d+$/, "")) % 8})`;
      const mean = lane.busy.reduce((a, b) => a + b, 0) * lane.seconds / stop;
      draw(svg, "text", { x: left - 8, y: bottom - 6, "text-anchor": "end" }, lane.title);
      draw(svg, "rect", { x: left, y: top, width: across(stop) - left, height: bottom - top, fill: "var(--soft)" });
      let path = `M${left},${bottom}`;
      lane.busy.forEach((share, i) => {
        const y = (bottom - share * (bottom - top)).toFixed(1);
        path += `L${across(i * lane.seconds).toFixed(1)},${y}L${across((i + 1) * lane.seconds).toFixed(1)},${y}`;
      });
      draw(svg, "path", { d: `${path}L${across(lane.busy.length * lane.seconds).toFixed(1)},${bottom}Z`, fill: paint });
      const cover = draw(svg, "rect", { class: "cell", style: "stroke:none", x: left, y: top, width: across(stop) - left, height: bottom - top, fill: "transparent" });
      let under = null;
      told(cover, () => {
        const whole = `${lane.title}: busy ${percent(mean)} of the time`;
        if (under === null || under >= lane.busy.length) return whole;
        const name = details.tasks[lane.names[under]];
        return `${lane.title}, ${clock(under * lane.seconds)} to ${clock((under + 1) * lane.seconds)}: busy ${percent(lane.busy[under])}${name ? `\nlongest with ${name}` : ""}`;
      });
      cover.addEventListener("mousemove", (event) => {
        const box = cover.getBoundingClientRect();
        under = Math.floor(((event.clientX - box.left) / box.width) * stop / lane.seconds);
      }, true);
      cover.addEventListener("mouseleave", () => (under = null));
    });
    for (const value of ticks(0, stop, 8)) draw(svg, "text", { x: across(value), y: all.length * tall + 18, "text-anchor": value ? "middle" : "start" }, clock(value));
    put(here, "p", { class: "dim" }, "Height is the share of the time in which a thread was busy. Where readers or writers are always busy, storage decides; where workers are, arithmetic.");
  };

  // --- the table of tensors, drawn as far as it is seen --------------------------------------

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
        const line = put(null, "div", { class: rows[place] === chosen ? "row on" : "row", role: "option", style: `top:${place * height}px` });
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
      if (top < list.scrollTop) list.scrollTop = top;
      if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
      paint();
    };
    list.addEventListener("scroll", paint, { passive: true });
    list.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      choose(Math.max(0, Math.min(rows.length - 1, rows.indexOf(chosen) + step)));
    });
    search.addEventListener("input", find);
    find();
  };

  const inputs = () => {
    const here = section("Inputs, and what is left out of them");
    table(here, ["model", "where", "licence", "tensors", "bytes"], report.models.map((m) => [m.name, m.directory, m.licence ?? "not named", m.tensors.toLocaleString("en"), bytes(m.bytes)]), [3, 4]);
    if (report.unused_inputs.length) {
      put(here, "h3", {}, "not used");
      table(here, ["model", "what", "why", "tensors", "bytes"], report.unused_inputs.map((u) => [
        u.model, u.layers.length ? u.layers.map(layers).join(", ") : u.tensors.slice(0, 3).join(", ") + (u.tensors.length > 3 ? " …" : ""),
        u.reason, u.tensors.length.toLocaleString("en"), bytes(u.bytes)]), [3, 4]);
    } else put(here, "p", { class: "dim" }, "Every tensor of every input is used.");
  };

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

  // --- two models beside each other ----------------------------------------------------------

  const heat = (share) => `color-mix(in oklab, var(--heat1) ${(100 * Math.min(1, Math.max(0, share))).toFixed(0)}%, var(--heat0))`;
  const compared = () => {
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
    const measures = [["difference", "‖b−a‖ / ‖a‖"], ["changed", "share of elements that are not equal"]];
    if (diff.whole.change_a !== null) measures.push(["change_a", "‖a−base‖ / ‖base‖"], ["change_b", "‖b−base‖ / ‖base‖"], ["opposed", "changed by both, in opposite directions"]);
    here = section("Where they differ");
    const bar = put(here, "div", { class: "legend", role: "group", "aria-label": "what is shown" });
    const place = put(here, "div");
    const paint = (measure, title) => {
      for (const button of bar.children) button.setAttribute("aria-pressed", button.textContent === title);
      place.replaceChildren();
      put(place, "h3", {}, title);
      heatMap(place, measure);
    };
    for (const [measure, title] of measures) put(bar, "button", {}, title).addEventListener("click", () => paint(measure, title));
    paint(...measures[0]);
    here = section("Layer by layer");
    const own = diff.whole.change_a === null ? [] : ["change of a", "change of b", "cosine of changes", "opposed"];
    const line = (group) => [group.name, percent(group.values.difference), group.values.cosine === null ? "-" : group.values.cosine.toFixed(4), percent(group.values.changed),
      ...(own.length ? [percent(group.values.change_a), percent(group.values.change_b), group.values.change_cosine === null ? "-" : group.values.change_cosine.toFixed(4), percent(group.values.opposed)] : [])];
    table(here, ["", "‖b−a‖ / ‖a‖", "cosine", "changed", ...own], [{ name: "everything", values: diff.whole }, ...diff.layers].map(line), [1, 2, 3, 4, 5, 6, 7]);
  };
  const heatMap = (parent, measure) => {
    const pairs = diff.tensors.filter((pair) => pair.values && pair.values[measure] !== null);
    const kinds = [...new Set(pairs.filter((p) => p.layer !== null).map((p) => p.kind))];
    const outside = pairs.filter((p) => p.layer === null);
    const depth = Math.max(0, ...pairs.map((p) => (p.layer ?? -1) + 1));
    const most = Math.max(...pairs.map((p) => p.values[measure]), 1e-12);
    const left = 270, row = 22, size = Math.min(40, (1100 - left) / Math.max(depth, 1));
    const rows = kinds.length + outside.length;
    const svg = picture(parent, 1100, rows * row + 34, "each tensor, by kind and layer");
    const cell = (pair, x, y, wide) => {
      const rect = draw(svg, "rect", { class: "cell", x, y, width: wide, height: row, fill: heat(pair.values[measure] / most) });
      told(rect, () => {
        const v = pair.values;
        return `${pair.tensor}\n‖b−a‖/‖a‖ ${percent(v.difference)}, cosine ${v.cosine?.toFixed(5) ?? "-"}, changed ${percent(v.changed)}` +
          (v.change_a === null ? "" : `\na changed ${percent(v.change_a)}, b ${percent(v.change_b)} of the base; opposed ${percent(v.opposed)}`);
      });
    };
    const label = (text, y) => draw(svg, "text", { x: left - 8, y: y + 15, "text-anchor": "end" }, text.length > 38 ? `…${text.slice(-37)}` : text);
    kinds.forEach((kind, i) => label(kind, i * row));
    for (const pair of pairs) if (pair.layer !== null) cell(pair, left + pair.layer * size, kinds.indexOf(pair.kind) * row, size);
    for (const value of ticks(0, depth, 12, 1, true)) if (value < depth) draw(svg, "text", { x: left + (value + 0.5) * size, y: kinds.length * row + 14, "text-anchor": "middle" }, `${value}`);
    outside.forEach((pair, i) => {
      const y = kinds.length * row + 24 + i * row;
      label(pair.tensor, y - 2);
      cell(pair, left, y - 4, 60);
    });
    legend(parent, [[heat(0), "0"], [heat(0.5), percent(most / 2)], [heat(1), percent(most)]]);
  };

  // --- configuration -------------------------------------------------------------------------

  const lines = [];
  const light = (number) => {
    for (const line of lines) line.classList.remove("on");
    const found = lines[number - 1];
    if (!found) return;
    found.classList.add("on");
    found.scrollIntoView({ behavior: "smooth", block: "center" });
  };
  const configuration = () => {
    if (!details) return;
    const here = put(page, "section");
    const bar = put(here, "div", { class: "bar" });
    put(bar, "h2", {}, "Configuration");
    const copy = put(bar, "button", {}, "copy");
    copy.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(details.text); copy.textContent = "copied"; }
      catch { getSelection().selectAllChildren(box); copy.textContent = "selected: press Ctrl+C"; }
    });
    const box = put(here, "pre");
    details.text.replace(/\n$/, "").split("\n").forEach((text, i) => lines.push(put(box, "div", { "data-n": `${i + 1}` }, text)));
  };

  if (diff) compared();
  if (report) for (const part of [headline, findings, map, curves, memoryPicture, lanes, codes, tensorTable, inputs, family, configuration]) part();
  document.documentElement.dataset.ready = `${Math.round(performance.now())}`;
})();
