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
