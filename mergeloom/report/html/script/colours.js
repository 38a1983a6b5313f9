/* The same colour for the same model, all over the page. */
const names = [];
const colour = (name) => {
  if (!names.includes(name)) names.push(name);
  return `var(--c${names.indexOf(name) % 8})`;
};
