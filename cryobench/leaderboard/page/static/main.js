// Filters, tabs and their contents.
const SECTIONS_AT_ONCE = 8;
const METRICS_AT_FIRST = 5;
const FILTERS = ["noise", "data", "within", "seed"];
const view = { text: "", intervals: false, metrics: new Set(), cost: "seconds_per_image", tab: 0 };
const [tools, tabs, panel] = ["tools", "tabs", "panel"].map((id) => document.getElementById(id));
const operators = unique(page.comparisons.operator);
const status = element("p", { role: "status", class: "status" });

// The ranking metric, the same metric against another image, metrics of other aspects, all others.
const ASPECTS = ["ssim", "frc", "lpips", "null_error"];
const base = (name) => name.replace(/_(clean|other)$/, "");
function interest(name) {
  if (base(name) === base(page.by)) return name === page.by ? 0 : 1;
  if (ASPECTS.includes(name)) return 2 + ASPECTS.indexOf(name);
  return name.endsWith("_clean") ? 21 : 20;
}
// A metric without any value is only a remark.
const measured = page.metrics.map((metric) => metric.name).filter((name) => name === page.by || name in page.numbers);
const inOrderOfInterest = measured.sort((a, b) => interest(a) - interest(b));
inOrderOfInterest.slice(0, METRICS_AT_FIRST).forEach((name) => view.metrics.add(name));
const chosenMetrics = () => inOrderOfInterest.filter((name) => view.metrics.has(name));

const comparisonFits = (comparison) =>
  FILTERS.every((name) => view[name] === undefined || page.comparisons[name][comparison] === view[name]);
// All words must occur in a row; floor and ceiling are always shown.
function rowFits(row) {
  const contents = `${solverOf(row)} ${text("status", row)} ${text("reason", row)}`.toLowerCase();
  return isReference(row) || view.text.toLowerCase().split(/\s+/).every((word) => contents.includes(word));
}
const shownRows = (comparison) => (comparisonFits(comparison) ? rowsOf[comparison].filter(rowFits) : []);

function build() {
  document.getElementById("about").textContent = [
    `ranked by ${headed(page.by)}`, count(page.role.length, "row"), count(rowsOf.length, "comparison"),
    page.made || `cryobench ${page.version}`, page.newest && `newest run ${page.newest}`,
  ].filter(Boolean).join(" · ");
  if (page.left_out) {
    document.querySelector("footer").append(element("p", {},
      `Omitted to limit the size of this page: Fourier correlations and images of ${count(page.left_out, "row")}.`));
  }
  filled(tools, { onsubmit: (event) => event.preventDefault() }, [...filterFields(), columnChoice(), status]);
  filled(tabs, { onkeydown: onTabKey }, ["Overview", ...operators].map(tab));
  choose(operators.length === 1 ? 1 : 0);
}

function filterFields() {
  let waiting = 0;
  const search = element("input", {
    type: "search", id: "filter", placeholder: "dct tv …", autocomplete: "off", spellcheck: "false",
    oninput: (event) => { view.text = event.target.value; clearTimeout(waiting); waiting = setTimeout(show, 80); },
  });
  return [element("label", {}, "Filter solvers ", search), ...FILTERS.map((name) => {
    const values = unique(page.comparisons[name]);
    const onchange = (event) => { view[name] = values[event.target.selectedIndex - 1]; show(); };
    return values.length > 1 && element("label", {},
      element("select", { id: `filter-${name}`, "aria-label": name, onchange }, element("option", {}, `${name}: all`),
        values.map((value) => element("option", { value }, value || "image"))));
  })];
}

function columnChoice() {
  const box = (label, checked, act) => element("label", {},
    element("input", { type: "checkbox", checked, onchange: (event) => { act(event.target.checked); show(); } }),
    ` ${label}`);
  const choice = (name) =>
    box(headed(name), view.metrics.has(name), (on) => { view.metrics[on ? "add" : "delete"](name); });
  return element("details", {}, element("summary", {}, "Columns"), element("div", { class: "menu" },
    box("95% intervals of every metric", false, (on) => { view.intervals = on; }),
    inOrderOfInterest.filter((name) => name !== page.by).map(choice)));
}

function tab(label, place) {
  const attributes = { role: "tab", id: `tab-${place}`, "aria-controls": "panel", tabindex: -1 };
  return element("button", { type: "button", ...attributes, onclick: () => choose(place) }, label);
}

function choose(place) {
  view.tab = place;
  [...tabs.children].forEach((each, k) => {
    each.setAttribute("aria-selected", k === place);
    each.tabIndex = k === place ? 0 : -1;
  });
  panel.setAttribute("aria-labelledby", `tab-${place}`);
  tabs.children[place].scrollIntoView({ block: "nearest", inline: "nearest" });
  show();
}

