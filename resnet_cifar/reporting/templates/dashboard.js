"use strict";
const {parts, events, reload} = JSON.parse(document.querySelector("#state").textContent);
const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const HEIGHT = 230, LEFT = 54, RIGHT = 12, TOP = 10, BOTTOM = 26;
let axis = 0, hidden = new Set();

function create(name, attributes = {}, ...children) {
  const is_svg = ["svg", "path", "line", "circle", "text", "title", "g"].includes(name);
  const made = is_svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// The choices survive a page that loads itself again.
function remember() {
  const open = all("details").map(each => [each.dataset.key, each.open]);
  try { sessionStorage.setItem("dashboard", JSON.stringify({axis, hidden: [...hidden], open})); } catch { /* not allowed */ }
}
try {
  const kept = JSON.parse(sessionStorage.getItem("dashboard"));
  if (kept) {
    [axis, hidden] = [kept.axis, new Set(kept.hidden)];
    for (const [key, open] of kept.open) all("details").filter(each => each.dataset.key === key).forEach(each => { each.open = open; });
  }
} catch { /* the first time */ }

// Changes what differs, and nothing else: no flicker, and focus, scrolling and open details stay.
function morph(old, now) {
  if (old.nodeName !== now.nodeName) return old.replaceWith(now);
  if (old.nodeType === Node.TEXT_NODE) { if (old.data !== now.data) old.data = now.data; return; }
  for (const {name, value} of now.attributes) if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const {name} of [...old.attributes]) if (name !== "open" && !now.hasAttribute(name)) old.removeAttribute(name);
  const [before, after] = [[...old.childNodes], [...now.childNodes]];
  after.forEach((child, number) => before[number] ? morph(before[number], child) : old.append(child));
  before.slice(after.length).forEach(child => child.remove());
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(times => times * power).find(each => each >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9), found = [];
  for (let number = first; number * step <= high + step * 1e-6; number++) found.push(+(number * step).toPrecision(12));
  return found;
}

const plain = value => value && Math.abs(value) < 1e-3 ? value.toExponential(1) : value.toLocaleString("en", {maximumSignificantDigits: 4});
const format = (panel, value) => panel.share ? `${+(100 * value).toPrecision(4)} %` : plain(value);
const drawn = () => parts.layout.runs.filter(key => !hidden.has(key)).map(key => parts[`run:${key}`]);

// Lines of the panel: points are [step, epoch, value], of a band also its ends.
function series(panel) {
  if (panel.bands) return panel.bands.map(each => ({run: each, name: each.name, points: each.points, band: true}));
  return drawn().flatMap(run => panel.fields.filter(field => run.lines[field]?.length).map(field => {
    const training = field.startsWith("train/"), kind = panel.fields.length > 1 ? (training ? ", training" : ", validation") : "";
    return {run, name: run.name + kind, points: run.lines[field], field, thin: training, marks: field.startsWith("val/")};
  }));
}

