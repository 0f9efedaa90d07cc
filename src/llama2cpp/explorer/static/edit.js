// Change the model while it thinks: the answer before and after, and the Python that does the same.

import { h, number, percent, plain, put, s, say, shown } from "./dom.js";
import { ask, busily, quietly, stream } from "./api.js";
import { edits, ids, known, model, position, state, update, upTo } from "./state.js";
import { sampling } from "./next.js";
import { learn, textOf } from "./write.js";
import { drawing, figure, ink, mono, text, widthIn } from "./pictures.js";

export const title = "Edit";
const form = h("div"), list = h("div"), result = h("div"), answers = h("div"), code = h("div");
const draft = { what: "head", do: "off", layer: 0, head: 0, neuron: 0, position: "", factor: 2, value: 0, from: "token", token: "", minus: "", plus_text: "", minus_text: "", strength: 8 };

export function panel() {
  return [
    h("h2", {}, "Change the model"),
    h("p", { class: "why" }, "Switch a part off, make it louder or quieter, push the residual stream towards a word, or change what a token keeps for later ones (its keys and values). Then see how the answer changes. Parts that change it matter for it. All other views show the changed model too."),
    form, list, result, answers, code,
  ];
}

const WHAT = { head: "a head", neuron: "a neuron", attention: "a layer's attention", mlp: "a layer's MLP", layer: "a whole layer", direction: "the residual stream", key: "a key", value: "a value" };
const DOES = { head: ["off", "scale"], neuron: ["off", "scale", "set"], attention: ["off", "scale"], mlp: ["off", "scale"], layer: ["off", "scale"], direction: ["add"], key: ["off", "scale", "set"], value: ["off", "scale", "set"] };
const DO = { off: "Switch off", scale: "Scale", set: "Set", add: "Add a direction to" };

function drawForm() {
  const kept = document.activeElement?.id;
  const kv = draft.what === "key" || draft.what === "value", heads = kv ? model.n_kv_heads : model.n_heads;
  const field = (id, label, key, min, max) => h("label", { for: id }, label, h("input", { id, type: "number", min, max, step: "any", value: draft[key], oninput: (event) => { draft[key] = event.target.value; } }));
  const words = (id, label, key, hint) => h("label", { for: id, class: "wide" }, label, h("input", { id, type: "text", value: draft[key], placeholder: hint, oninput: (event) => { draft[key] = event.target.value; } }));
  const select = (id, label, key, options) => {
    const made = h("select", { id, onchange: (event) => { draft[key] = event.target.value; if (draft.what === "key" || draft.what === "value") draft.head = Math.min(draft.head, model.n_kv_heads - 1); if (!DOES[draft.what].includes(draft.do)) draft.do = DOES[draft.what][0]; drawForm(); } }, options.map(([value, name]) => h("option", { value }, name)));
    made.value = draft[key];
    return h("label", { for: id }, label, made);
  };
  const direction = draft.what === "direction";
  const subjects = Object.entries(WHAT).filter(([what]) => what !== "neuron" || model.n_experts === null);
  put(form, h("form", { class: "form", id: "edit-form", onsubmit: (event) => { event.preventDefault(); busily(() => quietly(add)); } },
    select("edit-what", "Change", "what", subjects), select("edit-do", "How", "do", DOES[draft.what].map((one) => [one, DO[one]])),
    field("edit-layer", "Layer", "layer", 0, model.n_layers - 1),
    (draft.what === "head" || kv) && field("edit-head", kv ? "KV head" : "Head", "head", 0, heads - 1),
    draft.what === "neuron" && field("edit-neuron", "Neuron", "neuron", 0, model.hidden_dim - 1),
    draft.do === "scale" && field("edit-factor", "Times", "factor"), draft.do === "set" && field("edit-value", "To", "value"),
    direction && [select("edit-from", "Direction", "from", [["token", "of a token"], ["texts", "between two texts"]]), draft.from === "token"
      ? [words("edit-token", "Towards the token", "token", "such as happy, or #id"), words("edit-minus", "Away from (may be empty)", "minus", "such as sad")]
      : [words("edit-plus", "From the text", "plus_text", "such as I am very happy"), words("edit-minus-text", "Less the text (may be empty)", "minus_text", "such as I am very sad")], field("edit-strength", "Strength", "strength")],
    h("label", { for: "edit-position" }, kv ? "At token" : "At token (empty: all)", h("input", { id: "edit-position", type: "number", min: 0, value: draft.position, placeholder: kv ? String(position()) : "all", oninput: (event) => { draft.position = event.target.value; } })),
    h("button", { type: "submit", id: "edit-add" }, "Apply")));
  if (kept) document.getElementById(kept)?.focus();
}

