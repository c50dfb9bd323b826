// Formatting of numbers and names.
const ARROWS = { higher: "↑", lower: "↓", none: "" };
const NO_VALUE = "–";

// The number of decimals with which the median value has `digits` significant digits; at most six.
function decimals(values, digits) {
  const sizes = values.filter((value) => isNumber(value) && value !== 0).map(Math.abs).sort((a, b) => a - b);
  if (!sizes.length) return 0;
  const typical = sizes[Math.floor(sizes.length / 2)];
  return Math.min(Math.max(digits - 1 - Math.floor(Math.log10(typical)), 0), 6);
}

// Fixed point; scientific with fewer than two significant digits, or more than seven digits before the point.
function fixed(value, places) {
  if (value === null || Number.isNaN(value)) return NO_VALUE;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const shown = size >= 10 ** (1 - places) && size < 1e7 ? value.toFixed(places) : value.toExponential(1);
  return shown.replace("-", "−").replace("e−", "e-").replace("e+", "e");
}

// Two significant digits, because timings are not more reproducible; integers in full.
function cost(value) {
  if (isNumber(value) && (Number.isInteger(value) || Math.abs(value) >= 100)) return String(Math.round(value));
  return fixed(value, decimals([value], 2));
}

// At most four digits, without trailing zeros.
const plain = (value) => String(Number(value.toPrecision(4))).replace("-", "−");

// The largest of 1, 2, 5, 10, 20 ... that is at most this length.
function roundLength(length) {
  const decade = 10 ** Math.floor(Math.log10(length));
  return Math.max(...[1, 2, 5].map((step) => step * decade).filter((step) => step <= length * (1 + 1e-9)));
}

function withUnit(name) {
  const unit = metrics.get(name)?.unit;
  return unit ? `${name} (${unit})` : COST_LABELS[name] || name;
}
const headed = (name) => `${withUnit(name)} ${ARROWS[direction(name)]}`.trim();

function shortened(label, length) {
  const half = length / 2;
  return label.length <= length ? label : `${label.slice(0, Math.ceil(half) - 1)}…${label.slice(-Math.floor(half))}`;
}
const count = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;

// "noise none · demo · 4 images · seed 0 · C = 4.00": the problem of a comparison without its operator.
function described(comparison) {
  const compression = page.comparisons.compression[comparison];
  return page.comparisons.context[comparison] + (compression === null ? "" : ` · C = ${fixed(compression, 2)}`);
}
