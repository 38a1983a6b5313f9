/* Numbers as people read them. */
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
const cosine = (value) => (value === null ? "-" : value.toFixed(4));
const layers = (range) => {
  if (!range) return "all of it";
  const [start, stop] = range;
  if (stop <= start) return "no layer";
  return stop - start === 1 ? `layer ${start}` : `layers ${start}-${stop - 1}`;
};
const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const shape = (sizes) => sizes.join("x") || "one number";
const shown = (value) => (typeof value === "number" ? `${+value.toPrecision(6)}` : `${value}`);