async function tokenId(words, what) {
  const token = await ask("token", { text: words }, what);
  known.set(token.id, token);
  return token.id;
}

const comparison = (edits) => ({ ids: upTo(), edits, rows: 8 });
let answered = {}; // the comparison that came with the last edit, which need not be asked for again

async function add() {
  const { what } = draft, made = { what, do: draft.do, layer: Math.floor(+draft.layer) };
  if (["head", "key", "value"].includes(what)) made.head = Math.floor(+draft.head);
  if (what === "neuron") made.neuron = Math.floor(+draft.neuron);
  if (draft.do === "scale") made.factor = +draft.factor;
  if (draft.do === "set") made.value = +draft.value;
  if (what === "direction") {
    made.strength = +draft.strength;
    if (draft.from === "token") {
      made.token = await tokenId(draft.token, "edit-token");
      if (draft.minus) made.minus = await tokenId(draft.minus, "edit-minus");
    } else {
      made.plus_text = draft.plus_text;
      if (draft.minus_text) made.minus_text = draft.minus_text;
    }
  }
  if (draft.position !== "") made.position = Math.floor(+draft.position);
  else if (["key", "value"].includes(what)) made.position = position();
  const edits = [...state.edits, made], question = comparison(edits);
  answered = { question: JSON.stringify(question), told: await ask("compare", question, "edit-check") }; // refused here if it cannot be
  update({ edits, editing: true });
}

export function inWords(edit) {
  const where = edit.position === undefined || edit.position === null ? "" : ` at token ${edit.position}`;
  const part = { head: `head ${edit.head} of layer ${edit.layer}`, neuron: `neuron ${edit.neuron} of layer ${edit.layer}`, attention: `attention of layer ${edit.layer}`, mlp: `MLP of layer ${edit.layer}`, layer: `layer ${edit.layer}`, key: `key of KV head ${edit.head}, layer ${edit.layer}`, value: `value of KV head ${edit.head}, layer ${edit.layer}` }[edit.what];
  if (edit.what === "direction") {
    const side = (token, words) => (words !== undefined ? `“${plain(words)}”` : `“${plain(textOf(token))}”`);
    const away = edit.minus !== undefined || edit.minus_text !== undefined ? ` and away from ${side(edit.minus, edit.minus_text)}` : "";
    return `After layer ${edit.layer}, ${number(edit.strength, 1)} towards ${side(edit.token, edit.plus_text)}${away}${where}`;
  }
  return (edit.do === "off" ? `Off: ${part}` : edit.do === "scale" ? `${part} × ${edit.factor}` : `${part} set to ${edit.value}`) + where;
}

function drawList() {
  put(list, state.edits.length ? h("ul", { class: "chips", id: "edits" }, state.edits.map((edit, i) => h("li", {}, inWords(edit), h("button", { type: "button", class: "plain small", "aria-label": `Take away: ${inWords(edit)}`, onclick: () => update({ edits: state.edits.filter((_, at) => at !== i) }) }, "✕")))) : h("p", { class: "quiet" }, "No edits yet: this is the model as it is."),
    state.edits.length > 0 && h("div", { class: "row" }, h("button", { type: "button", class: "plain small", id: "edits-off", "aria-pressed": state.editing ? "false" : "true", onclick: () => update({ editing: !state.editing }) }, state.editing ? "Show other views without edits" : "Show other views with edits"), h("button", { type: "button", class: "plain small", onclick: () => update({ edits: [] }) }, "Take all away")));
}

