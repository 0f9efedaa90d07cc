// Pictures as SVG, with colours that stand in the file itself, so that what is exported looks as what is seen.

import { download, h, s, say } from "./dom.js";

export const dark = () => document.documentElement.dataset.theme === "dark";
export const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Blue for much; blue and orange for both signs. Told apart with every kind of colour blindness, and in grey.
const MUCH = { light: ["#f3f6fa", "#9ec4e6", "#2b7bba", "#08306b"], dark: ["#1c2733", "#1f4f82", "#4d96d9", "#d6eaff"] };
const SIGNED = { light: ["#7f3b08", "#e08214", "#f3f4f5", "#4a90d0", "#0b3d78"], dark: ["#ffc27a", "#c06a1c", "#222c38", "#3f7fc0", "#b5d9ff"] };

function between(stops, at) {
  const place = Math.max(0, Math.min(1, at)) * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(place));
  const [a, b] = [stops[low], stops[low + 1]].map((one) => [1, 3, 5].map((i) => parseInt(one.slice(i, i + 2), 16)));
  return a.map((one, i) => Math.round(one + (b[i] - one) * (place - low)));
}

const css = (rgb) => `#${rgb.map((one) => one.toString(16).padStart(2, "0")).join("")}`;
export const muchRgb = (p) => between(MUCH[dark() ? "dark" : "light"], p);
export const much = (p) => css(muchRgb(p));
export const signed = (value, most) => css(between(SIGNED[dark() ? "dark" : "light"], 0.5 + value / (2 * (most || 1))));

// Black or white, whichever reads better: one of them always has WCAG's contrast of 4.5.
export function over(colour) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16) / 255).map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? "#000000" : "#ffffff";
}

export function text(x, y, content, more = {}) {
  return s("text", { x, y, fill: ink("ink"), "font-size": 12, "font-family": "system-ui, 'DejaVu Sans', sans-serif", ...more }, content);
}

export const mono = { "font-family": "ui-monospace, 'DejaVu Sans Mono', monospace" };

// How wide a picture may be that fills an element, in its own units; 0 where that is not shown yet.
export const widthIn = (element) => element.clientWidth * 15 / parseFloat(getComputedStyle(document.documentElement).fontSize);

export function drawing(width, height, label, ...children) {
  // In rem, so that pictures grow with the text of a large screen.
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label, style: { width: `${width / 15}rem` } }, ...children);
}

function file(svg) {
  const copy = svg.cloneNode(true);
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  copy.removeAttribute("style");
  copy.prepend(s("rect", { width, height, fill: ink("card") }));
  const words = new XMLSerializer().serializeToString(copy);
  return { blob: new Blob([words], { type: "image/svg+xml" }), width, height };
}

async function png(svg) {
  const { blob, width, height } = file(svg);
  const url = URL.createObjectURL(blob);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = h("canvas", { width: width * 2, height: height * 2 });
    canvas.getContext("2d").drawImage(image, 0, 0, width * 2, height * 2);
    return await new Promise((done) => canvas.toBlob(done, "image/png"));
  } finally {
    URL.revokeObjectURL(url);
  }
}

