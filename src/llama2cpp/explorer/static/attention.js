// Who looks at whom: all heads as small pictures, and one of them large.

import { h, number, plain, put, s } from "./dom.js";
import { ask, busily, quietly } from "./api.js";
import { begin, edits, ids, model, position, state, update } from "./state.js";
import { textOf, choose } from "./write.js";
import { drawing, figure, heat, ink, much, muchRgb, text, widthIn } from "./pictures.js";

export const title = "Attention";
const grid = h("div"), large = h("div"), pager = h("div", { class: "row" });
let first = 0;

export function panel() {
  return [
    h("h2", {}, "Who looks at whom"),
    h("p", { class: "why" }, "Each head of attention lets a token look back at earlier ones. In a picture, each row is a token that looks, each column one that is looked at; the more weight, the more a cell stands out. A diagonal that stands out looks at itself, such a first column rests, a stripe beside the diagonal looks at the token before. Choose a head to see it large."),
    h("div", { class: "columns" }, h("div", {}, h("h3", {}, "All heads"), pager, grid), h("div", {}, large)),
  ];
}

function thumbnail(bytes, side) {
  const canvas = h("canvas", { width: side, height: side }), context = canvas.getContext("2d"), image = context.createImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    const future = i % side > Math.floor(i / side);
    image.data.set(future ? [0, 0, 0, 0] : [...muchRgb(bytes[i] / 255), 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

function drawGrid(told) {
  const bytes = Uint8Array.from(atob(told.bytes), (one) => one.charCodeAt(0)), { side, layers } = told;
  const heads = model.n_heads, group = heads / model.n_kv_heads, left = 34, above = 40;
  const room = Math.max(280, Math.min(760, widthIn(grid) || 420)), gap = 3, between = group > 1 ? 8 : 3;
  const cell = Math.max(22, Math.min(72, (room - left - model.n_kv_heads * between - heads * gap) / heads));
  const x = (head) => left + head * (cell + gap) + Math.floor(head / group) * between, y = (row) => above + row * (cell + gap);
  const svg = drawing(x(heads - 1) + cell + 6, y(layers.length - 1) + cell + 6, `Attention of ${heads} heads in ${layers.length} layers`);
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-roledescription", "grid of heads");
  svg.setAttribute("tabindex", "0");
  for (let kv = 0; kv < model.n_kv_heads; kv++) {
    const from = x(kv * group), to = x(kv * group + group - 1) + cell;
    svg.append(s("rect", { x: from, y: 16, width: to - from, height: 4, rx: 2, fill: ink(kv % 2 ? "minus" : "accent") }));
    svg.append(text((from + to) / 2, 12, cell * group < 34 ? String(kv) : `KV ${kv}`, { "text-anchor": "middle", "font-size": 11, fill: ink("quiet") }));
  }
  for (let head = 0; head < heads; head++) svg.append(text(x(head) + cell / 2, 34, String(head), { "text-anchor": "middle", "font-size": 11 }));
  layers.forEach((layer, row) => {
    svg.append(text(left - 7, y(row) + cell / 2 + 4, `L${layer}`, { "text-anchor": "end", "font-size": 11 }));
    for (let head = 0; head < heads; head++) {
      const at = (row * heads + head) * side * side;
      svg.append(s("rect", { x: x(head), y: y(row), width: cell, height: cell, fill: ink("faint") }));
      svg.append(s("image", { x: x(head), y: y(row), width: cell, height: cell, href: thumbnail(bytes.subarray(at, at + side * side), side), preserveAspectRatio: "none", style: { "image-rendering": "pixelated" }, "data-layer": layer, "data-head": head }));
    }
  });
  const cursor = s("rect", { width: cell + 2, height: cell + 2, fill: "none", stroke: ink("minus"), "stroke-width": 2.5, rx: 2 });
  svg.append(cursor);
  const element = figure("attention-grid", svg, "", x(heads - 1) + cell > 480);
  const move = (row, head) => {
    cursor.setAttribute("x", x(head) - 1);
    cursor.setAttribute("y", y(row) - 1);
    element.tell(`Layer ${layers[row]}, head ${head}${group > 1 ? `, which reads KV ${Math.floor(head / group)}` : ""}`);
  };
  let at = [Math.max(0, layers.indexOf(state.layer)), state.head];
  move(...at);
  const pick = (row, head) => { at = [row, head]; move(row, head); if (layers[row] !== state.layer || head !== state.head) update({ layer: layers[row], head, zoom: "attention" }); };
  const under = (event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width, px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
    const row = Math.floor((py - above) / (cell + gap));
    for (let head = 0; head < heads; head++) if (px >= x(head) && px < x(head) + cell + gap && row >= 0 && row < layers.length) return [row, head];
    return null;
  };
  svg.addEventListener("click", (event) => { const found = under(event); if (found) pick(...found); });
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!by) return;
    event.preventDefault();
    pick(Math.max(0, Math.min(layers.length - 1, at[0] + by[0])), Math.max(0, Math.min(heads - 1, at[1] + by[1])));
  });
  put(pager, layers.length < model.n_layers && [h("button", { type: "button", class: "plain small", disabled: first === 0, onclick: () => { first = Math.max(0, first - layers.length); busily(() => refresh(new Set(["branches"]))); } }, "Earlier layers"), h("button", { type: "button", class: "plain small", disabled: first + layers.length >= model.n_layers, onclick: () => { first += layers.length; busily(() => refresh(new Set(["branches"]))); } }, "Later layers")]);
  const focused = grid.contains(document.activeElement);
  put(grid, element);
  if (focused) svg.focus();
}

