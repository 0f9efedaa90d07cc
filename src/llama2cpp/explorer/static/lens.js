// The logit lens: what the model would say if it stopped after each layer.

import { h, number, percent, plain, put, s, say } from "./dom.js";
import { ask, busily, quietly } from "./api.js";
import { begin, edits, ids, known, position, state, update } from "./state.js";
import { choose, textOf } from "./write.js";
import { drawing, figure, much, mono, over, text } from "./pictures.js";

export const title = "Lens";
const box = h("div"), aimed = h("div", { class: "form" });

export function panel() {
  return [
    h("h2", {}, "The logit lens"),
    h("p", { class: "why" }, "What would the model say next if it stopped after each layer? Columns are tokens, rows are layers, the last one at the top. Each cell is the likeliest next token there; the surer the model is, the more it stands out. Often the answer forms in the last few layers. Name a token to see how likely it is at each place instead."),
    aimed, box,
  ];
}

// A field for a token: its text, or # and its id.
export function tokenField(id, label, chosen, take) {
  const input = h("input", { id, type: "text", autocomplete: "off", value: chosen === null ? "" : textOf(chosen), placeholder: "a token, or #id" });
  const read = () => busily(() => quietly(async () => {
    if (input.value === "") return take(null);
    const token = await ask("token", { text: input.value }, id);
    known.set(token.id, token);
    take(token.id);
  }));
  input.addEventListener("change", read);
  return h("label", { for: id }, label, input);
}

function drawTable(told) {
  const names = told.ids[0].map((_, i) => plain(textOf(ids()[told.begin + i]), 12)), aim = told.target, last = told.labels.length - 1, n = names.length;
  const p = (r, c) => (aim ? aim.p[r][c] : told.p[r][c]);
  const word = (r, c) => (aim ? percent(aim.p[r][c]) : plain(told.tokens[told.ids[r][c]].text, 11));
  const tell = (r, c) => `${told.labels[r]}, after token ${told.begin + c} “${names[c]}”: “${plain(told.tokens[told.ids[r][c]].text)}” with ${percent(told.p[r][c])}; entropy ${number(told.entropy[r][c], 2)} nats${aim ? `; “${plain(aim.text)}” has ${percent(aim.p[r][c])}, rank ${aim.ranks[r][c]}` : ""}`;
  const order = told.labels.map((_, i) => last - i);
  const picture = () => {
    const cw = 74, ch = 20, left = 84, above = 78, svg = drawing(left + n * cw + 6, above + order.length * ch + 6, "Logit lens");
    order.forEach((r, row) => {
      svg.append(text(left - 6, above + row * ch + 14, told.labels[r], { "text-anchor": "end", "font-size": 11 }));
      for (let c = 0; c < n; c++) {
        const colour = much(p(r, c));
        svg.append(s("rect", { x: left + c * cw, y: above + row * ch, width: cw - 1, height: ch - 1, fill: colour }), text(left + c * cw + 4, above + row * ch + 14, word(r, c), { "font-size": 11, fill: over(colour), ...mono }));
      }
    });
    names.forEach((name, c) => { const x = left + c * cw + cw / 2 + 4; svg.append(text(x, above - 6, name, { transform: `rotate(-60 ${x} ${above - 6})`, "font-size": 11, ...mono })); });
    return svg;
  };
  const element = figure("lens", picture, "Point at a cell, or move with the arrow keys.");
  const at = Math.max(0, Math.min(n - 1, position() - told.begin));
  const table = h("table", { class: "lens", id: "lens-table" }, h("caption", {}, aim ? h("span", {}, "Probability of ", h("bdi", { class: "text" }, plain(aim.text))) : "The likeliest next token"),
    h("thead", {}, h("tr", {}, h("td"), names.map((name, c) => h("th", { scope: "col", title: name, "aria-label": `Token ${told.begin + c}: ${name}` }, name)))),
    h("tbody", {}, order.map((r, row) => h("tr", {}, h("th", { scope: "row" }, told.labels[r]), names.map((_, c) => {
      const colour = much(p(r, c));
      const cell = h("button", { type: "button", tabindex: row === 0 && c === at ? 0 : -1, "data-row": row, "data-column": c, "data-top-id": told.ids[r][c], "data-top-p": told.p[r][c], "aria-label": tell(r, c), onclick: () => choose(told.begin + c), onfocus: () => element.tell(tell(r, c)), onpointerenter: () => element.tell(tell(r, c)) }, word(r, c));
      return h("td", { style: { background: colour, color: over(colour) } }, cell);
    })))));
  table.addEventListener("keydown", (event) => {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key], from = event.target.dataset;
    if (!by || from.row === undefined) return;
    const to = table.querySelector(`[data-row="${+from.row + by[0]}"][data-column="${+from.column + by[1]}"]`);
    if (to) { event.preventDefault(); event.target.tabIndex = -1; to.tabIndex = 0; to.focus(); }
  });
  const scroll = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Logit lens, scrolls" }, table);
  put(box, scroll, element);
  const cell = table.querySelector(`[data-row="0"][data-column="${at}"]`);
  if (cell && cell.offsetLeft + 90 > scroll.clientWidth) scroll.scrollLeft = cell.offsetLeft;
}

export async function refresh(changed) {
  put(aimed, tokenField("lens-target", "Token to follow", state.target, (target) => update({ target })), state.target !== null && h("button", { type: "button", class: "plain", onclick: () => update({ target: null }) }, "Likeliest instead"));
  if (!ids().length) return put(box, h("p", { class: "quiet" }, "Write something first."));
  const told = await quietly(() => ask("lens", { ids: ids(), edits: edits(), begin: begin(), target: state.target }));
  if (told) drawTable(told);
}

export const needs = ["branches", "active", "position", "edits", "editing", "target", "theme"];
