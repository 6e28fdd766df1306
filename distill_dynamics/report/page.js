// Switches curves on and off in all figures, and reads values off them by pointer, touch or arrow keys.
// The page is complete without it. Each figure with curves carries a JSON block; svg.py says what is in it.
"use strict";

const NEAR = 24; // how far from a point, in the figure's own units, a pointer still means it

const controls = document.getElementById("controls");
const announcement = document.getElementById("announcement");
const off = new Set(); // "epoch:30": what is switched off

function isShown(curve) {
  // A mean is of all of its runs, or is not there.
  const runs = curve.of.length ? curve.of : curve.run === null ? [] : [curve.run];
  if (runs.some((run) => off.has("run:" + run))) return false;
  if (curve.role === "student") return !off.has("epoch:" + curve.epoch);
  return !off.has("role:" + curve.role);
}

function chart(figure) {
  const curves = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot");
  const svg = plot.querySelector("svg");
  const title = figure.querySelector("h3").textContent;
  let at = null; // the point that is read: {curve, index}

  const mark = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  mark.setAttribute("r", 5);
  mark.setAttribute("class", "mark");
  const readout = document.createElement("div");
  readout.className = "readout";
  readout.setAttribute("aria-hidden", "true"); // what the keyboard finds is announced instead

  function clear() {
    at = null;
    mark.remove();
    readout.remove();
  }

  function show(curve, index) {
    at = { curve, index };
    const [x, y, point, value] = curve.points[index];
    mark.setAttribute("cx", x);
    mark.setAttribute("cy", y);
    svg.append(mark);
    const said = [curve.measure === curve.label ? "" : curve.measure, value, curve.unit];
    readout.textContent = `${curve.label}, ${point}: ${said.filter(Boolean).join(" ")}`;
    plot.append(readout);
    // Beside the point, on the side where there is room.
    const frame = plot.getBoundingClientRect();
    const spot = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
    const left = spot.x - frame.left;
    const room = Math.max(0, frame.width - readout.offsetWidth);
    readout.style.left = `${Math.min(room, Math.max(0, left - readout.offsetWidth / 2))}px`;
    readout.style.top = `${spot.y - frame.top - readout.offsetHeight - 10}px`;
    return readout.textContent;
  }

  function nearest(event) {
    const inverse = svg.getScreenCTM().inverse();
    const pointer = new DOMPoint(event.clientX, event.clientY).matrixTransform(inverse);
    let best = null;
    for (const curve of curves.filter(isShown)) {
      curve.points.forEach(([x, y], index) => {
        const distance = Math.hypot(x - pointer.x, y - pointer.y);
        if (distance < NEAR && (best === null || distance < best.distance)) best = { curve, index, distance };
      });
    }
    return best;
  }

  function point(event) {
    const found = nearest(event);
    if (found) show(found.curve, found.index);
    else clear();
  }
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && clear());

  // Screen readers keep arrow keys for themselves, but for an application.
  plot.tabIndex = 0;
  plot.setAttribute("role", "application");
  plot.setAttribute("aria-label", `${title}. Arrow keys: left and right along a curve, up and down between curves.`);

  function step(key) {
    const shown = curves.filter((curve) => isShown(curve) && curve.points.length);
    if (!shown.length) return "no curve is switched on";
    let number = at ? shown.indexOf(at.curve) : -1;
    if (number < 0) return show(shown[0], 0);
    let index = at.index;
    if (key === "ArrowLeft") index -= 1;
    if (key === "ArrowRight") index += 1;
    if (key === "Home") index = 0;
    if (key === "End") index = Infinity;
    if (key === "ArrowUp") number -= 1;
    if (key === "ArrowDown") number += 1;
    const curve = shown[(number + shown.length) % shown.length];
    return show(curve, Math.min(curve.points.length - 1, Math.max(0, index)));
  }
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") clear();
    if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
    event.preventDefault(); // the page would scroll
    announcement.textContent = step(event.key);
  });
  plot.addEventListener("focus", () => {
    if (plot.matches(":focus-visible")) announcement.textContent = step("");
  });
  plot.addEventListener("blur", clear);

  return function update() {
    for (const curve of curves) {
      for (const id of curve.ids) {
        const element = document.getElementById(id); // a line of which nothing is finite has none
        if (element) element.style.display = isShown(curve) ? "" : "none";
      }
    }
    if (at && !isShown(at.curve)) clear();
  };
}

const updates = [...document.querySelectorAll("figure[data-curves]")].map(chart);

function update() {
  off.clear();
  for (const box of controls.querySelectorAll("input")) {
    if (!box.checked) off.add(`${box.name}:${box.value}`);
  }
  for (const one of updates) one();
}

if (controls) {
  controls.hidden = false;
  controls.open = matchMedia("(min-width: 40rem)").matches; // a phone has no room for it to stay open
  controls.addEventListener("change", update);
  controls.addEventListener("click", (event) => {
    const all = event.target.dataset.set;
    if (all === undefined) return;
    for (const box of event.target.closest("fieldset").querySelectorAll("input")) box.checked = all === "all";
    update();
  });
  update(); // a browser may have kept the boxes of an earlier visit
}
