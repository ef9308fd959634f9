
// ------------------------------------------------------------------ what all figures share
const page = JSON.parse(document.getElementById("figures").textContent);
const several = page.runs.length > 1;
const view = { smooth: 0.02, axis: "step", from: null, to: null, hidden: new Set() };
const figures = []; // each with draw() and mark(x), which shows the same moment in all of them
const SVG = "http://www.w3.org/2000/svg";

const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const draw = (name, attributes = {}, ...children) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

// Numbers as people write them: 1,234  0.0123  1.2e-7.
const figure = (value, digits = 4) => {
  if (value === null || value === undefined) return "not finite";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e7 || size < 1e-4) return value.toExponential(Math.max(0, digits - 2)).replace(/\.?0+e/, "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
};
const unitOf = (unit) => unit === "%" ? " %" : "";
const duration = (seconds) => {
  if (seconds < 100) return figure(seconds, 3) + " s";
  const minutes = seconds / 60;
  if (minutes < 100) return figure(minutes, 3) + " min";
  const hours = minutes / 60;
  return hours < 72 ? figure(hours, 3) + " h" : figure(hours / 24, 3) + " days";
};

// ------------------------------------------------------------------------------------ axes
const AXES = {
  step: { title: "step", of: (run, step) => step, name: (value) => Math.round(value).toLocaleString("en") },
  examples: {
    title: "examples seen",
    of: (run, step) => step * run.batch,
    name: (value) => value >= 1e6 ? figure(value / 1e6, 4) + " M" : Math.round(value).toLocaleString("en"),
  },
  time: {
    title: "time of the run",
    of: (run, step) => run.goodput ? clock(run.goodput.clock, step) : NaN,
    name: (value) => duration(value),
  },
};
const clock = (points, step) => {
  let at = 1;
  while (at < points.length - 1 && points[at][0] < step) at += 1;
  const [[s0, t0], [s1, t1]] = [points[at - 1], points[at]];
  return s1 > s0 ? t0 + (step - s0) / (s1 - s0) * (t1 - t0) : t1;
};
const kept = new Map();
const along = (run, list) => { // positions on the axis of a shared list of steps
  const key = `${view.axis} ${run} ${list}`;
  if (!kept.has(key)) {
    kept.set(key, page.steps[list].map((step) => AXES[view.axis].of(page.runs[run], step)));
  }
  return kept.get(key);
};
const nearest = (values, wanted) => { // of values in ascending order; -1 of none
  let low = 0, high = values.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low > 0 && wanted - values[low - 1] < values[low] - wanted ? low - 1 : low;
};
const ticks = (low, high, count) => {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return [low];
  const power = Math.pow(10, Math.floor(Math.log10(rough)));
  const size = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) * power;
  const marks = [];
  for (let at = Math.ceil(low / size); at * size <= high + size * 1e-9; at += 1) marks.push(at * size);
  return marks;
};
const powers = (low, high) => { // of a logarithmic axis, which is in powers of ten
  const wide = high - low;
  const inside = wide > 3 ? [1] : wide > 1.2 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  const marks = [];
  const every = Math.max(1, Math.ceil(wide / 6));
  for (let power = Math.floor(low); power <= Math.ceil(high); power += every) {
    for (const factor of inside) marks.push(power + Math.log10(factor));
  }
  return marks.filter((mark) => mark >= low - 1e-9 && mark <= high + 1e-9);
};

// ---------------------------------------------------------------------------------- colours
const RUNS = ["blue", "orange", "green", "red", "violet", "teal", "grey", "pink"];
const colorOf = (number) => `var(--${RUNS[number % RUNS.length]})`;
const between = (number, count, encoder) => { // layers of a stack, from its first to its last
  const share = count > 1 ? number / (count - 1) : 0.5;
  return `color-mix(in oklab, var(--${encoder ? "teal" : "orange"}), var(--${encoder ? "blue" : "red"}) ${
    Math.round(100 * share)}%)`;
};
const probe = document.body.appendChild(make("i", { hidden: "" }));
const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (color) => { // of any CSS colour, in the theme that is shown
  probe.style.color = color;
  paint.clearRect(0, 0, 1, 1);
  paint.fillStyle = getComputedStyle(probe).color;
  paint.fillRect(0, 0, 1, 1);
  return [...paint.getImageData(0, 0, 1, 1).data.slice(0, 3)];
};

// ------------------------------------------------------------------------- words for readers
const spoken = document.getElementById("spoken"); // what a screen reader says
const readout = (heading, lines, x, y) => {
  const rows = lines.map(({ color, label, value, soft }) => make("div", { class: "row" },
    make("i", { style: `background:${color || "transparent"}` }), make("span", {}, label),
    make("b", {}, value), make("em", {}, soft || "")));
  tip.replaceChildren(make("div", { class: "at" }, heading), ...rows);
  placeTip(x, y);
};
const say = (heading, lines) => {
  spoken.textContent = `${heading}: ${lines.map((one) => `${one.label} ${one.value}`).join(", ")}`;
};
const markAll = (x, from) => { for (const one of figures) if (one !== from) one.mark(x); };
const drawAll = () => { kept.clear(); for (const one of figures) if (one.visible()) one.draw(); };

// Figures are drawn once they come near the window, and again when it changes its width.
const watched = new Map();
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const one = watched.get(target);
    if (isIntersecting && !one.drawn) one.draw();
  }
}, { rootMargin: "1200px" });
const widths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const one = watched.get(target);
    if (one.drawn && one.drawn !== target.clientWidth) one.draw();
  }
});
const watch = (element, one) => {
  figures.push(one);
  watched.set(element, one);
  near.observe(element);
  widths.observe(element);
};
