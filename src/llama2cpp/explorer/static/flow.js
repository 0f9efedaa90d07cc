// The way of one token through the model: from the embedding through all layers to the logits, down to one product.

import { h, number, plain, put, s } from "./dom.js";
import { ask, quietly } from "./api.js";
import { begin, edits, ids, model, position, state, update } from "./state.js";
import { textOf } from "./write.js";
import { drawing, figure, heat, ink, mono, much, text, widthIn } from "./pictures.js";

export const title = "Flow";
const overview = h("div"), zoom = h("div"), headBox = h("div"), product = h("div");

export function panel() {
  return [
    h("h2", {}, "The way through the model"),
    h("p", { class: "why" }, "A token becomes a vector, its embedding. Each layer reads the vector and adds to it twice: attention brings in what earlier tokens know, the MLP works on what is there. The running sum is called the residual stream. After the last layer it is compared with a vector for each token of the vocabulary: those are the logits. Bars show how long a vector is (its norm). Choose a box to look inside."),
    overview, zoom, headBox, product,
  ];
}

const vector = (shape) => `[${shape.join(" × ")}]`;

function drawFlow(told, width) {
  const at = position() - told.begin, by = new Map(told.stations.map((one) => [one.name, one]));
  const norm = (name) => by.get(name)?.norms[at];
  const layers = model.n_layers, row = layers > 16 ? 30 : 40, w = Math.max(300, Math.min(900, width)), narrow = w < 460;
  const room = w - (narrow ? 108 : 118), wide = room * (narrow ? 0.57 : 0.5);
  const most = Math.max(...told.stations.map((one) => one.norms[at]));
  const height = 6 + row + 16 + layers * row + 8 + 2 * row, x = 26;
  const svg = drawing(w, height, `The flow of token ${position()}, ${plain(textOf(ids()[position()]))}, through ${layers} layers`);
  svg.setAttribute("role", "group");
  const thick = (name) => 3 + 15 * ((norm(name) ?? 0) / most);
  const box = (bx, y, bw, title, value, shape, name, press, pressed) => {
    const label = `${title}: ${shape}, norm ${number(value, 2)}`;
    const g = s("g", press ? { role: "button", tabindex: 0, "aria-label": label, "data-station": name, "aria-pressed": pressed ? "true" : "false", onclick: press, onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); press(); } } } : { "data-station": name });
    g.append(s("title", {}, label), s("rect", { x: bx, y, width: bw, height: row - 8, rx: 6, fill: ink(pressed ? "accent-faint" : "faint"), stroke: ink(pressed ? "accent" : "line"), "stroke-width": pressed ? 2 : 1 }));
    g.append(s("rect", { x: bx + 1, y: y + row - 13, width: Math.max(1, (bw - 2) * ((value ?? 0) / most)), height: 4, rx: 2, fill: ink("accent") }));
    g.append(text(bx + 8, y + row / 2 - 1, title, { "font-size": 12.5 }), text(bx + bw - 8, y + row / 2 - 1, number(value, 1), { "text-anchor": "end", "font-size": 11.5, fill: ink("quiet"), ...mono }));
    return g;
  };
  const full = w - 62;
  svg.append(box(54, 6, full, `Embedding of ${plain(textOf(ids()[position()]), 14)}`, norm("hook_embed"), vector([model.vocab_size, model.dim]), "hook_embed"));
  svg.append(text(62, 6 + row + 6, `residual stream ${vector([told.stations[0].shape[0], model.dim])}${narrow ? "" : ", its norm beside each layer"}`, { "font-size": 11, fill: ink("quiet") }));
  let y = 6 + row + 16;
  for (let i = 0; i < layers; i++) {
    const pre = `blocks.${i}.hook_resid_pre`;
    svg.append(s("rect", { x: x - thick(pre) / 2, y: y - 4, width: thick(pre), height: row, fill: ink("accent") }), s("path", { d: `M${x} ${y + row / 2 - 4}H54`, stroke: ink("accent"), "stroke-width": 1.5 }));
    const chosen = state.layer === i;
    svg.append(box(54, y, wide, narrow ? `L${i} attn` : `Layer ${i} attention`, norm(`blocks.${i}.hook_attn_out`), vector([model.n_heads, model.head_dim]), `blocks.${i}.hook_attn_out`, () => update({ layer: i, zoom: "attention" }), chosen && state.zoom === "attention"));
    svg.append(box(62 + wide, y, room - wide, "MLP", norm(`blocks.${i}.hook_mlp_out`), vector([model.hidden_dim]), `blocks.${i}.hook_mlp_out`, () => update({ layer: i, zoom: "mlp" }), chosen && state.zoom === "mlp"));
    svg.append(text(w - 4, y + row / 2, number(Math.round(norm(`blocks.${i}.hook_resid_post`)), 0).replace(".0", ""), { "text-anchor": "end", "font-size": 11, fill: ink("quiet"), ...mono }));
    y += row;
  }
  const end = thick(`blocks.${layers - 1}.hook_resid_post`), start = thick("hook_embed");
  svg.append(s("rect", { x: x - start / 2, y: 6 + row / 2, width: start, height: row / 2 + 6, fill: ink("accent") }), s("path", { d: `M${x} ${6 + row / 2}H54M${x} ${y + 4 + row / 2}H54`, stroke: ink("accent"), "stroke-width": 1.5 }), s("rect", { x: x - end / 2, y: y - 4, width: end, height: row / 2 + 8, fill: ink("accent") }));
  svg.append(box(54, y + 8, full, "Last norm", norm("ln_final.hook_normalized"), vector([model.dim]), "ln_final.hook_normalized"));
  const press = () => update({ product: { ...state.product, kind: "logit", output: state.target ?? 0 } });
  svg.append(box(54, y + 8 + row, full, `Unembedding → ${model.vocab_size.toLocaleString("en")} logits`, norm("ln_final.hook_normalized"), vector(told.logits_shape), "logits", press, state.product.kind === "logit"));
  put(overview, figure("flow", svg, `Token ${position()} of ${ids().length}; numbers are norms.`));
}

