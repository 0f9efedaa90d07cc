// Activation patching: which places carry the difference between two prompts.

import { h, number, plain, put, say } from "./dom.js";
import { ask, quietly, stop, stream } from "./api.js";
import { known, model, state, update } from "./state.js";
import { learn, textOf } from "./write.js";
import { heat, signed } from "./pictures.js";

export const title = "Patching";
const form = h("div"), box = h("div"), progress = h("p", { class: "quiet", role: "status" });
let running = false, last = null;

export function panel() {
  return [
    h("h2", {}, "Patching: where the difference is"),
    h("p", { class: "why" }, "Take two prompts that differ in one detail and have different answers. Run the second, but put the first one's activation in at a single place. If the answer turns towards the first prompt's, that place carries the detail. Each cell is one such run: 0 is as in the second prompt, 1 as in the first. The prompts must have equally many tokens."),
    form, progress, box,
  ];
}

const NAMES = { resid_pre: "the residual stream, layer × token", attn_out: "what attention adds, layer × token", mlp_out: "what MLPs add, layer × token", z: "what each head gathers, layer × head" };

function drawForm() {
  const set = (key) => (event) => update({ patch: { ...state.patch, [key]: event.target.value } });
  const words = (id, label, key, hint, wide = true) => h("label", { for: id, class: wide ? "wide" : null }, label, h("input", { id, type: "text", autocomplete: "off", value: state.patch[key], placeholder: hint, onchange: set(key) }));
  const select = h("select", { id: "patch-name", onchange: set("name") }, Object.entries(NAMES).map(([name, said]) => h("option", { value: name }, said)));
  select.value = state.patch.name;
  put(form, h("form", { class: "form", id: "patch-form", onsubmit: (event) => { event.preventDefault(); run(); } },
    words("patch-clean", "First prompt (clean)", "clean", "When Lily and Tom went to the park, Lily gave the ball to"), words("patch-corrupt", "Second prompt (corrupt)", "corrupt", "the same with one detail changed"),
    words("patch-answer", "Answer to the first", "answer", "a token, or #id", false), words("patch-wrong", "Answer to the second", "wrong", "a token, or #id", false), h("label", { for: "patch-name" }, "Put in", select),
    h("button", { type: "submit", id: "patch-run" }, "Run"), h("button", { type: "button", class: "plain", id: "patch-stop", disabled: !running, onclick: () => stop("patch") }, "Stop")));
}

function draw(grid) {
  const { rows, columns, clean, corrupt, values, axis, ids } = grid, span = clean - corrupt;
  const share = (r, c) => (values[r][c] === null ? null : span ? (values[r][c] - corrupt) / span : 0);
  const names = axis === "head" ? Array.from({ length: columns }, (_, i) => `H${i}`) : ids.map((id) => plain(textOf(id), 10));
  const element = heat({
    name: "patching", label: `Patching of ${NAMES[grid.name]}`, rows, columns, rowNames: Array.from({ length: rows }, (_, i) => `L${i}`), columnNames: names, size: Math.max(9, Math.min(34, 620 / columns)),
    colour: (r, c) => (share(r, c) === null ? signed(0, 1) : signed(share(r, c), 1)), tell: (r, c) => `Layer ${r}, ${axis === "head" ? `head ${c}` : `token ${c} “${names[c]}”`}: ${share(r, c) === null ? "not computed yet" : `${number(share(r, c))} of the way (logit difference ${number(values[r][c])})`}`,
    pick: axis === "head" ? (layer, head) => update({ view: "attention", layer, head }) : null, words: "Blue turns the answer towards the first prompt, orange away from it.",
  });
  element.id = "patch-grid";
  put(box, h("p", { id: "patch-ends", "data-clean": clean, "data-corrupt": corrupt }, `Logit of the first answer minus that of the second: ${number(clean)} in the first prompt, ${number(corrupt)} in the second.`), element);
  element.dataset.filled = "0";
  return element;
}

async function run() {
  if (running) return;
  running = true;
  drawForm();
  progress.textContent = "Running …";
  await quietly(async () => {
    const patch = state.patch;
    const [clean, corrupt] = await Promise.all([ask("tokens", { text: patch.clean }, null), ask("tokens", { text: patch.corrupt }, null)]);
    for (const token of [...clean.tokens, ...corrupt.tokens]) known.set(token.id, token);
    const id = async (words) => { const token = await ask("token", { text: words }, null); known.set(token.id, token); return token.id; };
    const body = { clean: clean.tokens.map((one) => one.id), corrupt: corrupt.tokens.map((one) => one.id), name: patch.name, answer: await id(patch.answer), wrong: await id(patch.wrong) };
    let element = null, filled = 0;
    for await (const piece of stream("patch", body, "patch")) {
      if (piece.rows) {
        last = { ...piece, name: patch.name, ids: body.corrupt, values: Array.from({ length: piece.rows }, () => Array(piece.columns).fill(null)) };
        element = draw(last);
        continue;
      }
      piece.values.forEach((value, i) => { last.values[piece.layer][piece.begin + i] = value; element.paint(piece.layer, piece.begin + i); });
      filled += piece.values.length;
      element.dataset.filled = String(filled);
      element.dataset.values = JSON.stringify(last.values);
      progress.textContent = `${filled} of ${last.rows * last.columns} cells`;
    }
  });
  running = false;
  if (!last) progress.textContent = "";
  drawForm();
}

export async function refresh(changed) {
  if (!state.patch.clean && model.opened === "llama2cpp.load('storyteller')") {
    state.patch = { ...state.patch, clean: "When Lily and Tom went to the park, Lily gave the ball to", corrupt: "When Lily and Tom went to the park, Tom gave the ball to", answer: " Tom", wrong: " Lily" };
  }
  if (!running && !form.contains(document.activeElement)) drawForm();
  if (changed.has("theme") && last) { const element = draw(last); element.dataset.filled = String(last.values.flat().filter((one) => one !== null).length); }
}

export const needs = ["patch", "theme", "shared"];
