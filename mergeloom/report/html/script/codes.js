/* What rounding to codes has lost. */
const codes = () => {
  const errors = report.coding_errors ?? [];
  if (!errors.length) return;
  const here = section("Rounded to codes");
  put(here, "p", { class: "dim" }, `${plural(errors.length, "tensor")}, each with ‖written − computed‖ / ‖computed‖; the largest first.`);
  table(here, ["tensor", "relative error"], errors.slice(0, 40).map((each) => [each.tensor, `${(100 * each.error).toPrecision(3)} %`]), [1]);
  if (errors.length > 40) put(here, "p", { class: "dim" }, `and ${errors.length - 40} more, with ${(100 * errors.at(-1).error).toPrecision(3)} % at least`);
};