function drawResult(told) {
  const rows = told.rows, most = Math.max(1e-9, ...rows.flatMap((row) => [row.before, row.after]));
  const width = Math.max(270, Math.min(560, widthIn(result) || 560)), left = 110, room = width - left - 64, svg = drawing(width, 24 + rows.length * 34, "Next-token probabilities before and after the edits");
  svg.append(s("rect", { x: left, y: 5, width: 11, height: 11, fill: ink("plus") }), text(left + 16, 15, "before"), s("rect", { x: left + 80, y: 5, width: 11, height: 11, fill: ink("minus") }), text(left + 96, 15, "after"));
  rows.forEach((row, i) => {
    known.set(row.id, row);
    const y = 24 + i * 34;
    svg.append(text(left - 8, y + 19, plain(row.text, 13), { "text-anchor": "end", ...mono }));
    [["before", "plus", 2], ["after", "minus", 16]].forEach(([key, colour, dy]) => svg.append(s("rect", { x: left, y: y + dy, width: Math.max(1, (room * row[key]) / most), height: 12, rx: 2, fill: ink(colour) }), text(left + Math.max(1, (room * row[key]) / most) + 5, y + dy + 10, percent(row[key]), { "font-size": 11, fill: ink("quiet") })));
  });
  const same = told.best_before.id === told.best_after.id;
  put(result, h("h3", {}, "What comes next, before and after"),
    h("p", { id: "edit-verdict", "data-before": told.best_before.id, "data-after": told.best_after.id, "data-kl": told.kl }, "Before: ", h("bdi", { class: "text" }, shown(told.best_before.text)), " · after: ", h("bdi", { class: "text" }, shown(told.best_after.text)), same ? " (the same)" : "", ` · difference of the distributions ${number(told.kl, 4)} nats (KL)`),
    figure("before-after", svg, `After token ${position()}`));
  result.append(h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Before and after in numbers" }, h("table", { id: "edit-rows" }, h("caption", {}, "The same in numbers"), h("thead", {}, h("tr", {}, ["Token", "Id", "Before", "After", "Logit before", "Logit after"].map((one, i) => h("th", { scope: "col", class: i ? "n" : null }, one)))),
    h("tbody", {}, rows.map((row) => h("tr", { "data-id": row.id, "data-before": row.before, "data-after": row.after }, h("td", { class: "text" }, shown(row.text)), h("td", { class: "n" }, String(row.id)), h("td", { class: "n" }, percent(row.before)), h("td", { class: "n" }, percent(row.after)), h("td", { class: "n" }, number(row.logit_before)), h("td", { class: "n" }, number(row.logit_after))))))));
}

async function continueBoth() {
  const boxes = ["before", "after"].map((name) => h("div", { class: "text", id: `answer-${name}` }));
  put(answers, h("h3", {}, "How it goes on"), h("p", { class: "quiet" }, `${state.sampling.max_tokens} tokens, with the settings of sampling and the seed on the left.`), h("div", { class: "columns" }, boxes.map((one, i) => h("div", { class: "box" }, h("h4", {}, i ? "After" : "Before"), one))));
  await Promise.all(boxes.map((one, i) => quietly(async () => {
    for await (const token of stream("generate", { ids: upTo(), edits: i ? state.edits : [], ...sampling(), seed: state.sampling.seed, max_tokens: state.sampling.max_tokens }, `answer${i}`)) one.append(token.ends ? h("span", { class: "quiet" }, " (ends)") : h("span", {}, shown(token.text)));
  })));
}

async function drawCode() {
  const told = await quietly(() => ask("python", { ids: upTo(), edits: state.edits }));
  if (!told) return;
  put(code, h("h3", {}, "The same in Python"), h("pre", { id: "python", tabindex: 0, role: "region", "aria-label": "Python" }, told.python), h("button", { type: "button", class: "plain small", id: "copy-python", onclick: async () => { try { await navigator.clipboard.writeText(told.python); say("Copied."); } catch { say("The browser does not let this page copy: select the text."); } } }, "Copy"));
}

export async function refresh(changed) {
  if (!form.firstChild || changed.has("shared")) drawForm();
  drawList();
  if (!ids().length) return put(result, h("p", { class: "quiet" }, "Write something first.")), put(answers), put(code);
  await quietly(() => learn(state.edits.flatMap((edit) => [edit.token, edit.minus].filter((id) => Number.isInteger(id)))));
  drawList();
  const question = comparison(state.edits), same = answered.question === JSON.stringify(question);
  const told = same ? answered.told : await quietly(() => ask("compare", question));
  answered = {};
  if (told && state.edits.length) drawResult(told);
  else put(result);
  if (told) await drawCode();
  if (told && state.edits.length) put(answers, h("h3", {}, "How it goes on"), h("button", { type: "button", class: "plain", id: "continue-both", onclick: continueBoth }, "Generate before and after"));
  else put(answers);
}

export const needs = ["branches", "active", "position", "edits", "theme"];
