// Plots as SVG, as wide as their container, redrawn when its width changes.
const MAX_SERIES = 14;
const HEIGHT = 300;
const EDGE = { top: 12, right: 16, bottom: 50, left: 56 };
const BOX_ROW = [28, 46];

// A figure whose picture is drawn by draw(svg, width) -> height once it is in the page.
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
    filled(picture, { width, height, viewBox: `0 0 ${width} ${height}` }, []);
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
        const decade = units.map((unit) => Number((unit * 10 ** k).toPrecision(3)));
        found.push(...decade.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001));
      }
      if (found.length <= most && found.length > 1) return found;
    }
    return [low, high];
  };
  return scale;
}

// A scale of these numbers with a margin; logarithmic if they are positive and their ratio exceeds `far`.
function scaleOver(values, from, to, far = Infinity) {
  const low = Math.min(...values), high = Math.max(...values);
  if (low > 0 && high / low > far) return logarithmic(low / 1.3, high * 1.3, from, to);
  const margin = (high - low) * 0.06;
  return linear(low - margin, high + margin, from, to);
}

// Ticks are { at, text } or { at, text, below }.
function xAxis(svg, scale, ticks, width, height, label) {
  const bottom = height - EDGE.bottom;
  for (const { at, text, below } of ticks) {
    const centred = { x: scale(at), "text-anchor": "middle" };
    filled(svg, {}, [
      drawn("line", { class: "grid", x1: scale(at), x2: scale(at), y1: EDGE.top, y2: bottom }),
      drawn("text", { class: "tick", y: bottom + 15, ...centred }, text),
      below && drawn("text", { class: "tick faint", y: bottom + 28, ...centred }, below),
    ]);
  }
  const middle = (EDGE.left + width - EDGE.right) / 2;
  svg.append(drawn("text", { class: "axis", x: middle, y: height - 6, "text-anchor": "middle" }, label));
}

