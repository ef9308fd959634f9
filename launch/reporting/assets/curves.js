
// ------------------------------------------------------------------------------------ curves
const smoothed = (y, window) => { // means of as many points around each, of those that are finite
  if (window < 2) return y;
  const half = Math.floor(window / 2), sums = [0], counts = [0];
  for (const value of y) {
    sums.push(sums[sums.length - 1] + (value ?? 0));
    counts.push(counts[counts.length - 1] + (value === null ? 0 : 1));
  }
  return y.map((_, at) => {
    const reach = Math.min(half, at); // at the beginning, where curves are steep, of fewer
    const [from, to] = [at - reach, Math.min(y.length, at + reach + 1)];
    const count = counts[to] - counts[from];
    return count ? (sums[to] - sums[from]) / count : null;
  });
};

class Curves {
  constructor(panel, host) {
    this.panel = panel;
    this.log = false;
    this.lines = panel.lines.map((line, number) => ({
      ...line, color: line.color || this.colour(line, number), name: this.name(line),
    }));
    this.now = make("span", { class: "now" });
    const buttons = make("span", { class: "buttons" });
    const log = make("button", { type: "button", "aria-pressed": "false" }, "log");
    log.title = "Logarithmic scale";
    log.addEventListener("click", () => {
      this.log = !this.log;
      log.setAttribute("aria-pressed", String(this.log));
      this.draw();
    });
    const values = make("button", { type: "button", "aria-expanded": "false" }, "values");
    values.title = "The values as a table";
    values.addEventListener("click", () => {
      const open = values.getAttribute("aria-expanded") !== "true";
      values.setAttribute("aria-expanded", String(open));
      this.table.replaceChildren(...(open ? [this.rows()] : []));
    });
    buttons.append(log, values);
    this.plot = make("div", { class: "plot", tabindex: "0", role: "group" });
    this.plot.setAttribute("aria-roledescription", "line chart");
    this.plot.setAttribute("aria-label", this.summary());
    this.table = make("div", { class: "wide" });
    const unit = panel.unit ? make("small", {}, ` ${panel.unit}`) : "";
    this.box = make("figure", { class: "panel" },
      make("figcaption", {}, make("h3", {}, panel.title, unit), this.now, buttons),
      this.legend(), this.plot, this.table);
    host.append(this.box);
    this.listen();
    watch(this.plot, this);
  }

  colour(line, number) {
    if (several && !line.label) return colorOf(line.run);
    if (line.label) return colorOf(number);
    return { train: "var(--blue)", eval: "var(--orange)" }[line.kind] || "var(--teal)";
  }

  name(line) {
    const run = several ? page.runs[line.run].label : "";
    const kind = { train: "training", eval: "evaluation" }[line.kind] || line.kind;
    return [run, line.label || kind, line.label && line.kind !== "train" ? kind : ""]
      .filter(Boolean).join(", ");
  }

  legend() {
    const seen = [...new Map(this.lines.filter((line) => line.label)
      .map((line) => [line.label, line.color]))];
    if (!seen.length) return "";
    const key = ([label, color]) =>
      make("span", { class: "key" }, make("i", { style: `background:${color}` }), label);
    if (seen.length <= 8) return make("p", { class: "legend" }, ...seen.map(key));
    // Of many layers the first and the last of each stack, between which colours change by degrees.
    const stacks = Map.groupBy(seen, ([label]) => label.split(".")[0]);
    return make("p", { class: "legend" }, ...[...stacks.values()].flatMap((stack) =>
      stack.length > 2 ? [key(stack[0]), "to", key(stack[stack.length - 1])] : stack.map(key)));
  }

  summary() {
    const said = this.lines.slice(0, 4).map((line) => {
      const known = line.y.map((y, at) => [y, page.steps[line.x][at]]).filter(([y]) => y !== null);
      if (!known.length) return `${line.name}: nothing finite`;
      const [first, last] = [known[0], known[known.length - 1]];
      const unit = unitOf(this.panel.unit);
      return `${line.name}: ${figure(first[0])}${unit} at step ${first[1]}, ` +
        `${figure(last[0])}${unit} at step ${last[1]}`;
    });
    const more = this.lines.length > 4 ? `; ${this.lines.length - 4} more lines` : "";
    return `${this.panel.title}. ${said.join("; ")}${more}. Arrow keys read single values.`;
  }

