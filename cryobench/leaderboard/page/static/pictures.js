// Reconstructions and the truth side by side, zoomed and moved together.
const MAX_PICTURES = 24;
const MAX_ZOOM = 16;
// Violet below the truth, orange above it: ends and middle of Matplotlib's PuOr.
const BELOW = [84, 39, 136], SAME = [247, 247, 247], ABOVE = [179, 88, 6];

const decodedPictures = new Map();
function picture(place) {
  if (!decodedPictures.has(place)) {
    const image = new Image();
    image.src = `data:image/png;base64,${page.pictures[place]}`;
    decodedPictures.set(place, image.decode().then(() => image));
  }
  return decodedPictures.get(place);
}

function pixels(image) {
  const canvas = element("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// Full colour at a quarter of the range, because errors are small compared with the range of an image.
function difference(reconstruction, truth) {
  const made = pixels(reconstruction), other = pixels(truth);
  for (let k = 0; k < made.data.length; k += 4) {
    const error = Math.max(-1, Math.min(1, ((made.data[k] - other.data[k]) / 255) * 4));
    const end = error < 0 ? BELOW : ABOVE;
    for (let c = 0; c < 3; c++) made.data[k + c] = SAME[c] + (end[c] - SAME[c]) * Math.abs(error);
  }
  return made;
}

// The viewer of the rows that have images; null if none has.
function viewer(rows) {
  const pictured = rows.filter((row) => page.views[row]);
  if (!pictured.length) return null;
  const shown = fitting(pictured, MAX_PICTURES);
  const first = page.views[shown[0]];
  const state = { image: 0, differences: false, zoom: 1, x: 0.5, y: 0.5 };
  const frames = [frame("truth", null), ...shown.map((row) => frame(nameOf(row), row))];
  const zoomed = element("span", { class: "zoomed" }, "1×");
  const stage = element("div", {
    class: "stage", tabindex: 0, role: "group", onkeydown: onKey,
    "aria-label": "Images. Plus and minus zoom, arrow keys move, 0 shows all.",
  }, frames.map((each) => each.node));
  const choice = element("select", { onchange: (event) => { state.image = Number(event.target.value); show(); } },
    first.images.map((image, place) => element("option", { value: place }, `image ${image}`)));
  const toggle = (event) => { state.differences = event.target.checked; show(); };
  const button = (label, name, act) => element("button", { type: "button", "aria-label": name, onclick: act }, label);

  function frame(label, row) {
    const canvas = element("canvas", { role: "img" });
    const bar = element("span", { class: "scalebar" });
    const listeners = { onwheel: onWheel, onpointerdown: onDown, onpointermove: onMove, ondblclick: onDouble };
    const area = element("div", { class: "window", ...listeners }, canvas, bar);
    const value = element("span", { class: "value" });
    const caption = element("figcaption", {}, element("code", {}, shortened(label, 44)), value);
    return { row, canvas, bar, value, label, node: element("figure", {}, area, caption) };
  }

  async function show() {
    const chosen = state.image, id = first.images[chosen];
    const truth = await picture(first.truth[chosen]);
    for (const { row, canvas, value, label } of frames) {
      const place = row === null ? chosen : page.views[row].images.indexOf(id); // rows may differ in order
      const image = row === null ? truth : place < 0 ? null : await picture(page.views[row].reconstruction[place]);
      if (chosen !== state.image) return; // another image was chosen in the meantime
      canvas.width = truth.naturalWidth;
      canvas.height = truth.naturalHeight;
      const signed = state.differences && row !== null;
      const context = canvas.getContext("2d");
      if (image && signed) context.putImageData(difference(image, truth), 0, 0);
      else if (image) context.drawImage(image, 0, 0);
      canvas.setAttribute("aria-label", `${label}${signed ? " minus truth" : ""}, image ${id}`);
      const known = row === null || !hasDots(row) ? null : page.boxes[page.by]?.[row]?.[place];
      const unit = metrics.get(page.by)?.unit ?? "";
      value.textContent = isNumber(known) ? ` ${fixed(known, decimals([known], 4))} ${unit}` : "";
    }
    position();
  }

  function position() {
    const half = 0.5 / state.zoom, size = first.pixel_size[state.image];
    for (const axis of ["x", "y"]) state[axis] = Math.min(1 - half, Math.max(half, state[axis]));
    for (const { canvas, bar } of frames) {
      canvas.style.transform = `scale(${state.zoom}) translate(${(0.5 - state.x) * 100}%, ${(0.5 - state.y) * 100}%)`;
      const across = (canvas.width / state.zoom) * size; // Å
      bar.hidden = !across;
      if (bar.hidden) continue;
      const length = roundLength(across / 4);
      bar.style.width = `${(100 * length) / across}%`;
      bar.textContent = length < 100 ? `${plain(length)} Å` : `${plain(length / 10)} nm`;
    }
    zoomed.textContent = `${plain(Number(state.zoom.toPrecision(2)))}×`;
  }

  // Zoom with (px, py) of a window, from 0 to 1, fixed.
  function zoom(factor, px = 0.5, py = 0.5) {
    const next = Math.min(MAX_ZOOM, Math.max(1, state.zoom * factor));
    state.x += (px - 0.5) * (1 / state.zoom - 1 / next);
    state.y += (py - 0.5) * (1 / state.zoom - 1 / next);
    state.zoom = next;
    position();
  }

  function move(x, y) {
    state.x += x / state.zoom;
    state.y += y / state.zoom;
    position();
  }

  const whole = () => { Object.assign(state, { zoom: 1, x: 0.5, y: 0.5 }); position(); };
  const within = (event) => {
    const area = event.currentTarget.getBoundingClientRect();
    return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
  };

  // The wheel scrolls the page unless the images have the focus or Ctrl is held.
  function onWheel(event) {
    if (!event.ctrlKey && !stage.contains(document.activeElement)) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, ...within(event));
  }
  function onDouble(event) { zoom(2, ...within(event)); }
  function onDown(event) {
    if (state.zoom > 1 && event.button === 0) event.currentTarget.setPointerCapture(event.pointerId);
  }
  function onMove(event) {
    if (!event.currentTarget.hasPointerCapture(event.pointerId)) return;
    const area = event.currentTarget.getBoundingClientRect();
    move(-event.movementX / area.width, -event.movementY / area.height);
  }
  function onKey(event) {
    const acts = {
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": whole,
      ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0),
      ArrowUp: () => move(0, -0.1), ArrowDown: () => move(0, 0.1),
    };
    const act = event.ctrlKey || event.metaKey || event.altKey ? null : acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  show();
  return element("figure", { class: "plot wide viewer" },
    element("figcaption", {}, "Reconstructions"),
    element("div", { class: "tools" },
      element("label", {}, "Show ", choice),
      element("label", {}, element("input", { type: "checkbox", onchange: toggle }), " difference to the truth"),
      element("span", { class: "zoom", role: "group", "aria-label": "Zoom" },
        button("−", "Zoom out", () => zoom(1 / 1.5)), zoomed, button("+", "Zoom in", () => zoom(1.5)),
        button("whole", "Show the whole image", whole))),
    stage,
    note("Intensities from −1 to 1. Click or tab to the images: wheel, + and − zoom, drag or arrow keys move, ",
      "0 shows all. Differences: violet below the truth, orange above it, full colour at a quarter of the range. ",
      shown.length < pictured.length && `The first ${shown.length} of ${pictured.length} rows.`));
}