const WORDS = {
  hook_resid_pre: "residual stream into the layer", "ln1.hook_normalized": "after the norm", "attn.hook_q": "queries: what each head looks for", "attn.hook_k": "keys: what this token offers", "attn.hook_v": "values: what it hands over",
  "attn.hook_z": "what each head has gathered", hook_attn_out: "what attention adds", hook_resid_mid: "residual stream after attention", "ln2.hook_normalized": "after the norm", "mlp.hook_pre": "into the neurons (gate)", "mlp.hook_pre_linear": "into the neurons (up)",
  "mlp.hook_post": "the neurons' activations", hook_mlp_out: "what the MLP adds", hook_resid_post: "residual stream after the layer", "mlp.hook_router_scores": "how much each expert is wanted", "mlp.hook_expert_indices": "which experts run", "mlp.hook_expert_weights": "their shares",
};

function drawLayer(told) {
  const heads = told.parts.find((part) => part.name.endsWith("attn.hook_z"));
  const neurons = told.parts.find((part) => part.neurons);
  const group = model.n_heads / model.n_kv_heads;
  put(zoom, h("h3", {}, `Inside layer ${told.layer}, at token ${told.position}`),
    h("div", { class: "columns" },
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Parts of the layer" }, h("table", { id: "layer-parts" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "What"), h("th", { scope: "col" }, "Shape, all tokens"), h("th", { scope: "col", class: "n" }, "Norm here"))),
        h("tbody", {}, told.parts.map((part) => { const name = part.name.replace(/^blocks\.\d+\./, ""); return h("tr", { "data-hook": part.name }, h("td", {}, WORDS[name] ?? name, h("br"), h("code", { class: "quiet" }, name)), h("td", {}, vector(part.shape)), h("td", { class: "n" }, number(part.norm, 2))); })))),
      h("div", {},
        h("h4", {}, "Heads"), h("p", { class: "quiet" }, group > 1 ? `${group} heads of queries share one head of keys and values (KV).` : "Each head has keys and values of its own."),
        Array.from({ length: model.n_kv_heads }, (_, kv) => h("div", { class: "row", role: "group", "aria-label": `Heads of KV ${kv}` }, h("span", { class: "quiet" }, `KV ${kv}`), Array.from({ length: group }, (_, i) => kv * group + i).map((head) =>
          h("button", { type: "button", class: "plain small", "aria-pressed": head === state.head ? "true" : "false", "data-head": head, onclick: () => update({ head, zoom: "attention" }) }, `head ${head}: ${number(heads?.head_norms[head], 1)}`)))),
        neurons && [h("h4", {}, "Strongest neurons here"), h("div", { class: "row" }, neurons.neurons.slice(0, 10).map((one) => h("button", { type: "button", class: "plain small", "aria-label": `Neuron ${one.neuron}, activation ${number(one.value, 2)}`, onclick: () => update({ zoom: "mlp", product: { ...state.product, kind: model.gated ? "gate" : "up", output: one.neuron } }) }, `n${one.neuron}: ${number(one.value, 2)}`)))])));
}

