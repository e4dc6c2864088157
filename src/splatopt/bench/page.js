"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const LEFT = 52, RIGHT = 28, TOP = 30, BOTTOM = 44;
let WIDTH = 1000, HEIGHT = 420;

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function draw(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// A row of buttons of which one is pressed.
function segments(holder, name, choices, state, key, change) {
  const row = make("span", { class: "segments", role: "group", "aria-label": name });
  const buttons = choices.map(([value, label]) => {
    const button = make("button", { type: "button", "data-value": value }, label);
    button.addEventListener("click", () => { state[key] = value; show(); change(); });
    row.append(button);
    return button;
  });
  const show = () => buttons.forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.value === String(state[key]))));
  show();
  holder.append(make("span", { class: "control" }, name, row));
}

function chooser(holder, name, id, change) {
  const select = make("select", { id });
  select.addEventListener("change", change);
  const label = make("label", { class: "control", for: id }, name, select);
  holder.append(label);
  return {
    select,
    fill(texts, wanted) {
      select.replaceChildren(...texts.map((text, index) => make("option", { value: String(index) }, text)));
      select.selectedIndex = Math.max(0, Math.min(wanted, texts.length - 1));
      label.hidden = texts.length < 2;
    },
    get index() { return Math.max(0, select.selectedIndex); },
  };
}

// ------------------------------------------------------------------ curves

const written = (value) => Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US").replaceAll(",", "\u2009")
  : String(Number(value.toPrecision(4)));

// The value at x, between points along a straight line of the axis, whose scale is `to`.
function at(xs, ys, x, to) {
  if (x <= xs[0]) return ys[0];
  for (let i = 1; i < xs.length; i++) {
    if (x <= xs[i]) return ys[i - 1] + (ys[i] - ys[i - 1]) * (to(x) - to(xs[i - 1])) / (to(xs[i]) - to(xs[i - 1]) || 1);
  }
  return ys[ys.length - 1];
}

// Mean and deviation over seeds, where all seeds have values; a logarithm has no place for 0.
function overSeeds(runs, xName, yName, log, to) {
  const rows = runs.map((run) => {
    const kept = run[xName].map((x, index) => [x, run[yName][index]]).filter(([x]) => !log || x > 0);
    return { x: kept.map(([x]) => x), y: kept.map(([, y]) => y) };
  });
  if (rows.some((row) => !row.x.length)) return { x: [], mean: [], sd: [] };
  const low = Math.max(...rows.map((row) => row.x[0])), high = Math.min(...rows.map((row) => row.x.at(-1)));
  const grid = [...new Set(rows.flatMap((row) => row.x))].filter((x) => x >= low && x <= high).sort((a, b) => a - b);
  const mean = [], sd = [];
  for (const x of grid) {
    const values = rows.map((row) => at(row.x, row.y, x, to));
    const middle = values.reduce((sum, value) => sum + value, 0) / values.length;
    mean.push(middle);
    sd.push(values.length < 2 ? 0 : Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1)));
  }
  return { x: grid, mean, sd };
}

function linearTicks(low, high, about) {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw * (1 - 1e-9));
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [], wide = Math.log10(high / low) > WIDTH / 320;
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1e-9; power++) {
    for (const factor of wide ? [1] : [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) ticks.push(value);
    }
  }
  return ticks;
}

