"use strict";
document.documentElement.classList.add("script");

// Tooltips at once, in place of the browser's own, which come late.
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.hidden = true;
const placeTip = (x, y) => {
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(x + 14, innerWidth - box.width - 8);
  const below = y + 18 + box.height < innerHeight;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = (below ? y + 18 : Math.max(8, y - box.height - 10)) + "px";
};
const told = (element) => {
  if (!element || !element.closest) return "";
  const owner = element.closest("[title],[data-tip],rect,circle");
  if (!owner) return "";
  if (owner.dataset.tip === undefined) {
    const child = owner.querySelector(":scope > title");
    owner.dataset.tip = owner.getAttribute("title") || (child ? child.textContent : "");
    owner.removeAttribute("title");
    if (child) child.remove();
  }
  return owner.dataset.tip;
};
document.addEventListener("pointermove", (event) => {
  const said = told(event.target);
  tip.hidden = !said;
  if (!said) return;
  if (tip.textContent !== said) tip.textContent = said;
  placeTip(event.clientX, event.clientY);
});
