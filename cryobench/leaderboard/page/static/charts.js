// Plots as SVG, drawn as wide as their place is, and again when that changes.
const MOST_SERIES = 14;
const HEIGHT = 300;
const EDGE = { top: 12, right: 16, bottom: 50, left: 56 };

// A figure whose picture is drawn by draw(svg, width) -> height, once it is in the page.
function plot(title, description, draw, ...below) {
  const picture = drawn("svg", { role: "img", "aria-label": `${title}. ${description}` });
  const area = element("div", { class: "area" }, picture);
  let width = 0;
  new ResizeObserver(() => {
    const found = Math.floor(area.clientWidth);
    if (!found || found === width) return;
    width = found;
    picture.replaceChildren(drawn("title", {}, title), drawn("desc", {}, description));
    const height = draw(picture, width);
    const sizes = { width, height, viewBox: `0 0 ${width} ${height}` };
    for (const [name, value] of Object.entries(sizes)) picture.setAttribute(name, value);
  }).observe(area);
  return element("figure", { class: "plot" }, element("figcaption", {}, title), area, below);
}

function linear(low, high, from, to) {
  const span = high - low || Math.abs(high) || 1;
  const [first, last] = high > low ? [low, high] : [low - span / 2, high + span / 2];
  const scale = (value) => from + ((value - first) / (last - first)) * (to - from);
  scale.ticks = (most) => {
    const step = [1, 2, 5, 10].map((unit) => unit * 10 ** Math.floor(Math.log10((last - first) / most)))
      .find((size) => (last - first) / size <= most);
    const found = [];
    for (let k = Math.ceil(first / step - 1e-9); k * step <= last + 1e-9 * step; k++) {
      found.push(Number((k * step).toPrecision(10)));
    }
    return found;
  };
  return scale;
}

function logarithmic(low, high, from, to) {
  const inner = linear(Math.log10(low), Math.log10(high), from, to);
  const scale = (value) => inner(Math.log10(value));
  scale.ticks = (most) => {
    for (const units of [[1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k++) {
        const decade = units.map((unit) => unit * 10 ** k);
        found.push(...decade.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001));
      }
      if (found.length <= most && found.length > 1) return found.map((tick) => Number(tick.toPrecision(3)));
    }
    return [low, high];
  };
  return scale;
}

// A scale over these numbers with a margin; logarithmic where they are all positive and far apart.
function scaleOver(values, from, to, far = Infinity) {
  const low = Math.min(...values), high = Math.max(...values);
  if (low > 0 && high / low > far) return logarithmic(low / 1.3, high * 1.3, from, to);
  const margin = (high - low) * 0.06;
  return linear(low - margin, high + margin, from, to);
}

function along(svg, scale, ticks, width, height, label) {
  for (const tick of ticks) {
    const x = scale(tick.at);
    svg.append(drawn("line", { class: "grid", x1: x, x2: x, y1: EDGE.top, y2: height - EDGE.bottom }),
      drawn("text", { class: "tick", x, y: height - EDGE.bottom + 15, "text-anchor": "middle" }, tick.text));
    const below = { class: "tick faint", x, y: height - EDGE.bottom + 28, "text-anchor": "middle" };
    if (tick.below) svg.append(drawn("text", below, tick.below));
  }
  const middle = (EDGE.left + width - EDGE.right) / 2;
  svg.append(drawn("text", { class: "axis", x: middle, y: height - 6, "text-anchor": "middle" }, label));
}

