/* The records that the page was made of. */
const data = JSON.parse(document.getElementById("data").textContent);
const { report, details } = data;

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
