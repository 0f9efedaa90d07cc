// Direct logit attribution: what each part adds to the logit of one token.

import { h, number, percent, plain, put } from "./dom.js";
import { ask, quietly } from "./api.js";
import { edits, ids, known, model, position, state, update, upTo } from "./state.js";
import { tokenField } from "./lens.js";
import { textOf } from "./write.js";
import { bars, heat, signed, widthIn } from "./pictures.js";

export const title = "Attribution";
const form = h("div", { class: "form" }), box = h("div"), neuronBox = h("div");

export function panel() {
  return [
    h("h2", {}, "Who has said it"),
    h("p", { class: "why" }, "The logit of a token is a sum: each part of the model has added something to the residual stream, and each addition points towards the token's vector or away from it. Blue parts speak for the token, orange ones against it. Name a second token to see what makes the difference between the two."),
    form, box, neuronBox,
  ];
}

const narrow = (width) => Math.max(270, Math.min(width, widthIn(box) || width));

const partName = (label) => label === "embed" ? "embedding" : label === "pos_embed" ? "position" : label.replace(/^(\d+)_(attn|mlp)_out$/, (_, layer, kind) => `layer ${layer} ${kind === "attn" ? "attention" : "MLP"}`);

function draw(told) {
  const most = Math.max(...told.heads.flat().map(Math.abs), 1e-9);
  const what = told.versus ? `logit of “${plain(told.token.text)}” minus that of “${plain(told.versus.text)}”` : `logit of “${plain(told.token.text)}”`;
  put(box,
    h("p", { id: "attribution-sum", "data-sum": told.sum, "data-logit": told.logit }, `After token ${told.position}, the ${what} is ${number(told.logit, 3)}. The parts below sum to ${number(told.sum, 3)}`, Math.abs(told.sum - told.logit) > 0.01 ? `: the model rounds its activations to ${model.activation_dtype}${told.rest ? `, and ${told.rest}` : ""}.` : "."),
    h("div", { class: "columns" },
      h("div", {}, h("h3", {}, "Embedding, attention, MLPs"), bars({ name: "attribution-parts", label: `What each part adds to the ${what}`, values: told.parts.map((part) => part.value), names: told.parts.map((part) => partName(part.label)), width: narrow(460), words: `Added to the ${what}`, pick: (i) => { const found = /^(\d+)_(attn|mlp)/.exec(told.parts[i].label); if (found) update({ view: "flow", layer: +found[1], zoom: found[2] === "attn" ? "attention" : "mlp" }); } })),
      h("div", {}, h("h3", {}, "Each head"), heat({
        name: "attribution-heads", label: `What each head adds to the ${what}`, rows: told.heads.length, columns: told.heads[0].length, rowNames: told.heads.map((_, i) => `L${i}`), columnNames: told.heads[0].map((_, i) => `H${i}`), size: Math.max(12, Math.min(40, 400 / told.heads[0].length)),
        colour: (r, c) => signed(told.heads[r][c], most), tell: (r, c) => `Layer ${r}, head ${c}: ${told.heads[r][c] >= 0 ? "+" : ""}${number(told.heads[r][c])}`, pick: (layer, head) => update({ view: "attention", layer, head }), words: "Choose a head to see what it looks at.",
      }))));
}

function drawNeurons(told) {
  put(neuronBox, h("h3", {}, "Strongest neurons"), told.why ? h("p", { class: "quiet" }, told.why) : [
    h("p", { class: "why" }, "A neuron of an MLP adds its own vector, as strongly as it is active. These add most."),
    bars({ name: "attribution-neurons", label: "What the strongest neurons add", values: told.neurons.map((one) => one.value), names: told.neurons.map((one) => `L${one.layer} neuron ${one.neuron}`), width: narrow(520), words: "Choose a neuron to see how it is computed.", pick: (i) => update({ view: "flow", layer: told.neurons[i].layer, zoom: "mlp", product: { ...state.product, kind: model.gated ? "gate" : "up", output: told.neurons[i].neuron } }) })]);
}

export async function refresh(changed) {
  if (!ids().length) return put(form), put(box, h("p", { class: "quiet" }, "Write something first.")), put(neuronBox);
  const best = await quietly(() => ask("next", { ids: upTo(), edits: edits(), rows: 8 }, "attribution-next"));
  if (!best) return;
  for (const row of best.rows) known.set(row.id, row);
  const token = state.target ?? best.rows[0].id;
  put(form, tokenField("attribution-token", "Token", token, (target) => update({ target })), tokenField("attribution-versus", "Compared with (may be empty)", state.versus, (versus) => update({ versus })),
    h("div", { class: "row" }, best.rows.slice(0, 5).map((row) => h("button", { type: "button", class: "plain small", "aria-pressed": row.id === token ? "true" : "false", onclick: () => update({ target: row.id }) }, plain(row.text), ` ${percent(row.p)}`))));
  const body = { ids: ids(), edits: edits(), position: position(), token, versus: state.versus };
  const told = await quietly(() => ask("attribution", body));
  if (told) draw(told);
  const neurons = told && (await quietly(() => ask("neurons", { ...body, rows: 16 })));
  if (neurons) drawNeurons(neurons);
}

export const needs = ["branches", "active", "position", "edits", "editing", "target", "versus", "theme"];