function upward(svg, scale, width, height, label) {
  for (const tick of scale.ticks(6)) {
    const y = scale(tick);
    svg.append(drawn("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y, y2: y }),
      drawn("text", { class: "tick", x: EDGE.left - 7, y: y + 4, "text-anchor": "end" }, plain(tick)));
  }
  const middle = (EDGE.top + height - EDGE.bottom) / 2;
  const turned = `translate(13 ${middle}) rotate(-90)`;
  svg.append(drawn("text", { class: "axis", transform: turned, "text-anchor": "middle" }, label));
}

const plainTicks = (scale, most) => scale.ticks(most).map((at) => ({ at, text: plain(at) }));

// Ticks at these very places, without those whose numbers would touch.
function ticksAt(values, scale, gap = 34) {
  const kept = [];
  for (const at of values) if (!kept.length || Math.abs(scale(at) - scale(kept.at(-1))) >= gap) kept.push(at);
  return kept.map((at) => ({ at, text: plain(Number(at.toPrecision(3))) }));
}

const path = (points) => points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function line(row, points) {
  const mark = markOf(row);
  return drawn("path", { d: path(points), class: `line ${mark.colour}`, "stroke-dasharray": mark.dash || null });
}

// A point with its interval; what it is appears under the pointer.
function point(row, x, y, low, high, told) {
  const bar = low !== null && high !== null
    && drawn("line", { class: `whisker ${markOf(row).colour}`, x1: x, x2: x, y1: low, y2: high });
  return drawn("g", { class: "point" }, drawn("title", {}, told), bar, marker(row, x, y));
}

const ends = (row, name, scale) =>
  ["_lo", "_hi"].map((end) => number(name + end, row)).map((value) => (isNumber(value) ? scale(value) : null));
const spans = (rows, name) =>
  rows.flatMap((row) => ["", "_lo", "_hi"].map((end) => number(name + end, row))).filter(isNumber);

// The rows that a plot has room for: the first ones, and the references always.
const fitting = (rows) => rows.filter((row, place) => place < MOST_SERIES || isReference(row));

// Quality over the operators of a family: a line for each solver.
function curvePlot(curve, rows) {
  const shown = new Set(rows);
  const series = new Map();
  for (const [comparison, x] of curve.stands) {
    for (const row of rowsOf[comparison]) {
      if (!shown.has(row) || !ran(row) || !isNumber(quality(row))) continue;
      if (!series.has(nameOf(row))) series.set(nameOf(row), []);
      series.get(nameOf(row)).push([x, row]);
    }
  }
  const lines = [...series.values()].slice(0, MOST_SERIES);
  const drawnRows = lines.flat().map(([, row]) => row);
  if (!drawnRows.length) return null;
  const title = `${headed(page.by)} on ${curve.family}`;
  const description = `${curve.context}. A line for each of ${count(lines.length, "solver")}, with 95% intervals.`;
  return plot(title, description, (svg, width) => {
    const xs = curve.stands.map(([, x]) => x);
    const x = scaleOver(xs, EDGE.left, width - EDGE.right, 3);
    const y = scaleOver(spans(drawnRows, page.by), HEIGHT - EDGE.bottom, EDGE.top);
    along(svg, x, ticksAt(xs, x), width, HEIGHT, curve.label);
    upward(svg, y, width, HEIGHT, withUnit(page.by));
    for (const places of lines) {
      svg.append(line(places[0][1], places.map(([at, row]) => [x(at), y(quality(row))])));
      for (const [at, row] of places) {
        svg.append(point(row, x(at), y(quality(row)), ...ends(row, page.by, y),
          `${nameOf(row)}, ${page.comparisons.operator[comparisonOf[row]]}: ${plain(quality(row))}`));
      }
    }
    return HEIGHT;
  }, legend(lines.map((places) => places[0][1])), note(description));
}

// Fourier ring correlations, mean over the images of each row.
function frcPlot(comparison, rows) {
  const known = fitting(rows.filter((row) => page.frc[row]));
  if (!known.length) return null;
  const size = page.comparisons.pixel_size[comparison];
  const side = page.comparisons.side[comparison];
  const unit = size ? "Å" : "pixels";
  const description = `Mean over images for ${count(known.length, "row")}; dashed the threshold 1/2 against a truth, `
    + "dotted 1/7 between half maps.";
  return plot("Fourier ring correlation with the truth", description, (svg, width) => {
    const frequency = (ring) => (ring + 1) / side / (size || 1);
    const last = Math.max(...known.map((row) => page.frc[row].length)) - 1;
    const x = linear(0, frequency(last), EDGE.left, width - EDGE.right);
    const y = linear(Math.min(0, ...known.flatMap((row) => page.frc[row])) / 1000, 1, HEIGHT - EDGE.bottom, EDGE.top);
    const length = (at) => `${plain(Number((1 / at).toPrecision(2)))} ${size ? "Å" : "px"}`;
    const ticks = plainTicks(x, width > 420 ? 7 : 4)
      .map((tick) => ({ ...tick, below: tick.at ? length(tick.at) : "" }));
    along(svg, x, ticks, width, HEIGHT, size ? "spatial frequency (1/Å)" : "spatial frequency (cycles/pixel)");
    upward(svg, y, width, HEIGHT, "FRC");
    for (const [level, dash] of [[1 / 2, "6 4"], [1 / 7, "2 3"]]) {
      const at = { x1: EDGE.left, x2: width - EDGE.right, y1: y(level), y2: y(level) };
      svg.append(drawn("line", { class: "threshold", "stroke-dasharray": dash, ...at }));
    }
    for (const row of known) {
      const curve = line(row, page.frc[row].map((value, ring) => [x(frequency(ring)), y(value / 1000)]));
      const told = metrics.has("frc") && isNumber(number("frc", row)) ? `, 1/2 at ${plain(number("frc", row))} Å` : "";
      curve.append(drawn("title", {}, nameOf(row) + told));
      svg.append(curve);
    }
    return HEIGHT;
  }, legend(known), note(`Frequency with its length in ${unit} below. ${description}`));
}

// Quality against a cost, with the front of rows that no other is at least as good as in both.
function costPlot(rows, costName) {
  const known = rows.filter((row) =>
    page.role[row] !== CEILING && isNumber(quality(row)) && isNumber(number(costName, row)));
  const better = direction(page.by) === "lower" ? (a, b) => a < b : (a, b) => a > b;
  const front = [];
  const cheapest = (a, b) =>
    number(costName, a) - number(costName, b) || (better(quality(a), quality(b)) ? -1 : 1);
  for (const row of [...known].sort(cheapest)) {
    if (!front.length || better(quality(row), quality(front.at(-1)))) front.push(row);
  }
  const shown = unique([...fitting(known), ...front]);
  const names = front.map(nameOf).join(", ");
  const description = `${count(shown.length, "row")}; the line joins the Pareto front: ${names}.`;
  return plot("Quality against", description, (svg, width) => {
    if (!shown.length) return 0;
    const x = scaleOver(shown.map((row) => number(costName, row)), EDGE.left, width - EDGE.right, 5);
    const y = scaleOver(spans(shown, page.by), HEIGHT - EDGE.bottom, EDGE.top);
    along(svg, x, plainTicks(x, width > 420 ? 7 : 5), width, HEIGHT, COST_LABELS[costName]);
    upward(svg, y, width, HEIGHT, withUnit(page.by));
    const steps = front.flatMap((row, k) => {
      const here = [x(number(costName, row)), y(quality(row))];
      return k ? [[here[0], y(quality(front[k - 1]))], here] : [here];
    });
    svg.append(drawn("path", { class: "front", d: path(steps) }));
    for (const row of shown) {
      const at = [x(number(costName, row)), y(quality(row))];
      if (front.includes(row)) svg.append(drawn("circle", { class: "ring", cx: at[0], cy: at[1], r: 9 }));
      const told = `${plain(quality(row))}, ${plain(number(costName, row))} ${COST_LABELS[costName]}`;
      svg.append(point(row, ...at, ...ends(row, page.by, y), `${nameOf(row)}: ${told}`));
    }
    return HEIGHT;
  }, legend(shown), note(shown.length
    ? "Line and rings: the Pareto front, rows that no other beats in both." : "No row has both numbers."));
}
// Box plots over the images of each row.
const BOX_ROW = [28, 46];

// Least, quartiles and largest, by linear interpolation.
function fiveNumbers(values) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b);
  if (!sorted.length) return null;
  return [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const at = share * (sorted.length - 1), below = Math.floor(at);
    return sorted[below] + (at - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
  });
}