  visible() { return this.plot.clientWidth > 0; }

  shown() {
    return this.lines.filter((line) => !view.hidden.has(line.run));
  }

  draw() {
    const width = this.plot.clientWidth, height = 190;
    if (!width) return;
    this.drawn = width;
    const lines = this.shown().map((line) => this.placed(line));
    const [x0, x1] = this.range(lines);
    const [low, high] = this.heights(lines, x0, x1);
    const scale = (y) => this.log ? (y > 0 ? Math.log10(y) : null) : y;
    const marks = (this.log ? powers(low, high) : ticks(low, high, 5));
    const names = (digits) => marks.map((mark) => figure(this.log ? Math.pow(10, mark) : mark, digits));
    const named = [3, 4, 5, 6, 7].map(names).find((found) => new Set(found).size === found.length)
      || names(7); // as few digits as tell the marks apart
    const left = 10 + 7 * Math.max(2, ...named.map((name) => name.length));
    const box = { left, right: width - 8, top: 8, bottom: height - 22 };
    const toX = (x) => box.left + (x - x0) / (x1 - x0 || 1) * (box.right - box.left);
    const toY = (y) => box.bottom - (scale(y) - low) / (high - low || 1) * (box.bottom - box.top);
    Object.assign(this, { area: box, x0, x1, toX, toY, placedLines: lines });
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    marks.forEach((mark, at) => {
      const y = box.bottom - (mark - low) / (high - low || 1) * (box.bottom - box.top);
      svg.append(draw("path", { class: "grid", d: `M${box.left} ${y.toFixed(1)}H${box.right}` }),
        draw("text", { x: box.left - 6, y: y + 4, class: "end" }, named[at]));
    });
    this.horizontal(svg, height);
    const clip = `clip${figures.indexOf(this)}`;
    svg.append(draw("clipPath", { id: clip }, draw("path",
      { d: `M${box.left} ${box.top - 4}H${box.right + 3}V${box.bottom + 2}H${box.left}Z` })));
    const inside = svg.appendChild(draw("g", { "clip-path": `url(#${clip})` }));
    for (const line of lines) this.line(inside, line);
    this.alerts(svg);
    this.cross = svg.appendChild(draw("g", { class: "cross" }));
    this.plot.replaceChildren(svg);
    this.latest();
  }

  placed(line) {
    const x = along(line.run, line.x);
    const window = line.kind === "train" && !line.plain ? Math.round(view.smooth * line.y.length) : 1;
    return { ...line, at: x, smooth: smoothed(line.y, window), window };
  }

  range(lines) {
    if (view.from !== null) return [view.from, view.to];
    return extent();
  }

  heights(lines, x0, x1) {
    let low = Infinity, high = -Infinity;
    const take = (y) => {
      const value = this.log ? (y > 0 ? Math.log10(y) : null) : y;
      if (value === null || value === undefined || !isFinite(value)) return;
      low = Math.min(low, value);
      high = Math.max(high, value);
    };
    for (const line of lines) {
      line.at.forEach((x, at) => {
        if (x < x0 || x > x1) return;
        take(line.y[at]);
        if (line.low) { take(line.low[at]); take(line.high[at]); }
      });
    }
    if (!isFinite(low)) return [0, 1];
    const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
    const positive = !this.log && low >= 0;
    return [positive ? Math.max(0, low - room) : low - room, high + room];
  }

  horizontal(svg, height) {
    const { left, right, bottom } = this.area, axis = AXES[view.axis];
    const count = Math.max(2, Math.floor((right - left) / 75));
    for (const mark of ticks(this.x0, this.x1, count)) {
      const x = this.toX(mark), name = axis.name(mark);
      const half = 3.6 * name.length;
      const at = Math.min(right - half, Math.max(left + half - 8, x));
      svg.append(draw("path", { class: "grid", d: `M${x.toFixed(1)} ${bottom}v4` }),
        draw("text", { x: at.toFixed(1), y: height - 5, class: "mid" }, name));
    }
  }

  path(x, y, stairs) {
    let d = "", broken = true;
    for (let at = 0; at < x.length; at += 1) {
      const value = y[at] === null ? NaN : this.toY(y[at]);
      if (!isFinite(value) || !isFinite(x[at])) { broken = true; continue; }
      const to = `${this.toX(x[at]).toFixed(1)} ${value.toFixed(1)}`;
      if (stairs && !broken) d += `V${value.toFixed(1)}H${this.toX(x[at]).toFixed(1)}`;
      else d += (broken ? "M" : "L") + to;
      broken = false;
    }
    return d;
  }