function curves() {
  const root = byId("curves");
  if (!root || !data.groups.length) return;
  const state = { x: "step", scale: "log", y: "psnr", range: "whole" };
  const hidden = new Set();
  let cursor = null, plot = null;
  const controls = root.querySelector(".controls"), figure = root.querySelector(".chart"), legend = root.querySelector(".legend");
  const tip = make("div", { class: "tip", role: "status", hidden: "" });
  const group = chooser(controls, "Setting", "curve-group", () => { fillScenes(); redraw(); });
  const scene = chooser(controls, "Scene", "curve-scene", () => redraw());
  const grows = data.groups.some((one) => one.scenes.some((scene) => scene.runs.some((run) => new Set(run.gaussians).size > 1)));
  const metrics = { psnr: ["PSNR", "PSNR, dB", 2, 0.3], ssim: ["SSIM", "SSIM", 4, 0.005], ...grows && { gaussians: ["Gaussians", "Gaussians", 0, 0] } };
  segments(controls, "Metric", Object.entries(metrics).map(([name, [short]]) => [name, short]), state, "y", () => redraw());
  segments(controls, "Against", [["step", "steps"], ["seconds", "seconds"]], state, "x", () => redraw());
  segments(controls, "Axis", [["log", "log"], ["linear", "linear"]], state, "scale", () => redraw());
  segments(controls, "Range", [["whole", "whole"], ["end", "end"]], state, "range", () => redraw());
  group.fill(data.groups.map((one) => one.name), 0);
  const fillScenes = () => scene.fill(data.groups[group.index].scenes.map((one) => one.name), scene.index);
  fillScenes();

  const labels = data.labels;
  legend.append(...labels.map((label, index) => {
    const button = make("button", { type: "button", "aria-pressed": "true", "data-label": label }, make("span", { class: `swatch c${index % 8}` }), label);
    button.addEventListener("click", () => {
      hidden.has(label) ? hidden.delete(label) : hidden.add(label);
      button.setAttribute("aria-pressed", String(!hidden.has(label)));
      redraw();
    });
    return button;
  }));

  function redraw() {
    cursor = null;
    WIDTH = Math.max(280, figure.clientWidth);
    HEIGHT = Math.max(260, Math.min(440, Math.round(0.42 * WIDTH)));
    const runs = data.groups[group.index].scenes[scene.index].runs;
    const there = labels.filter((label) => runs.some((run) => run.label === label));
    [...legend.children].forEach((button) => { button.hidden = !there.includes(button.dataset.label); });
    const log = state.scale === "log", to = log ? Math.log10 : (x) => x;
    const series = there.filter((label) => !hidden.has(label)).map((label) => ({
      label, color: labels.indexOf(label) % 8, dash: ["", "7 5", "2 5"][Math.floor(labels.indexOf(label) / 8) % 3],
      ...overSeeds(runs.filter((run) => run.label === label), state.x, state.y, log, to),
    }));
    const drawn = series.filter((one) => one.x.length);
    const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0", "aria-label": `${state.y} against ${state.x}` });
    figure.replaceChildren(svg, tip);
    tip.hidden = true;
    plot = null;
    if (!drawn.length) {
      svg.append(draw("text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "No series is shown."));
      return;
    }
    const xs = drawn.flatMap((one) => one.x);
    const xLow = log ? Math.min(...xs) : Math.min(0, ...xs), xHigh = Math.max(...xs, xLow * 1.0001 + 1e-9);
    const ys = drawn.flatMap((one) => one.mean.flatMap((mean, i) => [mean - one.sd[i], mean + one.sd[i]]));
    let yHigh = Math.max(...ys), yLow = Math.min(...ys);
    if (state.range === "end") {
      const ends = drawn.map((one) => one.mean.at(-1));
      yLow = Math.max(yLow, Math.min(...ends) - 0.6 * (yHigh - Math.min(...ends)) - metrics[state.y][3]);
    }
    const margin = 0.05 * (yHigh - yLow) || 0.1;
    yLow -= margin; yHigh += margin;
    const px = (x) => LEFT + (to(x) - to(xLow)) / (to(xHigh) - to(xLow)) * (WIDTH - LEFT - RIGHT);
    const py = (y) => HEIGHT - BOTTOM - (y - yLow) / (yHigh - yLow) * (HEIGHT - TOP - BOTTOM);
    for (const value of linearTicks(yLow, yHigh, 6)) {
      svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(value), y2: py(value) }));
      svg.append(draw("text", { x: LEFT - 10, y: py(value) + 4, "text-anchor": "end" }, written(value)));
    }
    for (const value of log ? logTicks(xLow, xHigh) : linearTicks(xLow, xHigh, WIDTH / 120)) {
      svg.append(draw("line", { class: "grid", x1: px(value), x2: px(value), y1: TOP, y2: HEIGHT - BOTTOM }));
      svg.append(draw("text", { x: px(value), y: HEIGHT - BOTTOM + 19, "text-anchor": "middle" }, written(value)));
    }
    const name = state.x === "step" ? "steps" : "seconds of training, evaluation not counted";
    svg.append(draw("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle", class: "axis" }, name));
    svg.append(draw("text", { x: 2, y: 14 }, metrics[state.y][1]));
    const clip = draw("clipPath", { id: "inside" });
    clip.append(draw("rect", { x: LEFT, y: TOP - 4, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM + 8 }));
    const lines = draw("g", { "clip-path": "url(#inside)" });
    for (const one of drawn) {
      if (one.sd.some((value) => value > 0)) {
        const upper = one.x.map((x, i) => `${px(x)},${py(one.mean[i] + one.sd[i])}`);
        const lower = one.x.map((x, i) => `${px(x)},${py(one.mean[i] - one.sd[i])}`).reverse();
        lines.append(draw("polygon", { class: `band c${one.color}`, points: [...upper, ...lower].join(" ") }));
      }
    }
    for (const one of drawn) {
      const points = one.x.map((x, i) => `${px(x)},${py(one.mean[i])}`).join(" ");
      lines.append(draw("polyline", { class: `line c${one.color}`, fill: "none", points, "stroke-dasharray": one.dash, "data-label": one.label }));
    }
    const marks = draw("g", {});
    svg.append(clip, lines, marks);
    plot = { svg, marks, drawn, px, py, xLow, xHigh, to, log };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
      point(share);
    });
    svg.addEventListener("pointerleave", () => point(null));
    svg.addEventListener("blur", () => point(null));
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
      if (move) { point((cursor ?? 0.5) + move); event.preventDefault(); }
    });
  }

  // Show the values at a share of the axis.
  function point(share) {
    cursor = share === null ? null : Math.max(0, Math.min(1, share));
    if (!plot) return;
    plot.marks.replaceChildren();
    tip.hidden = cursor === null;
    if (cursor === null) return;
    const place = plot.to(plot.xLow) + cursor * (plot.to(plot.xHigh) - plot.to(plot.xLow));
    const x = plot.log ? 10 ** place : place;
    const digits = metrics[state.y][2];
    plot.marks.append(draw("line", { class: "cursor", x1: plot.px(x), x2: plot.px(x), y1: TOP, y2: HEIGHT - BOTTOM }));
    const rows = plot.drawn.filter((one) => x >= one.x[0] && x <= one.x.at(-1))
      .map((one) => ({ one, mean: at(one.x, one.mean, x, plot.to), sd: at(one.x, one.sd, x, plot.to) })).sort((a, b) => b.mean - a.mean);
    for (const row of rows) {
      if (plot.py(row.mean) <= HEIGHT - BOTTOM) plot.marks.append(draw("circle", { class: `dot c${row.one.color}`, cx: plot.px(x), cy: plot.py(row.mean), r: 4.5 }));
    }
    const unit = state.x === "step" ? `step ${written(Math.round(x))}` : `${written(x)} s`;
    tip.replaceChildren(make("strong", {}, unit), ...rows.map((row) => make("div", {},
      make("i", { class: `swatch c${row.one.color}` }), row.one.label,
      make("span", {}, row.mean.toFixed(digits) + (row.sd ? ` ± ${row.sd.toFixed(digits)}` : "")))));
    const across = plot.px(x) / WIDTH * figure.clientWidth;
    const left = cursor < 0.5 ? across + 14 : across - tip.offsetWidth - 14;
    tip.style.left = `${Math.max(0, Math.min(left, figure.clientWidth - tip.offsetWidth))}px`;
  }

  let width = 0;
  new ResizeObserver(() => {
    if (figure.clientWidth !== width) { width = figure.clientWidth; redraw(); }
  }).observe(figure);
  redraw();
}

