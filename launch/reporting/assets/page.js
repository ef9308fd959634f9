
// ------------------------------------------------------------------------------ the sections
const place = (identity) => document.getElementById(identity);
for (const panel of page.panels) {
  const host = place(`panels-${panel.group}`);
  if (host) new Curves(panel, host);
}

const opened = (details, build) => { // built when it is first opened
  details.addEventListener("toggle", () => { if (details.open && !details.dataset.built) {
    details.dataset.built = "yes";
    build();
  } });
};
const layerPanel = (run, names, one) => {
  const stacks = names.map((name) => name.split(".")[0]);
  const lines = one.rows.map((row, at) => row && {
    run, kind: "train", label: names[at], x: one.x, y: row,
    color: between(stacks.slice(0, at).filter((s) => s === stacks[at]).length,
      stacks.filter((s) => s === stacks[at]).length, stacks[at].startsWith("encoder")),
  }).filter(Boolean);
  return { title: one.title, unit: one.unit, lines };
};
const routers = place("routers");
const MOST_MAPS = 8;
if (routers) {
  const pick = place("router-run"), amount = place("router-figure");
  const loads = place("router-loads"), whole = place("router-map"), more = place("router-more");
  const curves = place("router-curves");
  const showRun = () => {
    const run = Number(pick ? pick.value : routers.dataset.run), router = page.routers[run];
    const shown = amount.value;
    amount.replaceChildren(...router.figures.map((one, at) => make("option", { value: at }, one.title)));
    const same = router.figures.findIndex((one) => String(one.name) === amount.dataset.name);
    amount.value = same >= 0 ? same : shown && router.figures[shown] ? shown : 0;
    for (const host of [loads, curves]) host.replaceChildren();
    let built = 0;
    const build = (count) => {
      for (; built < Math.min(count, router.layers.length); built += 1) {
        loadMap(loads, run, router.layers[built]);
      }
      more.hidden = built >= router.layers.length;
      more.textContent = `Show all ${router.layers.length} layers`;
    };
    more.onclick = () => build(Infinity);
    build(MOST_MAPS);
    showFigure();
    for (const one of router.figures) new Curves(layerPanel(run, router.names, one), curves);
  };
  const showFigure = () => {
    const run = Number(pick ? pick.value : routers.dataset.run), router = page.routers[run];
    whole.replaceChildren();
    const one = router.figures[amount.value];
    if (one) { amount.dataset.name = one.name; figureMap(whole, run, router.names, one); }
  };
  if (pick) pick.addEventListener("change", showRun);
  amount.addEventListener("change", showFigure);
  showRun();
}

// ----------------------------------------------------------------------- speed, and the time
const PARTS = page.parts;
const speed = place("speed");
if (speed) {
  const panelOf = (title, unit, name, scale) => ({
    title, unit, lines: page.runs.flatMap((run, number) => {
      if (!run.goodput || !run.goodput[name].some((value) => value !== null)) return [];
      const ends = run.goodput.clock.map(([step]) => step);
      const values = run.goodput[name].map((value) => value === null ? null : scale * value);
      page.steps.push(ends);
      // Each value holds from the end of the interval before it to its own.
      return [{ run: number, kind: "speed", label: "", plain: true, x: page.steps.length - 1,
        y: [values[0], ...values] }];
    }),
  });
  for (const panel of [panelOf("examples per second", "", "rate", 1), panelOf("MFU", "%", "mfu", 100)]) {
    if (panel.lines.length) new Curves(panel, speed);
  }
}
for (const host of document.querySelectorAll(".spent")) {
  const { goodput } = page.runs[Number(host.dataset.run)];
  const total = goodput.clock[goodput.clock.length - 1][1] || 1;
  goodput.parts.forEach((parts, at) => {
    const seconds = goodput.clock[at + 1][1] - goodput.clock[at][1];
    const sum = parts.reduce((a, b) => a + b, 0) || 1;
    const said = parts.map((part, which) => [PARTS[which], part]).filter(([, part]) => part > 0.0005 * sum)
      .map(([name, part]) => `${name} ${duration(part)}, ${figure(100 * part / sum, 2)} %`).join("\n");
    const column = make("div", { class: "interval", style: `width:${100 * seconds / total}%` },
      ...parts.map((part, which) => make("i", { class: `p-${which}`, style: `height:${100 * part / sum}%` })));
    column.title = `steps ${goodput.clock[at][0].toLocaleString("en")} to ` +
      `${goodput.clock[at + 1][0].toLocaleString("en")}, ${duration(seconds)}\n${said}`;
    host.append(column);
  });
  for (const start of goodput.starts.slice(1)) {
    const mark = make("div", { class: "started", style: `left:${100 * start / total}%` });
    mark.title = `started again after ${duration(start)}`;
    host.append(mark);
  }
}

// --------------------------------------------------------------------------------- controls
const smooth = place("smooth");
if (smooth) {
  smooth.addEventListener("input", () => {
    view.smooth = Math.pow(smooth.value / 100, 2) * 0.5;
    smooth.setAttribute("aria-valuetext", `${figure(100 * view.smooth, 2)} % of the run`);
    drawAll();
  });
}
for (const axis of document.querySelectorAll("input[name=axis]")) {
  axis.addEventListener("change", () => { view.axis = axis.value; zoom(null, null); });
}
for (const button of document.querySelectorAll(".all")) {
  button.addEventListener("click", () => zoom(null, null));
}
const part = place("part");
if (part) {
  part.addEventListener("change", () => {
    kept.clear();
    const [low, high] = extent();
    const share = Number(part.value);
    zoom(share < 1 ? high - share * (high - low) : null, share < 1 ? high : null);
  });
}
for (const box of document.querySelectorAll("input[data-shown]")) {
  box.addEventListener("change", () => {
    const run = Number(box.dataset.shown);
    if (box.checked) view.hidden.delete(run); else view.hidden.add(run);
    drawAll();
  });
}
const settings = place("settings");
if (settings) {
  const words = place("words"), whole = place("every"), count = place("matches");
  const rows = [...settings.querySelectorAll("tbody tr")];
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = wanted.every((word) => text.includes(word));
      row.hidden = !fits || !(wanted.length || whole.checked || row.dataset.set);
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} keys`;
  };
  words.addEventListener("input", filter);
  whole.addEventListener("change", filter);
  filter();
}

// ------------------------------------------------------------------------------------ theme
const theme = place("theme"), system = matchMedia("(prefers-color-scheme: dark)");
const themed = () => {
  const dark = (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  theme.setAttribute("aria-pressed", String(dark));
  drawAll();
};
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = theme.getAttribute("aria-pressed") === "true" ? "light" : "dark";
  themed();
});
system.addEventListener("change", themed);
theme.setAttribute("aria-pressed", String(system.matches));

// The chapter that is in sight is marked in the list of chapters.
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(target.id).setAttribute("aria-current", "true");
  }
}, { rootMargin: "-45% 0px -50% 0px" });
for (const identity of links.keys()) seen.observe(place(identity));

// What is far from the window is drawn when there is nothing else to do, and all of it for a printer.
const rest = () => {
  const one = figures.find((other) => !other.drawn && other.visible());
  if (one) { one.draw(); setTimeout(rest); } else document.documentElement.dataset.ready = "yes";
};
setTimeout(rest);
addEventListener("beforeprint", drawAll);