function yAxis(svg, scale, width, label) {
  for (const tick of scale.ticks(6)) {
    const y = scale(tick);
    svg.append(drawn("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y, y2: y }),
      drawn("text", { class: "tick", x: EDGE.left - 7, y: y + 4, "text-anchor": "end" }, plain(tick)));
  }
  const turned = `translate(13 ${(EDGE.top + HEIGHT - EDGE.bottom) / 2}) rotate(-90)`;
  svg.append(drawn("text", { class: "axis", transform: turned, "text-anchor": "middle" }, label));
}

const plainTicks = (scale, most) => scale.ticks(most).map((at) => ({ at, text: plain(at) }));

// Ticks at these values, except those whose labels would overlap.
function ticksAt(values, scale, gap = 34) {
  const kept = [];
  for (const at of values) if (!kept.length || Math.abs(scale(at) - scale(kept.at(-1))) >= gap) kept.push(at);
  return kept.map((at) => ({ at, text: plain(Number(at.toPrecision(3))) }));
}

const path = (points) => points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// The ranking metric of a row with its interval, and a label on hover.
function point(row, x, y, label) {
  const [low, high] = ends(row, page.by);
  const bar = isNumber(low) && isNumber(high)
    && drawn("line", { class: `whisker ${markOf(row).colour}`, x1: x, x2: x, y1: y(low), y2: y(high) });
  return drawn("g", { class: "point" }, drawn("title", {}, label), bar, marker(row, x, y(quality(row))));
}

const ends = (row, name) => ["_lo", "_hi"].map((end) => number(name + end, row));
const qualityScale = (rows) => scaleOver(rows.flatMap((row) => [quality(row), ...ends(row, page.by)]).filter(isNumber),
  HEIGHT - EDGE.bottom, EDGE.top);

// The rows that fit into a plot: the first ones, and always the references.
const fitting = (rows, most = MAX_SERIES) => rows.filter((row, place) => place < most || isReference(row));

// Quality over the operators of a family: one line for each solver.
function curvePlot(curve, rows) {
  const shown = new Set(rows);
  const series = new Map();
  for (const [comparison, x] of curve.points) {
    for (const row of rowsOf[comparison]) {
      if (!shown.has(row) || !ran(row) || !isNumber(quality(row))) continue;
      if (!series.has(nameOf(row))) series.set(nameOf(row), []);
      series.get(nameOf(row)).push([x, row]);
    }
  }
  const lines = [...series.values()].slice(0, MAX_SERIES);
  const drawnRows = lines.flat().map(([, row]) => row);
  if (!drawnRows.length) return null;
  const title = `${headed(page.by)} on ${curve.family}`;
  const description = `${curve.context}. One line for each of ${count(lines.length, "solver")}, with 95% intervals.`;
  return plot(title, description, (svg, width) => {
    const xs = curve.points.map(([, x]) => x);
    const x = scaleOver(xs, EDGE.left, width - EDGE.right, 3), y = qualityScale(drawnRows);
    xAxis(svg, x, ticksAt(xs, x), width, HEIGHT, curve.label);
    yAxis(svg, y, width, withUnit(page.by));
    for (const places of lines) {
      svg.append(line(places[0][1], path(places.map(([at, row]) => [x(at), y(quality(row))]))),
        ...places.map(([at, row]) => point(row, x(at), y,
          `${nameOf(row)}, ${page.comparisons.operator[comparisonOf[row]]}: ${plain(quality(row))}`)));
    }
    return HEIGHT;
  }, legend(lines.map((places) => places[0][1])), note(description));
}

// Fourier ring correlations (shell correlations of volumes), mean over the images of each row.
function frcPlot(comparison, rows) {
  const known = fitting(rows.filter((row) => page.frc[row]));
  if (!known.length) return null;
  const size = page.comparisons.pixel_size[comparison];
  const side = page.comparisons.side[comparison];
  const [things, part, short] = page.comparisons.axes[comparison] === 3
    ? ["volumes", "shell", "FSC"] : ["images", "ring", "FRC"];
  const description = `Mean over ${things} for ${count(known.length, "row")}. Dashed: the threshold 1/2 for a truth; `
    + "dotted: 1/7 for half maps.";
  return plot(`Fourier ${part} correlation with the truth`, description, (svg, width) => {
    const frequency = (ring) => (ring + 1) / side / (size || 1);
    const last = Math.max(...known.map((row) => page.frc[row].length)) - 1;
    const x = linear(0, frequency(last), EDGE.left, width - EDGE.right);
    const y = linear(Math.min(0, ...known.flatMap((row) => page.frc[row])) / 1000, 1, HEIGHT - EDGE.bottom, EDGE.top);
    const length = (at) => `${plain(Number((1 / at).toPrecision(2)))} ${size ? "Å" : "px"}`;
    const ticks = plainTicks(x, width > 420 ? 7 : 4).map((tick) => ({ ...tick, below: tick.at && length(tick.at) }));
    xAxis(svg, x, ticks, width, HEIGHT, size ? "spatial frequency (1/Å)" : "spatial frequency (cycles/pixel)");
    yAxis(svg, y, width, short);
    for (const [level, dash] of [[1 / 2, "6 4"], [1 / 7, "2 3"]]) {
      const at = { x1: EDGE.left, x2: width - EDGE.right, y1: y(level), y2: y(level) };
      svg.append(drawn("line", { class: "threshold", "stroke-dasharray": dash, ...at }));
    }
    for (const row of known) {
      const curve = line(row, path(page.frc[row].map((value, ring) => [x(frequency(ring)), y(value / 1000)])));
      const crossing = number("frc", row);
      const label = nameOf(row) + (isNumber(crossing) ? `, 1/2 at ${plain(crossing)} Å` : "");
      svg.append(filled(curve, {}, [drawn("title", {}, label)]));
    }
    return HEIGHT;
  }, legend(known), note(`Frequencies, with the lengths in ${size ? "Å" : "pixels"} below them. ${description}`));
}

// Quality against a cost, with the Pareto front.
function costPlot(rows, costName) {
  const costOf = (row) => number(costName, row);
  const known = rows.filter((row) => page.role[row] !== CEILING && isNumber(quality(row)) && isNumber(costOf(row)));
  const better = direction(page.by) === "lower" ? (a, b) => a < b : (a, b) => a > b;
  const front = [];
  for (const row of [...known].sort((a, b) => costOf(a) - costOf(b) || (better(quality(a), quality(b)) ? -1 : 1))) {
    if (!front.length || better(quality(row), quality(front.at(-1)))) front.push(row);
  }
  const shown = unique([...fitting(known), ...front]);
  const names = front.map(nameOf).join(", ");
  const description = `${count(shown.length, "row")}; the line connects the Pareto front: ${names}.`;
  return plot("Quality against", description, (svg, width) => {
    if (!shown.length) return 0;
    const x = scaleOver(shown.map(costOf), EDGE.left, width - EDGE.right, 5), y = qualityScale(shown);
    xAxis(svg, x, plainTicks(x, width > 420 ? 7 : 5), width, HEIGHT, COST_LABELS[costName]);
    yAxis(svg, y, width, withUnit(page.by));
    const steps = front.flatMap((row, k) => {
      const here = [x(costOf(row)), y(quality(row))];
      return k ? [[here[0], y(quality(front[k - 1]))], here] : [here];
    });
    svg.append(drawn("path", { class: "front", d: path(steps) }),
      ...front.map((row) => drawn("circle", { class: "ring", cx: x(costOf(row)), cy: y(quality(row)), r: 9 })),
      ...shown.map((row) => point(row, x(costOf(row)), y,
        `${nameOf(row)}: ${plain(quality(row))}, ${plain(costOf(row))} ${COST_LABELS[costName]}`)));
    return HEIGHT;
  }, legend(shown), note(shown.length
    ? "Line and rings: the Pareto front, rows that no other row exceeds in both." : "No row has both numbers."));
}

// Minimum, quartiles and maximum, by linear interpolation.
function fiveNumbers(values) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b);
  return sorted.length && [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const at = share * (sorted.length - 1), below = Math.floor(at);
    return sorted[below] + (at - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
  });
}