function strip(name, label, values) {
  const most = Math.max(1e-12, ...values.map(Math.abs));
  return heat({ name, label, rows: 1, columns: values.length, labels: false, size: Math.max(4, Math.min(14, 560 / values.length)), colour: (_, c) => much(Math.abs(values[c]) / most), tell: (_, c) => `${label}, number ${c}: ${number(values[c])}`, words: `${label}: ${values.length} numbers; the larger, the more they stand out` });
}

function drawHead(told) {
  const rows = told.pattern.map((p, i) => ({ p, i, at: told.begin + i })).sort((a, b) => b.p - a.p).slice(0, 12);
  put(headBox, h("h3", {}, `Head ${told.head} of layer ${told.layer}`),
    h("p", { class: "why" }, `Its query at token ${told.position} meets the keys of KV head ${told.kv_head}. Score = query · key ÷ √${model.head_dim}. Scores become weights that sum to 1 (softmax), and the values are mixed by these weights.`),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "What the head looks at" }, h("table", { id: "head-keys" }, h("caption", {}, told.outside > 0 ? `Earlier tokens that are not shown have ${number(told.outside)} of the weight.` : "The tokens it looks at most."), h("thead", {}, h("tr", {}, ["Looks at", "Token", "Score", "Weight", "Length of value", "Arithmetic"].map((one, i) => h("th", { scope: "col", class: i > 0 && i < 5 ? "n" : null }, one)))),
      h("tbody", {}, rows.map(({ p, i, at }) => h("tr", { "data-key": at, "data-weight": p }, h("td", { class: "text" }, plain(textOf(ids()[at]))), h("td", { class: "n" }, String(at)), h("td", { class: "n" }, number(told.scores[i])), h("td", { class: "n" }, number(p, 4)), h("td", { class: "n" }, number(told.value_norms[i], 2)), h("td", {}, h("button", { type: "button", class: "plain small", "aria-label": `How the score of token ${at} is computed`, onclick: () => update({ product: { ...state.product, kind: "score", key: at, output: 0 } }) }, "How?"))))))),
    h("div", { class: "columns" }, strip("query", "Query, with the token's place in it", told.query), strip("gathered", "What the head has gathered (z)", told.z)));
}

const KINDS = {
  q: ["Query", "head_dim"], k: ["Key", "head_dim"], v: ["Value", "head_dim"], score: ["Attention score", null], mix: ["What a head gathers (z)", "head_dim"], attn_out: ["What attention adds", "dim"],
  gate: ["Neuron's gate", "hidden_dim"], up: ["Neuron's input", "hidden_dim"], mlp_out: ["What the MLP adds", "dim"], logit: ["Logit of a token", "vocab_size"],
};