function drawHead(told) {
  const names = told.pattern.map((_, i) => plain(textOf(ids()[told.begin + i]), 9)), n = names.length;
  const full = (i) => plain(textOf(ids()[told.begin + i]));
  put(large, h("h3", {}, `Layer ${told.layer}, head ${told.head}${model.n_heads > model.n_kv_heads ? ` (KV ${told.kv_head})` : ""}`),
    heat({
      name: `attention-L${told.layer}H${told.head}`, label: `Attention pattern of head ${told.head} in layer ${told.layer}, ${n} by ${n} tokens`, rows: n, columns: n, rowNames: names, columnNames: names, size: Math.max(9, Math.min(30, 400 / n)),
      colour: (r, c) => (c > r ? null : much(told.pattern[r][c])),
      tell: (r, c) => c > r ? `“${full(r)}” (token ${told.begin + r}) cannot look ahead at “${full(c)}”` : `“${full(r)}” (token ${told.begin + r}) looks at “${full(c)}” (token ${told.begin + c}): ${number(told.pattern[r][c])}${told.outside[r] > 0.0005 ? `; ${number(told.outside[r])} goes to tokens before those shown` : ""}`,
      pick: (r) => choose(told.begin + r), chosen: [Math.max(0, Math.min(n - 1, position() - told.begin)), 0],
      words: "Point at a cell, or move with the arrow keys; choose it to look at its token.",
    }),
    h("p", { class: "quiet" }, "Rows look, columns are looked at. Each row sums to 1."));
}

export async function refresh(changed) {
  if (!ids().length) return put(grid, h("p", { class: "quiet" }, "Write something first.")), put(large);
  const base = { ids: ids(), edits: edits(), begin: begin() };
  const only = [...changed].every((name) => ["layer", "head", "position"].includes(name)) && grid.firstChild;
  if (!only || first > state.layer) {
    const told = await quietly(() => ask("attention_grid", { ...base, layer: first }));
    if (told) drawGrid(told);
  }
  const one = await quietly(() => ask("attention_head", { ...base, layer: state.layer, head: state.head }));
  if (one) drawHead(one);
}

export const needs = ["branches", "active", "position", "edits", "editing", "layer", "head", "theme"];