  line(into, line) {
    const style = `stroke:${line.color}`;
    if (line.low && view.smooth < 1) {
      const there = this.path(line.at, line.high), back = [...line.at].reverse();
      const under = this.path(back, [...line.low].reverse()).replace(/^M/, "L");
      if (there && !line.low.includes(null)) {
        into.append(draw("path", { class: "band", d: `${there}${under}Z`, style: `fill:${line.color}` }));
      }
    }
    const points = line.kind !== "train" && !line.label && line.kind !== "speed";
    if (line.window > 1 && this.lines.length < 9) into.append(draw("path", { class: "raw", d: this.path(line.at, line.y), style }));
    const kind = points && several ? "smooth dashed" : "smooth";
    into.append(draw("path", { class: kind, d: this.path(line.at, line.smooth, line.kind === "speed"), style }));
    if (points || line.y.length === 1) {
      line.y.forEach((y, at) => {
        if (y === null || line.y.length > 60) return;
        into.append(draw("path", { class: "dot", style,
          d: `M${this.toX(line.at[at]).toFixed(1)} ${this.toY(y).toFixed(1)}h0` }));
      });
    }
    for (const step of line.bad || []) { // not finite: a cross at the top
      const x = this.toX(AXES[view.axis].of(page.runs[line.run], step)).toFixed(1);
      into.append(draw("path", { class: "bad", d: `M${x - 3} 6l6 6m0 -6l-6 6` }));
    }
  }

  alerts(svg) {
    for (const alert of page.alerts) {
      if (view.hidden.has(alert.run)) continue;
      const at = AXES[view.axis].of(page.runs[alert.run], alert.step);
      if (!(at >= this.x0 && at <= this.x1)) continue;
      const x = this.toX(at).toFixed(1);
      svg.append(draw("path", { class: "alert", d: `M${x} ${this.area.bottom}l-4 7h8Z` }));
    }
  }

  latest() {
    const line = this.shown().filter((one) => one.y.length)[0];
    const one = this.shown().length === 1 || !this.panel.lines.some((l) => l.label) && !several;
    this.now.textContent = line && one ? figure(line.y[line.y.length - 1]) + unitOf(this.panel.unit) : "";
  }

  // The values of all lines at a moment.
  at(x) {
    const found = [];
    for (const line of this.placedLines) {
      const at = nearest(line.at, x);
      if (at < 0 || !line.at.length) continue;
      const unit = unitOf(this.panel.unit);
      const soft = line.low ? `${figure(line.low[at])} to ${figure(line.high[at])}` : "";
      found.push({ color: line.color, label: line.name, soft, y: line.y[at], x: line.at[at],
        step: page.steps[line.x][at], value: figure(line.y[at], 6) + (line.y[at] === null ? "" : unit) });
    }
    return found;
  }

  mark(x) {
    if (!this.drawn || !this.cross) return;
    this.cross.replaceChildren();
    if (x === null || x < this.x0 || x > this.x1) return;
    const { top, bottom } = this.area, at = this.toX(x).toFixed(1);
    this.cross.append(draw("path", { d: `M${at} ${top}V${bottom}` }));
    for (const one of this.at(x)) {
      if (one.y === null || one.x < this.x0 || one.x > this.x1) continue;
      this.cross.append(draw("circle", { r: 3.5, style: `fill:${one.color}`,
        cx: this.toX(one.x).toFixed(1), cy: this.toY(one.y).toFixed(1) }));
    }
  }

  show(x, clientX, clientY) {
    const lines = this.at(x);
    if (!lines.length) return;
    const close = lines.reduce((a, b) => Math.abs(a.x - x) <= Math.abs(b.x - x) ? a : b);
    this.position = close.x;
    this.mark(close.x);
    markAll(close.x, this);
    const step = `step ${close.step.toLocaleString("en")}`;
    const heading = view.axis === "step" ? step : `${step}, ${AXES[view.axis].name(close.x)}`;
    const said = lines.slice(0, 24).map((one) => one.step === close.step ? one
      : { ...one, soft: `step ${one.step.toLocaleString("en")} ${one.soft}` });
    const width = (this.x1 - this.x0) / 100;
    for (const alert of page.alerts) {
      const at = AXES[view.axis].of(page.runs[alert.run], alert.step);
      if (Math.abs(at - close.x) < width && said.length < 28) {
        said.push({ color: "var(--red)", label: `${alert.alert} ${alert.where}`, value: "",
          soft: `step ${alert.step}` });
      }
    }
    readout(heading, said, clientX, clientY);
    return [heading, said];
  }