function onTabKey(event) {
  const last = tabs.children.length - 1;
  const before = view.tab ? view.tab - 1 : last, after = view.tab < last ? view.tab + 1 : 0;
  const next = { ArrowLeft: before, ArrowRight: after, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  choose(next);
  tabs.children[next].focus();
}

function show() {
  const rows = rowsOf.flatMap((_, comparison) => shownRows(comparison));
  status.textContent = rows.length === page.role.length ? "" : `${rows.length} of ${count(page.role.length, "row")}`;
  panel.replaceChildren(...(view.tab ? sections(operators[view.tab - 1]) : overview(rows)));
}

function overview(rows) {
  const shown = page.curves.filter((curve) => curve.points.some(([comparison]) => comparisonFits(comparison)));
  const plots = shown.slice(0, SECTIONS_AT_ONCE).map((curve) => curvePlot(curve, rows)).filter(Boolean);
  return [
    element("section", {}, element("h2", {}, "Best row of each comparison"), leaders()),
    element("section", {}, element("h2", {}, "Quality against compression"),
      plots.length ? element("div", { class: "plots curves" }, plots)
        : note("No curve: it requires operators that differ in one parameter only, ",
            "such as sumpool:8,count=8 and sumpool:8,count=16."),
      shown.length > SECTIONS_AT_ONCE
        && note(`The first ${SECTIONS_AT_ONCE} of ${shown.length} curves; filter to see others.`)),
    ...page.summaries.map(summary),
  ];
}

// One row for each comparison: its leader, and the difference to the floor.
function leaders() {
  const leads = (row) => ran(row) && page.role[row] !== CEILING && number("rank", row) !== null;
  const rows = rowsOf.map((_, comparison) => shownRows(comparison).find(leads)).filter((row) => row !== undefined);
  if (!rows.length) return note("No row matches the filters.");
  const gain = (row) => {
    const floor = rowsOf[comparisonOf[row]].find((other) => page.role[other] === FLOOR && ran(other));
    return floor === undefined || quality(floor) === null || quality(row) === null ? null : quality(row) - quality(floor);
  };
  const of = (name) => (row) => page.comparisons[name][comparisonOf[row]];
  const places = decimals(rows.map(quality), 4);
  const words = (name, cell = of(name)) => ({ name, head: name, words: true, sort: of(name), better: "lower", cell });
  const column = (name, head, sort, better, cell) => ({ name, head, sort, better, cell });
  return table(rows, [
    words("operator", (row) => {
      const operator = of("operator")(row), onclick = () => choose(1 + operators.indexOf(operator));
      return element("button", { type: "button", class: "link", onclick }, operator);
    }),
    words("noise"),
    words("data"),
    column("compression", "C", of("compression"), "lower", (row) => fixed(of("compression")(row), 2)),
    { name: "solver", head: "best", heading: true, sort: solverOf, better: "lower", cell: solverCell },
    numberColumn(rows, page.by, headed(page.by), 4, true),
    column("gain", "over the floor", gain, direction(page.by),
      (row) => (page.role[row] === FLOOR ? NO_VALUE : fixed(gain(row), places))),
  ], "The best row of each comparison", "leaders");
}

const remarkList = (remarks) =>
  remarks.length ? element("ul", { class: "remarks" }, remarks.map((remark) => element("li", {}, remark))) : null;

// Average ranks over comparisons.
function summary({ title, heads, rows, remarks }) {
  const place = heads.indexOf("solver");
  const cell = (content, k) => (k === place
    ? element("th", { scope: "row", class: "name" }, element("code", {}, content))
    : element("td", {}, content));
  const head = (content, k) => element("th", { scope: "col", class: k === place ? "name plain" : "plain" }, content);
  return element("section", { class: "narrow" }, element("h2", {}, title.replace("all", "All")),
    scrolled("Average ranks", element("table", {},
      element("thead", {}, element("tr", {}, heads.map(head))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map(cell)))))),
    remarkList(remarks));
}

// The comparisons of an operator, a few at a time.
function sections(operator) {
  const ofIt = (comparison) => page.comparisons.operator[comparison] === operator && shownRows(comparison).length;
  const chosen = [...rowsOf.keys()].filter(ofIt);
  if (!chosen.length) return [note("No row matches the filters.")];
  const made = chosen.slice(0, SECTIONS_AT_ONCE).map(section);
  if (chosen.length === made.length) return made;
  const onclick = () => {
    const done = panel.querySelectorAll("section").length;
    more.before(...chosen.slice(done, done + SECTIONS_AT_ONCE).map(section));
    more.hidden = done + SECTIONS_AT_ONCE >= chosen.length;
  };
  const more = element("button", { type: "button", class: "more", onclick }, `More of ${chosen.length} comparisons`);
  return [...made, more];
}

// A published leaderboard has no values of images. Where they were left out for their size, the plot says so.
const boxesOfMetrics = Object.values(page.boxes);
const hasSpread = !boxesOfMetrics.length || boxesOfMetrics.some((boxes) => boxes.some(Boolean));

function section(comparison) {
  const rows = shownRows(comparison), done = rows.filter(ran), title = described(comparison);
  return element("section", {}, element("h2", {}, title),
    table(rows, leaderboardColumns(rows), `${page.comparisons.operator[comparison]}, ${title}`),
    remarkList(page.comparisons.remarks[comparison]),
    done.length
      ? element("div", { class: "plots" },
          hasSpread && chosenPlot("Metric", inOrderOfInterest, page.by, (name) => boxPlot(done, name)),
          frcPlot(comparison, done),
          chosenPlot("Cost", page.costs, view.cost, (name) => costPlot(done, name)), viewer(done))
      : null);
}

// A plot with a select element above it.
function chosenPlot(label, names, chosen, draw) {
  const place = element("div", {}, draw(chosen));
  const onchange = (event) => place.replaceChildren(draw(event.target.value));
  const select = element("select", { "aria-label": label, onchange },
    names.map((name) => element("option", { value: name, selected: name === chosen }, withUnit(name))));
  return element("div", { class: "chosen" }, element("span", { class: "choice" }, select), place);
}

build();
