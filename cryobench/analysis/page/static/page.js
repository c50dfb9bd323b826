const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const COLOURS = 6, SHAPES = 3, PADDING = 34, NEAR = 18;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// --- colours: canvases need them as computed by the style, which follows light and dark
const inks = ["text", "faint", "grid", "raised"].map((name) => [name, element("span", { class: `ink-${name}` })]);
const colours = [...Array(COLOURS).keys()].map((number) => element("span", { class: `c${number}` }));
find("inks").append(...inks.map(([, span]) => span), ...colours);
const inkOf = (span) => getComputedStyle(span).color;
const ink = (name) => inkOf(inks.find(([own]) => own === name)[1]);

// --- sections of a map
const AXES = ["x", "y", "z"], DRAWN = ["y →, z ↓", "x →, z ↓", "x →, y ↓"];
const centre = Math.floor(data.about.side / 2);

function showSections(place, state, what) {
  const own = data.states[state];
  place.replaceChildren(...own.sections.map((picture, axis) => element("figure", {},
    element("img", { src: `data:image/png;base64,${picture}`, alt: `${what}: central section across ${AXES[axis]}` }),
    element("figcaption", {}, `${AXES[axis]} = ${centre} (${DRAWN[axis]})`))));
}

function nameOf(state) {
  const name = data.states[state].name;
  const cluster = /^cluster_(\d+)$/.exec(name);
  if (cluster) return `cluster ${cluster[1]}`;
  const step = /^pc(\d+)_\d+\/(\d+)$/.exec(name);
  return step ? `point ${Number(step[2]) + 1} along PC${step[1]}` : "the map";
}

// --- what is chosen
const points = data.points;
let view = 0, particle = -1, cluster = -1, moving = null;

function chooseCluster(number) {
  cluster = number;
  particle = -1;
  const own = data.clusters[number];
  const share = (100 * own.size / data.about.particles).toFixed(1);
  find("chosen").textContent = `Cluster ${number + 1}: ${own.size} particles (${share}%). Map at image ${own.image}, ` +
    "the particle nearest to its centre.";
  showSections(find("map"), data.states.findIndex((state) => state.name === `cluster_${number + 1}`), `cluster ${number + 1}`);
  update();
}

function chooseParticle(number) {
  particle = number;
  cluster = points.cluster[number] - 1;
  const state = points.nearest[number];
  find("chosen").textContent = `Image ${points.image[number]}, of cluster ${cluster + 1}. Nearest map: ${nameOf(state)}.`;
  showSections(find("map"), state, nameOf(state));
  update();
}

function update() {
  for (const [number, button] of [...find("clusters").children].entries()) {
    button.setAttribute("aria-pressed", String(number === cluster));
  }
  draw();
}

// --- the plane of latents
const canvas = find("scatter");

function spread(number) { // places across a line of latents, so that they can be told apart
  return (number * 0.6180339887498949) % 1;
}

function layout() {
  const own = points.views[view];
  const x = own.places[0], y = own.places[1] ?? x.map((_, number) => spread(number));
  const width = canvas.clientWidth, height = canvas.clientHeight;
  const scale = (values, low, high) => {
    const least = values.reduce((a, b) => Math.min(a, b)), most = values.reduce((a, b) => Math.max(a, b));
    const step = (high - low) / ((most - least) || 1);
    const start = most > least ? low : (low + high) / 2;
    return { least, most, at: (value) => start + (value - least) * step };
  };
  return { x, y, width, height, across: scale(x, PADDING, width - 12), up: scale(y, height - PADDING, 12) };
}

function mark(context, x, y, radius, shape) {
  context.beginPath();
  if (shape === 0) context.arc(x, y, radius, 0, 2 * Math.PI);
  else if (shape === 1) context.rect(x - radius, y - radius, 2 * radius, 2 * radius);
  else {
    context.moveTo(x, y - 1.4 * radius);
    context.lineTo(x + 1.4 * radius, y);
    context.lineTo(x, y + 1.4 * radius);
    context.lineTo(x - 1.4 * radius, y);
    context.closePath();
  }
}

function draw() {
  if (!points) return;
  const { x, y, width, height, across, up } = layout();
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const own = points.views[view], flat = own.axes.length === 1;
  context.strokeStyle = ink("grid");
  context.strokeRect(PADDING - 8, 4, width - PADDING + 4, height - PADDING + 4);
  context.fillStyle = ink("faint");
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "bottom";
  const short = (value) => String(Number(value.toPrecision(3)));
  context.textAlign = "left";
  context.fillText(short(across.least), PADDING - 8, height - 6);
  context.textAlign = "right";
  context.fillText(short(across.most), width - 4, height - 6);
  context.textAlign = "center";
  context.fillText(own.axes[0], width / 2, height - 6);
  if (!flat) {
    context.save();
    context.rotate(-Math.PI / 2);
    context.fillText(own.axes[1], -height / 2, PADDING - 14);
    context.textAlign = "left";
    context.fillText(short(up.least), PADDING - height, PADDING - 14);
    context.textAlign = "right";
    context.fillText(short(up.most), -4, PADDING - 14);
    context.restore();
  }
  const radius = Math.min(4, Math.max(1.4, 120 / Math.sqrt(x.length)));
  const tints = colours.map(inkOf);
  for (let number = 0; number < x.length; number += 1) {
    const label = points.cluster[number] - 1;
    context.globalAlpha = cluster < 0 || label === cluster ? 0.75 : 0.18;
    context.fillStyle = tints[label % COLOURS];
    mark(context, across.at(x[number]), up.at(y[number]), radius, Math.floor(label / COLOURS) % SHAPES);
    context.fill();
  }
  context.globalAlpha = 1;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = "600 12px system-ui, sans-serif";
  for (let number = 0; number < data.clusters.length; number += 1) { // at the particle of the map of each cluster
    const [cx, cy] = [across.at(own.states[0][number]), up.at(flat ? 0.5 : own.states[1][number])];
    context.beginPath();
    context.arc(cx, cy, 9, 0, 2 * Math.PI);
    context.fillStyle = ink("raised");
    context.fill();
    context.lineWidth = number === cluster ? 3 : 1.5;
    context.strokeStyle = tints[number % COLOURS];
    context.stroke();
    context.fillStyle = ink("text");
    context.fillText(String(number + 1), cx, cy + 0.5);
  }
  context.lineWidth = 1;
  if (moving && view === 0) { // the point of a traversal that is shown
    const at = moving.component === 0 ? [moving.value, 0] : moving.component === 1 ? [0, moving.value] : null;
    if (at && !flat) ring(context, across.at(at[0]), up.at(at[1]), 7);
    else if (at && moving.component === 0) ring(context, across.at(at[0]), height / 2, 7);
  }
  if (particle >= 0) ring(context, across.at(x[particle]), up.at(y[particle]), radius + 5);
}

