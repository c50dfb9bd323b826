// Tables, sorted by a click on a header. Rows are created in batches.
const ROWS_AT_ONCE = 200;
const OVERLAPS = {
  images: ["‡", "its prior may have been trained on these images"],
  structure: ["†", "its prior was trained on other images of the same structure"],
};

// Columns are { name, head, sort, better, cell }: name, header, sort key of a row, better direction, contents of a cell.
// heading: the column that names the row. words: aligned left.
function leaderboardColumns(rows) {
  const shown = rows.filter(ran);
  const names = chosenMetrics().sort((a, b) => (b === page.by) - (a === page.by));
  return [
    { name: "rank", head: "#", sort: (row) => number("rank", row), better: "lower", cell: rankCell },
    {
      name: "solver", head: "solver", heading: true, better: "lower",
      sort: (row) => solverOf(row).toLowerCase(), cell: solverCell,
    },
    ...names.flatMap((name) => {
      const digits = name === page.by ? 4 : 3;
      const column = numberColumn(shown, name, headed(name), digits, name === page.by || view.intervals);
      return name === page.by && page.numbers.diff_leader ? [column, ...differenceColumns(shown)] : [column];
    }),
    ...page.costs.map((name) => (
      { ...numberColumn(shown, name, COST_LABELS[name], 2, false), cell: (row) => costCell(row, name) })),
  ];
}

function numberColumn(rows, name, head, digits, intervals, better = direction(name)) {
  const places = decimals(rows.map((row) => number(name, row)), digits);
  const cell = (row) => [fixed(number(name, row), places), intervals && interval(row, name, places)];
  return { name, head, sort: (row) => number(name, row), better, cell };
}

// "[20.1, 20.9]" in small letters, null without an interval.
function interval(row, name, places) {
  const [low, high] = ends(row, name);
  if (low === null || high === null) return null;
  return element("span", { class: "interval" }, ` [${fixed(low, places)}, ${fixed(high, places)}]`);
}

// The paired difference to the leader and its test.
function differenceColumns(rows) {
  const columns = [numberColumn(rows, "diff_leader", "to the leader", 3, true, direction(page.by))];
  if (!rows.some((row) => number("p_holm", row) !== null)) return columns;
  const cell = (row) => {
    const value = number("p_holm", row), needed = number("images_needed", row);
    const title = needed === null ? null : `${count(needed, "image")} detect a difference of this size with power 0.8`;
    return element("span", { title }, value === null ? NO_VALUE : value < 0.001 ? "< 0.001" : fixed(value, 3));
  };
  return [...columns, { ...numberColumn(rows, "p_holm", "p (Holm)", 3, false), cell }];
}

function rankCell(row) {
  const rank = number("rank", row);
  if (rank === null) return NO_VALUE;
  const letters = text("letters", row);
  return `${rank}${number("tied", row) ? "=" : ""}${letters ? ` ${letters}` : ""}`;
}

function solverCell(row) {
  const badge = (label, title) => element("span", { class: "badge", title }, label);
  const seen = OVERLAPS[text("overlap", row)];
  const below = page.role[row] === SOLVER && text("beats_floor", row) === "no";
  return [
    swatch(row), element("code", {}, solverOf(row)),
    page.role[row] === FLOOR && badge("floor", "the baseline of the operator: the least-norm solution, or linear interpolation"),
    page.role[row] === CEILING && badge("not ranked", "not a solver: a bound computed from the clean image"),
    seen && element("abbr", { title: seen[1] }, seen[0]),
    below && badge("below floor", "its mean is not better than that of the floor"),
  ].flatMap((part) => (part ? [part, " "] : []));
}

function costCell(row, name) {
  const front = { seconds_per_image: "pareto_seconds", nfe: "pareto_nfe" }[name];
  const title = "on the Pareto front: no other row is as good and as cheap";
  return [cost(number(name, row)), number(front, row) === 1 && element("abbr", { class: "pareto", title }, " ◆")];
}

const columnClass = (column) => (column.heading ? "name" : column.words ? "words" : null);

// A table of rows, with a button to show all where there are many.
function table(rows, columns, caption, kind = null) {
  let sorted = null, rising = true, most = ROWS_AT_ONCE;
  const body = element("tbody");
  const more = element("button", { type: "button", class: "more", onclick: () => { most = Infinity; fill(); } },
    `Show all ${rows.length} rows`);
  const heads = columns.map((column) => element("th",
    { scope: "col", class: columnClass(column), "data-column": column.name },
    element("button", { type: "button", onclick: () => sortBy(column) }, column.head)));

  function sortBy(column) {
    rising = sorted === column ? !rising : column.better !== "higher";
    sorted = column;
    heads.forEach((head, place) => {
      if (columns[place] === column) head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    fill();
  }

  function fill() {
    const made = fitting(sorted ? inOrder(rows, sorted, rising) : rows, most);
    body.replaceChildren(...made.map((row) => tableRow(row, columns)));
    more.hidden = made.length === rows.length;
  }

  fill();
  return element("div", { class: "tabled" },
    scrolled(caption, element("table", { class: kind },
      element("caption", { class: "unseen" }, caption), element("thead", {}, element("tr", {}, heads)), body)),
    more);
}

const scrolled = (label, content) =>
  element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, content);

// Rows sorted by a column; rows without a value are last in both directions.
function inOrder(rows, column, rising) {
  const keys = new Map(rows.map((row) => [row, ran(row) ? column.sort(row) : null]));
  const known = (row) => keys.get(row) !== null && !Number.isNaN(keys.get(row));
  return [...rows].sort((a, b) => {
    if (!known(a) || !known(b)) return known(b) - known(a);
    const [first, second] = [keys.get(a), keys.get(b)];
    return first === second ? 0 : (first < second) === rising ? -1 : 1;
  });
}

function tableRow(row, columns) {
  const kind = ["", "floor", "ceiling"][page.role[row]];
  if (ran(row)) {
    return element("tr", { class: kind || (number("rank", row) === 1 ? "first" : null) },
      columns.map((column) => element(column.heading ? "th" : "td",
        { scope: column.heading ? "row" : null, class: columnClass(column) }, [column.cell(row)].flat())));
  }
  return element("tr", { class: `absent ${kind}` },
    element("td", {}, NO_VALUE), element("th", { scope: "row", class: "name" }, solverCell(row)),
    element("td", { class: "reason", colspan: columns.length - 2 },
      element("span", { class: "badge" }, text("status", row)), ` ${text("reason", row) || "no reason given"}`));
}