function drawProduct(told) {
  const kinds = Object.entries(KINDS).filter(([kind]) => (kind !== "gate" || model.gated) && (model.n_experts === null || !["gate", "up", "mlp_out"].includes(kind)));
  const size = KINDS[state.product.kind][1];
  const set = (more) => update({ product: { ...state.product, ...more } });
  const form = h("div", { class: "form" },
    h("label", {}, "Output", h("select", { id: "product-kind", onchange: (event) => set({ kind: event.target.value, output: 0 }) }, kinds.map(([kind, [name]]) => h("option", { value: kind, selected: kind === state.product.kind }, name)))),
    size && h("label", {}, state.product.kind === "logit" ? "Token id" : "Number", h("input", { id: "product-output", type: "number", min: 0, max: model[size] - 1, value: state.product.output, onchange: (event) => set({ output: Math.max(0, Math.min(model[size] - 1, Math.floor(+event.target.value) || 0)) }) })),
    state.product.kind === "score" && h("label", {}, "Looked-at token", h("input", { id: "product-key", type: "number", min: 0, max: position(), value: state.product.key, onchange: (event) => set({ key: Math.max(0, Math.min(position(), Math.floor(+event.target.value) || 0)) }) })));
  form.querySelector("select").value = state.product.kind;
  const parts = [h("h3", {}, "One number, computed"), h("p", { class: "why" }, "Almost all of a model's work is this: inputs times weights, summed. Here is one output of one product, with its largest terms."), form];
  if (told.error) return put(product, parts, h("p", { class: "quiet" }, told.error));
  const rest = told.count - told.terms.length, shown = told.terms.reduce((sum, term) => sum + term.product, 0), off = Math.abs(told.result - told.measured);
  put(product, parts,
    h("p", { class: "quiet" }, "Input ", h("code", {}, told.input), " · weight ", h("code", {}, told.weight), " · gives ", h("code", {}, told.hook)),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Terms of the sum" }, h("table", { id: "product-terms" }, h("thead", {}, h("tr", {}, ["Term", "Input", "× weight", "= product"].map((one) => h("th", { scope: "col", class: "n" }, one)))),
      h("tbody", {}, told.terms.map((term) => h("tr", {}, h("td", { class: "n" }, String(term.index)), h("td", { class: "n" }, number(term.x, 5)), h("td", { class: "n" }, number(term.w, 5)), h("td", { class: "n" }, number(term.product, 5)))),
        rest > 0 && h("tr", {}, h("td", { class: "n" }, `${rest} more`), h("td"), h("td"), h("td", { class: "n" }, number(told.sum - shown, 5)))))),
    h("p", { class: "formula", id: "product-sum", "data-sum": told.result, "data-measured": told.measured }, `Σ ${told.count} products = ${number(told.sum, 6)}`, told.factor !== 1 && ` × ${number(told.factor, 6)}`, told.bias !== 0 && ` + ${number(told.bias, 6)}`, (told.factor !== 1 || told.bias !== 0) && ` = ${number(told.result, 6)}`, h("br"), `The model has ${number(told.measured, 6)}`, off <= 1e-4 * Math.max(1, Math.abs(told.measured)) ? ", the same but for the last digits." : `, ${number(off, 4)} apart: it rounds before it multiplies.`, told.rounded && [h("br"), `The inputs above are rounded to ${told.rounded}, as the model does before it multiplies.`], ["score", "mix"].includes(told.kind) && model.kv_dtype !== "f32" && [h("br"), `${told.kind === "score" ? "Keys" : "Values"} are rounded to ${model.kv_dtype}, as the model keeps them.`]));
}

export async function refresh(changed) {
  if (!ids().length) return put(overview, h("p", { class: "quiet" }, "Write something first.")), put(zoom), put(headBox), put(product);
  const base = { ids: ids(), edits: edits() }, at = position(), { layer, head } = state;
  const told = await quietly(() => ask("flow", { ...base, begin: begin() }));
  if (!told) return;
  drawFlow(told, widthIn(overview) || 600);
  const inside = await quietly(() => ask("layer", { ...base, layer, position: at }));
  if (inside) drawLayer(inside);
  if (state.zoom === "attention") {
    const one = await quietly(() => ask("head", { ...base, layer, head, position: at, begin: Math.min(begin(), at) }));
    if (one) drawHead(one);
  } else put(headBox);
  const { kind, output, key } = state.product;
  const shared = ["k", "v"].includes(kind) ? Math.floor((head * model.n_kv_heads) / model.n_heads) : head;
  const sum = await quietly(async () => {
    try {
      return await ask("product", { ...base, kind, position: at, layer, head: shared, output, key: Math.min(key, at) });
    } catch (error) {
      if (!error.message) throw error;
      return { error: error.message };
    }
  });
  if (sum) drawProduct(sum);
}

export const needs = ["branches", "active", "position", "edits", "editing", "layer", "head", "zoom", "product", "theme"];
