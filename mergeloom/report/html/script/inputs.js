/* Inputs, and what is left out of them. */
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