// With up to page.dots images a row has their values, with more the five numbers alone.
const hasDots = (row) => page.comparisons.n_images[comparisonOf[row]] <= page.dots;

function boxPlot(rows, name) {
  const boxes = page.boxes[name];
  const known = boxes ? fitting(rows.filter((row) => boxes[row] && fiveNumbers(boxes[row]))) : [];
  const description = boxes
    ? `Boxes from the first to the third quartile with the median, whiskers to the extremes${
        known.some(hasDots) ? ", dots for images" : ""}; ${count(known.length, "row")}.`
    : "Left out of this page for its size; the CSV and the run folders have it.";
  return plot("Spread over images", description, (svg, width) => {
    if (!known.length) return 0;
    const left = Math.min(190, Math.round(width * 0.36));
    const tall = Math.min(BOX_ROW[1], Math.max(BOX_ROW[0], (HEIGHT - EDGE.top - EDGE.bottom) / known.length));
    const height = EDGE.top + known.length * tall + EDGE.bottom;
    const x = scaleOver(known.flatMap((row) => boxes[row].filter(isNumber)), left, width - EDGE.right, 50);
    along(svg, x, plainTicks(x, width > 420 ? 6 : 4), width, height, withUnit(name));
    known.forEach((row, place) => svg.append(box(row, boxes[row], x, EDGE.top + (place + 0.5) * tall, left)));
    return height;
  }, note(description));
}

function box(row, values, x, y, left) {
  const [least, first, median, third, largest] = fiveNumbers(values);
  const colour = markOf(row).colour;
  const told = `${nameOf(row)}: median ${plain(median)}, quartiles ${plain(first)} to ${plain(third)}, from ${
    plain(least)} to ${plain(largest)}`;
  const dot = (value, k) =>
    drawn("circle", { class: `dot ${colour}`, cx: x(value), cy: y - 4 + ((k * 5) % 9), r: 2 });
  const dots = hasDots(row) ? values.map((value, k) => isNumber(value) && dot(value, k)) : [];
  const name = shortened(nameOf(row), Math.floor(left / 7.4));
  const width = Math.max(x(third) - x(first), 1);
  return drawn("g", { class: "box" },
    drawn("title", {}, told),
    drawn("text", { class: "tick", x: left - 10, y: y + 4, "text-anchor": "end" }, name),
    drawn("line", { class: `whisker ${colour}`, x1: x(least), x2: x(largest), y1: y, y2: y }),
    drawn("rect", { class: `quartiles ${colour}`, x: x(first), y: y - 8, width, height: 16, rx: 2 }),
    dots,
    drawn("line", { class: `median ${colour}`, x1: x(median), x2: x(median), y1: y - 9, y2: y + 9 }));
}