function draw(figure, panel) {
  const svg = one("svg", figure), width = Math.max(240, figure.clientWidth), lines = panel.points ? [] : series(panel);
  const dots = (panel.points || []).filter(([, , key]) => !hidden.has(key));
  const place = x => panel.log ? Math.log10(x) : x;
  const xs = [...lines.flatMap(line => line.points.map(point => point[axis])), ...dots.map(([x]) => place(x))];
  const ys = [...lines.flatMap(line => line.points.flatMap(point => point.slice(2))), ...dots.map(([, y]) => y)];
  const least = values => values.reduce((a, b) => Math.min(a, b), Infinity), most = values => values.reduce((a, b) => Math.max(a, b), -Infinity);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren();
  figure.shown = null;
  if (!xs.length) return;
  let [left, right, low, high] = [panel.points ? least(xs) : 0, most(xs), panel.zero ? 0 : least(ys), most(ys)];
  if (right <= left) right = left + 1;
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [panel.zero ? 0 : low - pad, high + pad];
  if (panel.share) [low, high] = [Math.max(low, -0.02), Math.min(high, 1.02)];
  if (panel.points) [left, right] = [left - (right - left) * 0.05, right + (right - left) * 0.05];
  const x = value => LEFT + (value - left) / (right - left) * (width - LEFT - RIGHT);
  const y = value => HEIGHT - BOTTOM - (Math.min(Math.max(value, low), high) - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
  for (const value of ticks(low, high, 4)) {
    svg.append(create("line", {x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), stroke: "var(--line)"}));
    svg.append(create("text", {x: LEFT - 6, y: y(value) + 4, "text-anchor": "end"}, format(panel, value)));
  }
  for (const value of ticks(left, right, Math.max(2, width / 80))) {
    if (panel.log && !Number.isInteger(value)) continue;
    svg.append(create("text", {x: x(value), y: HEIGHT - 8, "text-anchor": "middle"}, plain(panel.log ? 10 ** value : value)));
  }
  svg.append(create("text", {x: LEFT - 14, y: HEIGHT - 8, "text-anchor": "end"}, panel.points ? "" : axis ? "epoch" : "step"));
  if (!panel.points && !panel.bands) for (const run of drawn()) for (const stop of run.stops) {
    const at = x(stop[axis]), mark = create("line", {class: "interruption", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM, stroke: `var(${run.color})`, "stroke-width": 1.5, "stroke-dasharray": "5 4"});
    mark.append(create("title", {}, `${run.name}: ${stop[2]}`));
    svg.append(mark);
  }
  for (const line of lines) {
    const stroke = `var(${line.run.color})`, path = line.points.map(point => `${x(point[axis]).toFixed(1)},${y(point[2]).toFixed(1)}`);
    if (line.band) {
      const ends = [...line.points.map(point => [point[axis], point[3]]), ...line.points.map(point => [point[axis], point[4]]).reverse()];
      svg.append(create("path", {d: `M${ends.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("L")}Z`, fill: stroke, opacity: 0.18}));
    }
    svg.append(create("path", {d: `M${path.join("L")}`, fill: "none", stroke, "stroke-width": line.thin ? 1 : 2, opacity: line.thin ? 0.65 : 1, "stroke-linejoin": "round", "stroke-dasharray": line.run.dash || ""}));
    if ((line.marks || line.points.length === 1) && line.points.length < 40) for (const point of line.points) svg.append(create("circle", {cx: x(point[axis]), cy: y(point[2]), r: 2.6, fill: stroke}));
    const best = line.marks && line.run.best && line.points.find(point => point[0] === line.run.best.step);
    if (best) svg.append(create("circle", {class: "best", cx: x(best[axis]), cy: y(best[2]), r: 6, fill: "none", stroke, "stroke-width": 2}));
  }
  for (const [value, score, key] of dots) {
    const run = parts[`run:${key}`], dot = create("circle", {cx: x(place(value)), cy: y(score), r: 5, fill: `var(${run ? run.color : "--muted"})`, opacity: 0.85});
    dot.append(create("title", {}, `${run ? run.name : key}: ${plain(value)}, ${format(panel, score)}`));
    svg.append(dot);
  }
  svg.append(create("line", {x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, stroke: "var(--line)"}));
  figure.shown = {lines, panel, x, from: place => left + (place - LEFT) / (width - LEFT - RIGHT) * (right - left), width};
  if (figure.pointer !== undefined) point(figure, figure.pointer);
}

// The values of all lines nearest to the pointer.
function point(figure, across) {
  figure.pointer = across;
  all(".tip, .cursor", figure).forEach(each => each.remove());
  if (across === undefined || !figure.shown?.lines.length) return;
  const {lines, panel, x, from, width} = figure.shown, wanted = from(across);
  const near = lines.map(line => [line, line.points.reduce((a, b) => Math.abs(b[axis] - wanted) < Math.abs(a[axis] - wanted) ? b : a)]);
  const [, nearest] = near.reduce((a, b) => Math.abs(b[1][axis] - wanted) < Math.abs(a[1][axis] - wanted) ? b : a);
  one("svg", figure).append(create("line", {class: "cursor", x1: x(nearest[axis]), x2: x(nearest[axis]), y1: TOP, y2: HEIGHT - BOTTOM, stroke: "var(--muted)"}));
  const tip = create("div", {class: "tip"}, create("b", {}, `${axis ? "epoch" : "step"} ${plain(nearest[axis])}`));
  const rows = near.sort((a, b) => b[1][2] - a[1][2]).slice(0, 8);
  for (const [line, value] of rows) {
    const text = `${line.name}: ${format(panel, value[2])}${line.band ? ` (${format(panel, value[3])} to ${format(panel, value[4])})` : ""}`;
    tip.append(create("div", {}, create("span", {class: "dot", style: `background: var(${line.run.color})`}), text));
  }
  const is_right = x(nearest[axis]) > width / 2;
  tip.style[is_right ? "right" : "left"] = `${(is_right ? width - x(nearest[axis]) : x(nearest[axis])) + 10}px`;
  figure.append(tip);
}