  listen() {
    const plot = this.plot;
    const x = (event) => {
      const box = plot.getBoundingClientRect(), { left, right } = this.area;
      const share = (event.clientX - box.left - left) / (right - left);
      return this.x0 + Math.min(1, Math.max(0, share)) * (this.x1 - this.x0);
    };
    plot.addEventListener("pointermove", (event) => {
      if (!this.drawn) return;
      event.stopPropagation();
      this.show(x(event), event.clientX, event.clientY);
      if (this.begun !== undefined) this.select(this.begun, x(event));
    });
    plot.addEventListener("pointerleave", () => this.leave());
    plot.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button || !this.drawn) return;
      this.begun = x(event);
      plot.setPointerCapture(event.pointerId);
      event.preventDefault();
      plot.focus({ preventScroll: true });
    });
    plot.addEventListener("pointerup", (event) => {
      const from = this.begun;
      this.begun = undefined;
      if (from === undefined) return;
      const to = x(event);
      if (Math.abs(this.toX(to) - this.toX(from)) > 6) zoom(Math.min(from, to), Math.max(from, to));
    });
    plot.addEventListener("dblclick", () => zoom(null, null));
    plot.addEventListener("blur", () => this.leave());
    plot.addEventListener("keydown", (event) => this.key(event));
  }

  select(from, to) {
    const [a, b] = [this.toX(from), this.toX(to)].sort((p, q) => p - q);
    this.cross.append(draw("path", { class: "selected",
      d: `M${a} ${this.area.top}H${b}V${this.area.bottom}H${a}Z` }));
  }

  leave() {
    this.begun = undefined;
    tip.hidden = true;
    this.mark(null);
    markAll(null, this);
  }

  key(event) {
    const line = this.placedLines && this.placedLines[0];
    if (!line || !["ArrowLeft", "ArrowRight", "Home", "End", "Escape"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Escape") { this.leave(); return; }
    const last = line.at.length - 1;
    const now = this.position === undefined ? last : nearest(line.at, this.position);
    const stride = event.shiftKey ? Math.max(1, Math.round(last / 20)) : 1;
    const to = { ArrowLeft: now - stride, ArrowRight: now + stride, Home: 0, End: last }[event.key];
    const x = line.at[Math.min(last, Math.max(0, to))];
    const box = this.plot.getBoundingClientRect();
    const said = this.show(x, box.left + this.toX(x), box.top + this.area.top);
    if (said) say(...said);
  }

  rows() {
    const lines = this.shown().slice(0, 12), steps = [...new Set(lines.flatMap((l) => page.steps[l.x]))];
    steps.sort((a, b) => a - b);
    const stride = Math.ceil(steps.length / 60);
    const chosen = steps.filter((_, at) => at % stride === 0 || at === steps.length - 1);
    const head = make("tr", {}, make("th", { scope: "col" }, "step"),
      ...lines.map((line) => make("th", { scope: "col", class: "n" }, line.name)));
    const body = chosen.map((step) => make("tr", {}, make("td", {}, step.toLocaleString("en")),
      ...lines.map((line) => {
        const at = page.steps[line.x].indexOf(step);
        return make("td", { class: "n" }, at < 0 ? "" : figure(line.y[at], 6));
      })));
    return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
  }
}

// The whole range of the axis, of the runs that are shown.
const extent = () => {
  let low = Infinity, high = -Infinity;
  page.runs.forEach((run, number) => {
    if (view.hidden.has(number)) return;
    for (const step of run.range) {
      const x = AXES[view.axis].of(run, step);
      if (isFinite(x)) { low = Math.min(low, x); high = Math.max(high, x); }
    }
  });
  return isFinite(low) ? [low, high > low ? high : low + 1] : [0, 1];
};
const zoom = (from, to) => {
  [view.from, view.to] = [from, to];
  for (const button of document.querySelectorAll(".all")) button.hidden = from === null;
  drawAll();
};
