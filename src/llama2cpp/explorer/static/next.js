// What comes next: the distribution, what sampling leaves of it, and drawing from it.

import { $, h, number, percent, plain, put, shown } from "./dom.js";
import { OutOfDate, ask, busily, quietly, stop, stream } from "./api.js";
import { edits, ids, known, model, position, state, update, upTo } from "./state.js";
import { append } from "./write.js";

let rows = 12;
let running = false;

const SLIDERS = [
  ["temperature", "Temperature", 0, 2, 0.05, "Below 1 sharpens, above 1 flattens; 0 always takes the likeliest."],
  ["top_k", "Top-k", 0, 100, 1, "Only so many of the likeliest; 0 is off."],
  ["top_p", "Top-p", 0, 1, 0.01, "Only the likeliest that together have this probability; 1 is off."],
  ["min_p", "Min-p", 0, 1, 0.01, "Only tokens with this share of the likeliest one's probability; 0 is off."],
];

export const sampling = () => {
  const { temperature, top_k, top_p, min_p } = state.sampling;
  return { temperature, top_k, top_p, min_p };
};

function change(name, value) {
  update({ sampling: { ...state.sampling, [name]: value } });
}

export async function generate(most) {
  if (running) return;
  running = true;
  drawGo();
  const list = upTo(), seed = state.sampling.seed;
  let ended = false;
  await quietly(async () => {
    try {
      for await (const token of stream("generate", { ids: list, edits: edits(), ...sampling(), seed, max_tokens: most }, "generate")) {
        known.set(token.id, token);
        if (token.ends) { ended = true; break; }
        append([token.id], list.length - 1);
        list.push(token.id);
      }
    } catch (error) { if (!(error instanceof OutOfDate)) throw error; }
  });
  running = false;
  if (most === 1) update({ sampling: { ...state.sampling, seed: seed + 1 } });
  drawGo();
  if (ended) $("go").append(h("span", { class: "quiet" }, "The model ended the text here."));
}

function drawGo() {
  const count = h("input", { id: "most", type: "number", min: 1, max: 256, value: state.sampling.max_tokens, onchange: (event) => change("max_tokens", Math.max(1, Math.min(256, Math.round(+event.target.value) || 1))) });
  const seed = h("input", { id: "seed", type: "number", min: 0, value: state.sampling.seed, onchange: (event) => change("seed", Math.max(0, Math.min(Number.MAX_SAFE_INTEGER, Math.floor(+event.target.value) || 0))) });
  put($("go"), h("button", { type: "button", id: "step", disabled: !ids().length, "aria-disabled": running ? "true" : null, onclick: () => generate(1) }, "Step"),
    running ? h("button", { type: "button", id: "stop", class: "plain", onclick: () => stop("generate") }, "Stop")
      : h("button", { type: "button", id: "generate", class: "plain", disabled: !ids().length, onclick: () => generate(state.sampling.max_tokens) }, "Generate"),
    h("label", {}, "Tokens ", count), h("label", {}, "Seed ", seed));
}

function drawSliders() {
  put($("sampling"), h("div", { class: "sliders" }, SLIDERS.map(([name, label, min, max, step, title]) => {
    const output = h("output", { for: name }, String(state.sampling[name]));
    const input = h("input", { id: name, type: "range", min, max: Math.max(max, state.sampling[name]), step, title, oninput: (event) => { output.textContent = event.target.value; change(name, +event.target.value); } });
    input.value = state.sampling[name];
    return h("label", { for: name, title }, output, label, input);
  })));
}

const CUT = { top_k: "cut by top-k", top_p: "cut by top-p", min_p: "cut by min-p", temperature: "not the likeliest" };

function draw(told) {
  const most = told.rows.length ? Math.max(told.rows[0].p, ...told.rows.map((row) => row.q)) : 1;
  const cuts = told.kept < told.count;
  const before = position() < ids().length - 1 ? ids()[position() + 1] : null;
  const table = h("table", { id: "next-tokens" },
    h("caption", {}, `After token ${position()}: ${told.kept.toLocaleString("en")} of ${told.count.toLocaleString("en")} tokens can be drawn. Entropy ${number(told.entropy, 2)} nats.`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Token"), h("th", { scope: "col", class: "n" }, "Id"), h("th", { scope: "col", class: "n", title: "The model's own probability" }, "Model"), h("th", { scope: "col", class: "n", title: "The probability it is drawn with" }, "Drawn"), h("th", { scope: "col" }, "Model, drawn"))),
    h("tbody", {}, told.rows.map((row) => {
      known.set(row.id, row);
      return h("tr", { "data-id": row.id, "data-p": row.p, "data-q": row.q, "data-cut": row.cut_by || null, class: row.cut_by ? "cut" : null },
        h("td", {}, h("button", { type: "button", class: `token${row.special ? " special" : ""}`, title: "Put this token here", "aria-label": `Put ${plain(row.text)} after token ${position()}`, onclick: () => append([row.id], position()) }, shown(row.text)), row.id === before && h("span", { class: "quiet" }, " is next")),
        h("td", { class: "n" }, String(row.id)), h("td", { class: "n" }, percent(row.p)), h("td", { class: "n" }, percent(row.q)),
        h("td", { class: "bars" }, h("div", { class: "bar under", style: { width: `${(100 * row.p) / most}%` } }), row.cut_by ? h("span", { class: "quiet" }, CUT[row.cut_by]) : h("div", { class: "bar", style: { width: `${(100 * row.q) / most}%` } })));
    })));
  put($("next-table"), h("div", { class: "scroll" }, table),
    h("div", { class: "row" }, rows < Math.min(200, told.count) && h("button", { type: "button", class: "plain small", onclick: () => { rows = Math.min(200, rows * 2); busily(() => refresh(new Set(["branches"]))); } }, "More rows"), cuts && h("span", { class: "quiet" }, "Rows in grey cannot be drawn with these settings.")));
}

export function setUp() {
  drawGo();
  drawSliders();
}

export async function refresh(changed) {
  if (changed.has("shared")) drawSliders();
  if (!running) drawGo();
  put($("next-why"), "The model gives each of its ", model.vocab_size.toLocaleString("en"), " tokens a probability. Settings of sampling cut and reshape them before one is drawn. Choose a token to put it into the text.", edits().length ? ` Here with ${edits().length} edit${edits().length > 1 ? "s" : ""}.` : "");
  if (!ids().length) return put($("next-table"), h("p", { class: "quiet" }, "Write something first."));
  const told = await quietly(() => ask("next", { ids: upTo(), edits: edits(), ...sampling(), rows }));
  if (told) draw(told);
}
