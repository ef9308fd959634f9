// A click on a layer makes it as wide as the picture, a click on what holds all shows all.
for (const icicle of document.querySelectorAll(".icicle")) {
  const cells = [...icicle.children].map((cell) => ({
    cell, left: parseFloat(cell.style.left), width: parseFloat(cell.style.width),
  }));
  icicle.addEventListener("click", (event) => {
    const chosen = cells.find((one) => one.cell === event.target);
    if (!chosen) return;
    for (const one of cells) {
      const left = Math.max(0, (one.left - chosen.left) / chosen.width * 100);
      const right = Math.min(100, (one.left + one.width - chosen.left) / chosen.width * 100);
      one.cell.style.left = left + "%";
      one.cell.style.width = Math.max(0, right - left) + "%";
      one.cell.style.display = right - left > 0.01 ? "" : "none";
    }
  });
}

// The timeline grows in its own scroll bar; its axis gets as many marks as there is room for.
const named = (seconds) => {
  const [unit, scale] = seconds >= 1 ? ["s", 1] : seconds >= 1e-3 ? ["ms", 1e-3] : ["us", 1e-6];
  return seconds ? Number((seconds / scale).toPrecision(4)) + " " + unit : "0";
};
const zoom = document.getElementById("zoom");
if (zoom) {
  const scroll = document.querySelector(".scroll"), track = document.querySelector(".track");
  const axis = track.querySelector(".axis"), whole = Number(axis.dataset.seconds);
  zoom.addEventListener("input", () => {
    const factor = Math.pow(60, zoom.value / 100);
    const middle = (scroll.scrollLeft + scroll.clientWidth / 2) / track.clientWidth;
    track.style.width = 100 * factor + "%";
    scroll.scrollLeft = middle * track.clientWidth - scroll.clientWidth / 2;
    const count = Math.round(6 * factor);
    axis.replaceChildren(...Array.from({ length: count }, (_, at) => {
      const mark = document.createElement("span");
      mark.style.left = 100 * at / count + "%";
      mark.textContent = named(whole * at / count);
      return mark;
    }));
  });
}

// The table: sorted by a heading, filtered by words.
const table = document.getElementById("operations");
if (table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const numbers = head.classList.contains("n");
    const descending = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => numbers ? Number(row.cells[column].dataset.v)
      : row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return numbers ? x - y : x < y ? -1 : x > y ? 1 : 0;
    });
    if (descending) rows.reverse();
    body.append(...rows);
  }));
  document.getElementById("filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
