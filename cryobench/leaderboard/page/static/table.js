// Tables that sort by a click on a header, or Enter on it. Rows that are not in view are not made.
const ROWS_AT_ONCE = 200;
const OVERLAPS = {
  images: ["‡", "its prior may have been trained on these very images"],
  structure: ["†", "its prior was trained on other images of the same structure"],
};

// A column: its header, what a row is sorted by, which way is better, and how a cell is filled. The one that names the
// row is its heading; columns of words stand to the left.
function leaderboardColumns(rows) {
  const shown = rows.filter(ran);
  const columns = [
    { name: "rank", head: "#", sort: (row) => number("rank", row), better: "lower", cell: rankCell },
    {
      name: "solver", head: "solver", heading: true, better: "lower",
      sort: (row) => solverOf(row).toLowerCase(), cell: solverCell,
    },
  ];
  const names = chosenMetrics().sort((a, b) => (b === page.by) - (a === page.by));
  for (const name of names) {
    columns.push(metricColumn(shown, name));
    if (name === page.by && page.numbers.diff_leader) columns.push(...standingColumns(shown));
  }
  for (const name of page.costs) {
    const sort = (row) => number(name, row);
    columns.push({ name, head: COST_LABELS[name], sort, better: "lower", cell: (row) => costCell(row, name) });
  }
  return columns;
}

function metricColumn(rows, name) {
  const places = decimals(rows.map((row) => number(name, row)), name === page.by ? 4 : 3);
  const intervals = name === page.by || view.intervals;
  return {
    name, head: headed(name), sort: (row) => number(name, row), better: direction(name),
    cell: (row) => {
      const value = fixed(number(name, row), places);
      return intervals ? [value, interval(row, name, places)] : value;
    },
  };
}

// "[20.1, 20.9]" in small letters, nothing where there is none.
function interval(row, name, places) {
  const [low, high] = ["_lo", "_hi"].map((end) => number(name + end, row));
  if (low === null || high === null) return null;
  return element("span", { class: "interval" }, ` [${fixed(low, places)}, ${fixed(high, places)}]`);
}

// The paired difference to the leader, and what it is worth.
function standingColumns(rows) {
  const places = decimals(rows.map((row) => number("diff_leader", row)), 3);
  const difference = {
    name: "diff_leader", head: "to the leader", sort: (row) => number("diff_leader", row),
    better: direction(page.by),
    cell: (row) => [fixed(number("diff_leader", row), places), interval(row, "diff_leader", places)],
  };
  const tested = rows.some((row) => number("p_holm", row) !== null);
  const p = {
    name: "p_holm", head: "p (Holm)", sort: (row) => number("p_holm", row), better: "lower",
    cell: (row) => {
      const value = number("p_holm", row), needed = number("images_needed", row);
      const told = needed === null
        ? null : `${count(needed, "image")} would show a difference of this size with power 0.8`;
      return element("span", { title: told }, value === null ? NO_VALUE : value < 0.001 ? "< 0.001" : fixed(value, 3));
    },
  };
  return tested ? [difference, p] : [difference];
}

function rankCell(row) {
  const rank = number("rank", row);
  return rank === null ? NO_VALUE : `${rank}${number("tied", row) ? "=" : ""}`;
}

function solverCell(row) {
  const badge = (label, title) => element("span", { class: "badge", title }, label);
  const seen = OVERLAPS[text("overlap", row)];
  const below = page.role[row] === SOLVER && text("beats_floor", row) === "no";
  return [
    swatch(row), element("code", {}, solverOf(row)),
    page.role[row] === FLOOR && badge("floor", "the closed-form least-norm solution: a method must beat it"),
    page.role[row] === CEILING && badge("not ranked", "a bound made of the clean image"),
    seen && element("abbr", { title: seen[1] }, seen[0]),
    below && badge("below floor", "its mean is not better than that of the floor"),
  ].flatMap((part) => (part ? [part, " "] : []));
}

function costCell(row, name) {
  const front = { seconds_per_image: "pareto_seconds", nfe: "pareto_nfe" }[name];
  const told = "on the Pareto front: no other row is as good and as cheap";
  const mark = front && number(front, row) && element("abbr", { class: "pareto", title: told }, " ◆");
  return [cost(number(name, row)), mark];
}

const columnClass = (column) => (column.heading ? "name" : column.words ? "words" : null);

// A table of rows, with a button for more where they are many.
function table(rows, columns, caption, kind = null) {
  let sorted = null, rising = true, most = ROWS_AT_ONCE;
  const body = element("tbody");
  const more = element("button", { type: "button", class: "more", onclick: () => { most = Infinity; fill(); } });
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
    const order = sorted ? inOrder(rows, sorted, rising) : rows;
    const made = order.filter((row, place) => place < most || isReference(row));
    body.replaceChildren(...made.map((row) => tableRow(row, columns)));
    more.hidden = made.length === rows.length;
    more.textContent = `Show all ${rows.length} rows`;
  }

  fill();
  return element("div", { class: "tabled" },
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      element("table", { class: kind },
        element("caption", { class: "unseen" }, caption), element("thead", {}, element("tr", {}, heads)), body)),
    more);
}

// Rows sorted by a column; those without a value come last, whichever way.
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