// Rows of at most page.dots images have all their values, others five numbers.
const hasDots = (row) => page.comparisons.n_images[comparisonOf[row]] <= page.dots;

function boxPlot(rows, name) {
  const boxes = page.boxes[name];
  const known = boxes ? fitting(rows.filter((row) => boxes[row] && fiveNumbers(boxes[row]))) : [];
  const description = boxes
    ? `Boxes from the first to the third quartile with the median, whiskers to the extremes${
        known.some(hasDots) ? ", dots for images" : ""}; ${count(known.length, "row")}.`
    : "Omitted to limit the size of this page; see the CSV file or the run folders.";
  return plot("Spread over images", description, (svg, width) => {
    if (!known.length) return 0;
    const left = Math.min(190, Math.round(width * 0.36));
    const tall = Math.min(BOX_ROW[1], Math.max(BOX_ROW[0], (HEIGHT - EDGE.top - EDGE.bottom) / known.length));
    const height = EDGE.top + known.length * tall + EDGE.bottom;
    const x = scaleOver(known.flatMap((row) => boxes[row].filter(isNumber)), left, width - EDGE.right, 50);
    xAxis(svg, x, plainTicks(x, width > 420 ? 6 : 4), width, height, withUnit(name));
    known.forEach((row, place) => svg.append(box(row, boxes[row], x, EDGE.top + (place + 0.5) * tall, left)));
    return height;
  }, note(description));
}

function box(row, values, x, y, left) {
  const [least, first, median, third, largest] = fiveNumbers(values);
  const colour = markOf(row).colour;
  const label = `${nameOf(row)}: median ${plain(median)}, quartiles ${plain(first)} to ${plain(third)}, from ${
    plain(least)} to ${plain(largest)}`;
  const dot = (value, k) =>
    isNumber(value) && drawn("circle", { class: `dot ${colour}`, cx: x(value), cy: y - 4 + ((k * 5) % 9), r: 2 });
  const name = shortened(nameOf(row), Math.floor(left / 7.4));
  const width = Math.max(x(third) - x(first), 1);
  return drawn("g", { class: "box" },
    drawn("title", {}, label),
    drawn("text", { class: "tick", x: left - 10, y: y + 4, "text-anchor": "end" }, name),
    drawn("line", { class: `whisker ${colour}`, x1: x(least), x2: x(largest), y1: y, y2: y }),
    drawn("rect", { class: `quartiles ${colour}`, x: x(first), y: y - 8, width, height: 16, rx: 2 }),
    hasDots(row) ? values.map(dot) : null,
    drawn("line", { class: `median ${colour}`, x1: x(median), x2: x(median), y1: y - 9, y2: y + 9 }));
}
