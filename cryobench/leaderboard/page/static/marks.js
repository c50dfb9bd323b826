// The colour, dash and marker of each solver. No two solvers differ by colour alone.
const COLOURS = 6;
const DASHES = ["", "7 3", "2 2", "9 3 2 3", "4 2", "12 3 2 3 2 3"];
const MARKERS = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "M-3.7 -3.7h7.4v7.4h-7.4z", "M0 -4.8L4.6 3.4H-4.6z", "M0 -5L5 0L0 5L-5 0z",
  "M0 4.8L4.6 -3.4H-4.6z", "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
  "M0 -5L1.5 -1.5L5 -1.5L2.3 .9L3.2 4.6L0 2.4L-3.2 4.6L-2.3 .9L-5 -1.5L-1.5 -1.5z",
];
const REFERENCE_MARKS = {
  [FLOOR]: { colour: "floor", dash: "3 3", marker: "M-4 -4L4 4M-4 4L4 -4" },
  [CEILING]: { colour: "ceiling", dash: "10 2 2 2", marker: "M-5 0H5M0 -5V5" },
};

const solvers = unique(page.role.flatMap((role, row) => (role === SOLVER ? [solverOf(row)] : [])));
const placeOf = new Map(solvers.map((solver, place) => [solver, place]));

function markOf(row) {
  const k = placeOf.get(solverOf(row));
  return REFERENCE_MARKS[page.role[row]]
    ?? { colour: `c${k % COLOURS}`, dash: DASHES[k % DASHES.length], marker: MARKERS[k % MARKERS.length] };
}

const nameOf = (row) => solverOf(row) + (page.role[row] === FLOOR ? " (floor)" : "");

function marker(row, x, y) {
  const mark = markOf(row);
  return drawn("path", { d: mark.marker, transform: `translate(${x} ${y})`, class: `marker ${mark.colour}` });
}

function line(row, d) {
  const mark = markOf(row);
  return drawn("path", { d, class: `line ${mark.colour}`, "stroke-dasharray": mark.dash || null });
}

// A short line with the marker, for legends and tables.
const swatch = (row) => drawn("svg", { class: "swatch", width: 30, height: 12, "aria-hidden": "true" },
  line(row, "M1 6H29"), marker(row, 15, 6));

const legend = (rows) => element("ul", { class: "legend" },
  rows.map((row) => element("li", { title: nameOf(row) }, swatch(row), shortened(nameOf(row), 40))));