// A picture with what it shows in words, what the pointer or the keys are at, and its export.
export function figure(name, svg, words = "", scroll = false) {
  const readout = h("div", { class: "readout", role: "status" }, words);
  const save = (kind) => h("button", { type: "button", class: "plain small", "data-export": `${name}.${kind}`, "aria-label": `Save ${name} as ${kind.toUpperCase()}`, onclick: async () => {
    try {
      const picture = typeof svg === "function" ? svg() : svg;
      download(`${name}.${kind}`, kind === "svg" ? file(picture).blob : await png(picture));
    } catch (error) { say(`The picture could not be saved: ${error.message}`); }
  } }, kind.toUpperCase());
  const seen = typeof svg === "function" ? null : scroll ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${name}, scrolls` }, svg) : svg;
  const element = h("figure", { "data-picture": name }, seen, h("figcaption", {}, readout, h("span", { class: "saves" }, save("svg"), " ", save("png"))));
  element.tell = (message) => { if (readout.textContent !== message) readout.textContent = message; };
  return element;
}

// A table of colours. `tell` says a cell in words, `pick` is called with one; arrow keys move, Enter picks.
export function heat({ name, label, rows, columns, colour, tell, pick, chosen, rowNames = [], columnNames = [], size, words, labels = true }) {
  const left = labels ? 8 + Math.max(0, ...rowNames.map((one) => [...one].length)) * 7.3 : 2;
  const above = labels && columnNames.length ? 12 + Math.max(...columnNames.map((one) => [...one].length)) * 6.6 : 2;
  const cell = size ?? Math.max(7, Math.min(30, 620 / columns));
  const step = cell < 11 ? Math.ceil(11 / cell) : 1;
  const svg = drawing(left + columns * cell + 14, above + rows * cell + 4, label);
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-roledescription", "heat map");
  svg.setAttribute("tabindex", "0");
  const rects = [];
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const fill = colour(r, c);
      if (fill === null) { rects.push(null); continue; }
      const rect = s("rect", { x: left + c * cell, y: above + r * cell, width: cell - (cell > 9 ? 1 : 0), height: cell - (cell > 9 ? 1 : 0), fill, rx: cell > 14 ? 2 : 0 });
      rects.push(rect);
      svg.append(rect);
    }
  }
  if (labels) {
    for (let r = 0; r < rowNames.length; r += step) svg.append(text(left - 5, above + r * cell + cell / 2 + 4, rowNames[r], { "text-anchor": "end", "font-size": 11, ...mono }));
    for (let c = 0; c < columnNames.length; c += step) {
      const x = left + c * cell + cell / 2 + 4;
      svg.append(text(x, above - 5, columnNames[c], { transform: `rotate(-90 ${x} ${above - 5})`, "font-size": 11, ...mono }));
    }
  }
  const cursor = s("rect", { width: cell, height: cell, fill: "none", stroke: ink("minus"), "stroke-width": 2, visibility: "hidden" });
  svg.append(cursor);
  const element = figure(name, svg, words, left + columns * cell > 480);
  let at = chosen ?? [0, 0];
  const move = (r, c) => {
    at = [Math.max(0, Math.min(rows - 1, r)), Math.max(0, Math.min(columns - 1, c))];
    cursor.setAttribute("x", left + at[1] * cell - 0.5);
    cursor.setAttribute("y", above + at[0] * cell - 0.5);
    cursor.setAttribute("visibility", "visible");
    element.tell(tell(...at));
  };
  const under = (event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const c = Math.floor(((event.clientX - box.left) * scale - left) / cell), r = Math.floor(((event.clientY - box.top) * scale - above) / cell);
    return r >= 0 && r < rows && c >= 0 && c < columns ? [r, c] : null;
  };
  svg.addEventListener("pointermove", (event) => { const found = under(event); if (found) move(...found); });
  svg.addEventListener("click", (event) => { const found = under(event); if (found && pick) pick(...found); });
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (by) { event.preventDefault(); move(at[0] + by[0], at[1] + by[1]); }
    else if ((event.key === "Enter" || event.key === " ") && pick) { event.preventDefault(); pick(...at); }
  });
  if (chosen) move(...chosen);
  element.paint = (r, c) => { const rect = rects[r * columns + c]; if (rect) rect.setAttribute("fill", colour(r, c)); };
  return element;
}

// Bars to both sides of 0.
export function bars({ name, label, values, names, words, pick, width = 560 }) {
  const most = Math.max(1e-12, ...values.map(Math.abs));
  const left = 14 + Math.min(26, Math.max(4, ...names.map((one) => [...one].length))) * 7;
  const room = width - left - 76, low = Math.min(0, ...values), high = Math.max(0, ...values), span = high - low || 1;
  const zero = left + 8 + (low < 0 ? 52 : 0) + (-low / span) * (room - (low < 0 ? 52 : 0));
  const scale = (room - (low < 0 ? 52 : 0)) / span;
  const svg = drawing(width, values.length * 20 + 8, label);
  values.forEach((value, i) => {
    const y = 4 + i * 20, x = value < 0 ? zero + value * scale : zero;
    const line = s("g", pick ? { role: "button", tabindex: 0, "aria-label": `${names[i]}: ${value.toFixed(3)}`, onclick: () => pick(i), onkeydown: (event) => { if (event.key === "Enter") pick(i); } } : {});
    line.append(s("rect", { x: 0, y, width, height: 19, fill: "transparent" }));
    line.append(text(left, y + 14, names[i], { "text-anchor": "end", "font-size": 12, ...mono }));
    line.append(s("rect", { x, y: y + 3, width: Math.max(1, Math.abs(value) * scale), height: 13, rx: 2, fill: ink(value < 0 ? "minus" : "plus") }));
    line.append(text(value < 0 ? x - 4 : x + Math.abs(value) * scale + 4, y + 14, `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(most < 0.1 ? 4 : 2)}`, { "text-anchor": value < 0 ? "end" : "start", "font-size": 11, fill: ink("quiet") }));
    svg.append(line);
  });
  svg.append(s("line", { x1: zero, x2: zero, y1: 0, y2: values.length * 20 + 8, stroke: ink("quiet"), "stroke-width": 1 }));
  if (pick) svg.setAttribute("role", "group");
  return figure(name, svg, words);
}