function ring(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.lineWidth = 4;
  context.strokeStyle = ink("raised");
  context.stroke();
  context.lineWidth = 2;
  context.strokeStyle = ink("text");
  context.stroke();
  context.lineWidth = 1;
}

function nearestTo(px, py) {
  const { x, y, across, up } = layout();
  let best = -1, least = NEAR * NEAR;
  for (let number = 0; number < x.length; number += 1) {
    const distance = (across.at(x[number]) - px) ** 2 + (up.at(y[number]) - py) ** 2;
    if (distance < least) [best, least] = [number, distance];
  }
  return best;
}

function step(direction) { // to the next particle along the horizontal axis
  const x = points.views[view].places[0];
  const order = [...x.keys()].sort((a, b) => x[a] - x[b] || a - b);
  const at = order.indexOf(particle);
  chooseParticle(order[at < 0 ? 0 : Math.min(Math.max(at + direction, 0), order.length - 1)]);
}

// --- traversals
function traversal(component) {
  const own = data.traversals[component];
  const count = own.coordinates.length, title = `PC${component + 1}`;
  const states = own.coordinates.map((_, point) =>
    data.states.findIndex((state) => state.name === `${own.folder}/${point}`));
  const slider = element("input", { type: "range", min: 0, max: count - 1, value: Math.floor((count - 1) / 2),
    "aria-label": `Point along ${title}` });
  const output = element("output", {}), sections = element("div", { class: "sections" });
  const show = (chosen) => {
    const point = Number(slider.value), value = own.coordinates[point];
    output.textContent = `${point + 1} of ${count}: ${Number(value.toPrecision(3))}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    showSections(sections, states[point], `point ${point + 1} along ${title}`);
    if (chosen) {
      moving = { component, value };
      draw();
    }
  };
  slider.addEventListener("input", () => show(true));
  show(false);
  return element("section", { class: "card", "aria-label": `Traversal of ${title}` },
    element("h2", {}, `Along ${title}`),
    element("p", { class: "note" }, `${(100 * own.variance).toFixed(1)}% of the variance; from the 5th to the 95th ` +
      `percentile, ${own.folder}/`),
    element("div", { class: "slide" }, slider, output), sections);
}

// --- the beginning
function start() {
  const about = data.about;
  const pixel = data.pixel === null ? "" : `, ${Number(data.pixel.toPrecision(4))} Å per voxel`;
  find("about").textContent = `${about.solver} · ${about.particles} particles · latents of ${about.dimensions} ` +
    `dimensions · maps of ${about.side} voxels a side${pixel} · poses ${about.poses_found ? "found" : "given"} · ` +
    `version ${data.version}`;
  if (!points) {
    find("latents").remove();
    find("chosen").textContent = "One map for all particles.";
    showSections(find("map"), 0, "the map");
    return;
  }
  for (const [number, own] of data.clusters.entries()) {
    const shape = Math.floor(number / COLOURS) % SHAPES;
    const button = element("button", { type: "button", "aria-pressed": "false" },
      element("span", { class: `swatch c${number % COLOURS} s${shape}` }), `${number + 1}: ${own.size}`);
    button.setAttribute("aria-label", `Cluster ${number + 1}, ${own.size} particles`);
    button.addEventListener("click", () => chooseCluster(number));
    find("clusters").append(button);
  }
  for (const [number, own] of points.views.entries()) find("view").append(element("option", { value: number }, own.name));
  find("view-label").hidden = points.views.length < 2;
  find("view").addEventListener("change", () => {
    view = Number(find("view").value);
    describe();
    draw();
  });
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const found = nearestTo(event.clientX - box.left, event.clientY - box.top);
    if (found >= 0) chooseParticle(found);
  });
  canvas.addEventListener("keydown", (event) => {
    const direction = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (direction === undefined) return;
    event.preventDefault();
    step(direction);
  });
  find("traversals").append(...data.traversals.map((_, component) => traversal(component)));
  describe();
  chooseCluster(0);
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

function describe() {
  const own = points.views[view], all = points.image.length;
  const drawn = all < data.about.particles ? `${all} of ${data.about.particles} particles` : `${all} particles`;
  canvas.setAttribute("aria-label", `${own.name} of ${drawn} in ${data.clusters.length} clusters; arrow keys move ` +
    "between particles");
  const along = own.axes.length === 1 ? "; the height has no meaning" : "";
  find("axes").textContent = `${drawn} by ${own.axes.join(" and ")}${along}. Click on one for the map nearest to it.`;
}

start();