// ------------------------------------------------------------------ pictures

function pictures() {
  const root = byId("pictures");
  if (!root || !data.pictures.length) return;
  const state = { mode: "slider" };
  const controls = root.querySelector(".controls"), stage = root.querySelector(".stage"), place = byId("place");
  const [under, over] = ["under", "over"].map((name) => make("img", { class: name, alt: "", draggable: "false" }));
  const canvas = make("canvas", { hidden: "", role: "img" });
  const bar = make("div", { class: "bar" });
  const names = ["left", "right"].map((side) => make("span", { class: `name ${side}` }));
  stage.append(under, over, canvas, bar, ...names);
  const view = chooser(controls, "View", "picture-view", () => { fillSides(); redraw(); });
  const left = chooser(controls, "Left", "picture-left", () => redraw());
  const right = chooser(controls, "Right", "picture-right", () => redraw());
  segments(controls, "Show", [["slider", "slider"], ["difference", "difference"]], state, "mode", () => redraw());
  const gain = make("input", { type: "range", id: "gain", min: "1", max: "16", value: "4", "aria-label": "Gain of the difference" });
  const gainText = make("span", {}, "× 4");
  const gainLabel = make("label", { class: "control", for: "gain" }, "Gain", gain, gainText);
  controls.append(gainLabel);
  gain.addEventListener("input", () => redraw());
  view.fill(data.pictures.map((one) => one.title), 0);
  function fillSides() {
    const texts = data.pictures[view.index].images.map((one) => one.label);
    left.fill(texts, left.select.options.length ? left.index : 1);
    right.fill(texts, right.select.options.length ? right.index : 0);
  }
  fillSides();

  function redraw() {
    const images = data.pictures[view.index].images;
    const [a, b] = [images[left.index], images[right.index]];
    under.src = b.source; over.src = a.source;
    over.alt = `${a.label}, left`; under.alt = `${b.label}, right`;
    const difference = state.mode === "difference";
    for (const node of [under, over, bar, ...names, place]) node.hidden = difference;
    canvas.hidden = gainLabel.hidden = !difference;
    names[0].textContent = a.label; names[1].textContent = b.label;
    gainText.textContent = `× ${gain.value}`;
    if (difference) subtract();
    slide();
    fit();
  }

  // No taller than the window, so that a view is seen as a whole.
  async function fit() {
    await under.decode().catch(() => undefined);
    if (!under.naturalHeight) return;
    const width = Math.min(760, 0.74 * window.innerHeight * under.naturalWidth / under.naturalHeight);
    stage.style.maxWidth = place.style.maxWidth = `${Math.max(240, Math.round(width))}px`;
  }

  async function subtract() {
    await Promise.all([under.decode(), over.decode()]).catch(() => undefined);
    canvas.width = under.naturalWidth; canvas.height = under.naturalHeight;
    canvas.setAttribute("aria-label", `difference of ${names[0].textContent} and ${names[1].textContent}, times ${gain.value}`);
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    const [first, second] = [under, over].map((image) => {
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      return pen.getImageData(0, 0, canvas.width, canvas.height);
    });
    for (let i = 0; i < first.data.length; i++) {
      if (i % 4 !== 3) first.data[i] = Math.min(255, Math.abs(first.data[i] - second.data[i]) * Number(gain.value));
    }
    pen.putImageData(first, 0, 0);
    canvas.dataset.drawn = `${left.index}-${right.index}-${gain.value}`;
  }

  function slide() {
    over.style.clipPath = `inset(0 ${100 - place.value}% 0 0)`;
    bar.style.left = `${place.value}%`;
  }

  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    place.value = String(100 * (event.clientX - box.left) / box.width);
    slide();
  };
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  place.addEventListener("input", slide);
  redraw();
}

curves();
pictures();
document.documentElement.dataset.ready = "yes";