function figures() {
  for (const section of all("section")) {
    const panels = parts.layout.panels.filter(panel => panel.section === section.id), grid = one(".panels", section);
    while (grid.children.length > panels.length) grid.lastChild.remove();
    panels.forEach((panel, number) => {
      let figure = grid.children[number];
      if (!figure) {
        figure = create("figure", {}, create("h3"), create("svg", {role: "img"}));
        const made = figure;
        const across = event => event.clientX - one("svg", made).getBoundingClientRect().left;
        figure.addEventListener("pointermove", event => point(made, across(event)));
        figure.addEventListener("pointerdown", event => point(made, across(event)));
        figure.addEventListener("pointerleave", () => point(made, undefined));
        grid.append(figure);
      }
      one("h3", figure).textContent = panel.title;
      one("svg", figure).setAttribute("aria-label", panel.title);
    });
    section.hidden = !panels.length && !one(".tables", section).children.length;
    one(`nav a[href="#${section.id}"]`).hidden = section.hidden;
    panels.forEach((panel, number) => draw(grid.children[number], panel));
  }
}

function legend() {
  const runs = parts.layout.runs, buttons = runs.map(key => {
    const run = parts[`run:${key}`], sample = create("svg", {viewBox: "0 0 22 8", "aria-hidden": "true"}, create("line", {x1: 0, x2: 22, y1: 4, y2: 4, stroke: `var(${run.color})`, "stroke-width": 3, "stroke-dasharray": run.dash || ""}));
    return create("button", {type: "button", "data-run": key, "aria-pressed": String(!hidden.has(key))}, sample, run.name);
  });
  morph(one("#legend"), create("div", {id: "legend", role: "group", "aria-label": "Runs in the charts"}, ...buttons));
  all("#axis button").forEach(button => button.setAttribute("aria-pressed", String(+button.dataset.axis === axis)));
  const states = all(".runs .state").map(each => each.textContent), going = states.filter(each => each === "running" || each === "starting").length;
  const summary = `${states.length} run${states.length === 1 ? "" : "s"}, ${going ? `${going} going on` : "none going on"}.`;
  one("#count").textContent = summary;
  document.title = `${going ? "▶ " : ""}${summary}`;
}

function show() { legend(); figures(); remember(); }

one("#bar").addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.axis) axis = +button.dataset.axis;
  else if (!hidden.delete(button.dataset.run)) hidden.add(button.dataset.run);
  show();
});
document.addEventListener("toggle", remember, true);
addEventListener("resize", figures);
show();

if (events) {
  const source = new EventSource(events);
  source.addEventListener("error", () => { one("#lost").textContent = "The connection is lost: start resnet-cifar dashboard again."; });
  source.addEventListener("open", () => { one("#lost").textContent = ""; });
  source.addEventListener("message", event => {
    for (const [name, part] of Object.entries(JSON.parse(event.data))) {
      if (part === null) delete parts[name];
      else parts[name] = part;
      if (!name.startsWith("html:")) continue;
      const tables = one(`#${name.slice(5)} .tables`);
      morph(tables, create("div", {class: "tables"}, ...new DOMParser().parseFromString(part, "text/html").body.childNodes));
    }
    one("#made").textContent = `Read ${new Date().toLocaleTimeString()}.`;
    show();
  });
}
if (reload) setInterval(() => { if (!document.hidden && getSelection().isCollapsed) location.reload(); }, 1000 * reload);
