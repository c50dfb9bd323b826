// The data of the page. Rows are numbered; a column has one value for each row, null where it is missing.
const page = JSON.parse(document.getElementById("data").textContent);
const SOLVER = 0, FLOOR = 1, CEILING = 2;

// JSON has no infinity: it is encoded as text.
const decoded = (values) => values && values.map((value) => (typeof value === "string" ? Number(value) : value));
for (const name in page.numbers) page.numbers[name] = decoded(page.numbers[name]);
for (const name in page.boxes) page.boxes[name] = page.boxes[name].map(decoded);
page.comparisons.compression = decoded(page.comparisons.compression);

const comparisonOf = page.comparisons.row;
const rowsOf = page.comparisons.operator.map(() => []);
comparisonOf.forEach((comparison, row) => rowsOf[comparison].push(row));
const metrics = new Map(page.metrics.map((metric) => [metric.name, metric]));
const COST_LABELS = {
  seconds_per_image: "seconds per image", nfe: "NFE", operator_calls: "operator calls", peak_memory_mib: "peak MiB",
};

const text = (name, row) => page.texts[name]?.distinct[page.texts[name].codes[row]] ?? "";
const number = (name, row) => page.numbers[name]?.[row] ?? null;
const solverOf = (row) => text("solver", row);
const ran = (row) => text("status", row) === "ok";
const isReference = (row) => page.role[row] !== SOLVER;
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const unique = (values) => [...new Set(values)];

// The value of the ranking metric.
const quality = (row) => number(page.by, row);
const direction = (name) => metrics.get(name)?.direction ?? "lower";

// An element with attributes, listeners (on...) and children. Strings are text, never markup.
const element = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const drawn = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const note = (...texts) => element("p", { class: "note" }, texts);
