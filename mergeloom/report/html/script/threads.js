/* What each thread did. */
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
  steered(svg);
  put(here, "p", { class: "dim" }, "Height is the share of the time in which a thread was busy. Where readers or writers are always busy, storage decides; where workers are, arithmetic.");
};
