
// --------------------------------------------------------------------------------- heat maps
// Loads are bytes on a scale of powers of two; 0: unknown, 1: no token, see launch/reporting/router.py.
const OCTAVES = 4, shareOf = (code) => code < 2 ? 0 : Math.pow(2, ((code - 2) / 253 * 2 - 1) * OCTAVES);
const mixed = (a, b, share) => a.map((value, at) => Math.round(value + (b[at] - value) * share));
const loadColours = () => { // below a fair share cold, above it warm, without any token marked
  const [cold, fair, warm] = ["var(--cold)", "var(--fair)", "var(--warm)"].map(rgb);
  return Array.from({ length: 256 }, (_, code) => {
    if (code === 0) return rgb("var(--card)");
    if (code === 1) return rgb("var(--dead)");
    const octave = Math.max(-1, Math.min(1, Math.log2(shareOf(code)) / 2));
    return octave < 0 ? mixed(fair, cold, -octave) : mixed(fair, warm, octave);
  });
};
const amountColours = () => {
  const [none, some, most] = ["var(--fair)", "var(--amount)", "var(--most)"].map(rgb);
  return (share) => share < 0.5 ? mixed(none, some, 2 * share) : mixed(some, most, 2 * share - 1);
};

class HeatMap {
  // rows: their names; colours: () -> (row, column) -> [r, g, b]; tell: (row, column) -> lines.
  constructor(host, { title, run, x, means, rows, colours, tell, label }) {
    Object.assign(this, { run, x, means, rows, colours, tell });
    this.steps = page.steps[x];
    this.canvas = make("canvas", { width: this.steps.length, height: rows.length, "aria-hidden": "true" });
    const tall = Math.max(2, Math.min(18, 260 / rows.length));
    this.canvas.style.height = `${Math.max(20, Math.round(tall * rows.length))}px`;
    this.line = make("div", { class: "line", hidden: "" });
    this.field = make("div", { class: "field", tabindex: "0", role: "group" }, this.canvas, this.line);
    this.field.setAttribute("aria-roledescription", "heat map");
    this.field.setAttribute("aria-label", `${label}. Arrow keys read single cells.`);
    const names = rows.length <= 16 && tall >= 11 ? rows : [rows[0], rows[rows.length - 1]];
    const side = make("div", { class: names === rows ? "side" : "side ends" },
      ...names.map((name) => make("span", {}, name)));
    const first = this.steps[0], last = this.steps[this.steps.length - 1];
    const below = make("div", { class: "below" }, ...[first, last].map((step) =>
      make("span", {}, `step ${step.toLocaleString("en")}`)));
    host.append(make("figure", { class: "map" }, make("figcaption", {}, make("h3", {}, title)),
      make("div", { class: "grid" }, side, this.field, below)));
    this.field.addEventListener("pointermove", (event) => {
      event.stopPropagation();
      const box = this.field.getBoundingClientRect();
      this.show(...this.cell((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height),
        event.clientX, event.clientY);
    });
    for (const name of ["pointerleave", "blur"]) this.field.addEventListener(name, () => this.leave());
    this.field.addEventListener("keydown", (event) => this.key(event));
    watch(this.field, this);
  }

  cell(x, y) {
    const clamp = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
    return [clamp(y, this.rows.length), clamp(x, this.steps.length)];
  }

  visible() { return this.field.clientWidth > 0; }

  draw() {
    this.drawn = this.field.clientWidth || 1;
    const of = this.colours(), [width, height] = [this.steps.length, this.rows.length];
    const context = this.canvas.getContext("2d"), image = context.createImageData(width, height);
    for (let row = 0; row < height; row += 1) {
      for (let column = 0; column < width; column += 1) {
        image.data.set([...of(row, column), 255], 4 * (row * width + column));
      }
    }
    context.putImageData(image, 0, 0);
  }

  mark(x) {
    this.line.hidden = x === null || view.hidden.has(this.run);
    if (this.line.hidden) return;
    const at = nearest(along(this.run, this.x), x);
    this.line.style.left = `${100 * (at + 0.5) / this.steps.length}%`;
  }

  show(row, column, x, y) {
    this.position = [row, column];
    const before = column ? this.steps[column - 1] + 1 : this.steps[column];
    const last = this.steps[column];
    const range = this.means && before < last ? `steps ${before.toLocaleString("en")} to ` : "step ";
    const heading = `${range}${last.toLocaleString("en")}`;
    const lines = this.tell(row, column);
    this.mark(along(this.run, this.x)[column]);
    markAll(along(this.run, this.x)[column], this);
    readout(heading, lines, x, y);
    return [heading, lines];
  }

  leave() {
    tip.hidden = true;
    this.mark(null);
    markAll(null, this);
  }

  key(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Escape") this.leave();
    if (!moves[event.key]) return;
    event.preventDefault();
    const [down, right] = moves[event.key], [row, column] = this.position || [0, this.steps.length];
    const to = [Math.max(0, Math.min(this.rows.length - 1, row + down)),
      Math.max(0, Math.min(this.steps.length - 1, column + right))];
    const box = this.field.getBoundingClientRect();
    const said = this.show(...to, box.left + box.width * (to[1] + 0.5) / this.steps.length,
      box.top + box.height * (to[0] + 0.5) / this.rows.length);
    say(...said);
  }
}

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

const loadMap = (host, run, layer) => {
  const codes = bytes(layer.load), count = page.steps[layer.x].length;
  const rows = Array.from({ length: layer.experts }, (_, expert) => String(expert));
  const tell = (expert, column) => {
    const code = codes[expert * count + column], share = shareOf(code);
    const beyond = code === 255 ? " or more" : code === 2 ? " or less" : "";
    return [{ label: `expert ${expert}`, color: `rgb(${loadColours()[code]})`,
      value: code === 0 ? "unknown" : code === 1 ? "no token"
        : `${figure(100 * share / layer.experts, 3)} %${beyond}`,
      soft: code > 1 ? `${figure(share, 3)} times its fair share` : "" }];
  };
  const colours = () => {
    const table = loadColours();
    return (expert, column) => table[codes[expert * count + column]];
  };
  return new HeatMap(host, { title: layer.name, run, x: layer.x, means: layer.means, rows, colours, tell,
    label: `Load of the ${layer.experts} experts of ${layer.name} over the steps` });
};

const figureMap = (host, run, names, one) => {
  const values = one.rows.flatMap((row) => row || []).filter((value) => value !== null);
  const [least, most] = [Math.min(0, ...values), Math.max(...values)];
  const low = Math.min(...values) > most / 2 ? Math.min(...values) : least;
  const value = (row, column) => one.rows[row] ? one.rows[row][column] : null;
  const colours = () => {
    const of = amountColours(), none = rgb("var(--card)");
    return (row, column) => {
      const found = value(row, column);
      return found === null || found === undefined ? none : of((found - low) / (most - low || 1));
    };
  };
  const unit = unitOf(one.unit);
  const tell = (row, column) => [{ label: names[row], color: `rgb(${colours()(row, column)})`,
    value: value(row, column) === null ? "unknown" : figure(value(row, column)) + unit }];
  const map = new HeatMap(host, { title: one.title, run, x: one.x, means: one.means, rows: names, colours, tell,
    label: `${one.title}, by layer and step, from ${figure(low)}${unit} to ${figure(most)}${unit}` });
  host.lastChild.append(make("p", { class: "scale" }, figure(low) + unit, make("i", { class: "amount" }),
    figure(most) + unit));
  return map;
};
