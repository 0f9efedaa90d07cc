// The prompt, its tokens, and the branches that a reader has made of it.

import { $, h, plain, put, shown } from "./dom.js";
import { ask, busily, quietly } from "./api.js";
import { branch, ids, known, model, position, setIds, state, update } from "./state.js";

const PAGE = 256; // tokens that are drawn at a time
let page = 0;
let waiting;
let typed = null; // ends the wait for the moment after the last key

// Learn what tokens are: their texts, bytes, whether they are special.
export async function learn(list) {
  const missing = [...new Set(list)].filter((id) => !known.has(id));
  if (!missing.length) return;
  for (let i = 0; i < missing.length; i += model.context) {
    const part = missing.slice(i, i + model.context);
    for (const token of (await ask("tokens", { ids: part }, null)).tokens) known.set(token.id, token);
  }
}

export const textOf = (id) => known.get(id)?.text ?? `#${id}`;

async function read() {
  const told = await quietly(() => ask("tokens", { text: state.prompt, special: state.special }));
  if (!told) return;
  for (const token of told.tokens) known.set(token.id, token);
  const made = told.tokens.map((token) => token.id);
  state.position = null;
  page = Math.max(0, Math.ceil(made.length / PAGE) - 1);
  setIds(made, { prompt: made.length, from: null });
}

export function type(text, after = 60) {
  update({ prompt: text });
  clearTimeout(waiting);
  typed?.();
  if (!text.trim() && !model.has_tokenizer) return setIds([], { prompt: 0 });
  busily(() => new Promise((done) => { typed = done; waiting = setTimeout(() => done(read()), after); }));
}

export function choose(at) {
  page = Math.floor(at / PAGE);
  update({ position: at === ids().length - 1 ? null : at });
}

export function append(list, at = ids().length - 1) {
  const kept = ids().slice(0, at + 1);
  state.position = null;
  page = Math.floor((kept.length + list.length - 1) / PAGE);
  setIds([...kept, ...list], { prompt: Math.min(branch().prompt, kept.length) });
}

function fork(at) {
  const made = { ids: ids().slice(0, at + 1), prompt: Math.min(branch().prompt, at + 1), from: { branch: state.active, at } };
  update({ branches: [...state.branches, made], other: state.active, active: state.branches.length, position: null });
}

const letter = (i) => String.fromCharCode(65 + (i % 26)) + (i >= 26 ? Math.floor(i / 26) : "");

function drop(i) {
  const branches = state.branches.filter((_, at) => at !== i).map((one) => ({ ...one, from: null }));
  update({ branches, active: Math.min(branches.length - 1, state.active > i ? state.active - 1 : state.active), other: null, position: null });
}

function drawBranches() {
  const several = state.branches.length > 1;
  put($("branches"), several && state.branches.map((_, i) => h("button", { type: "button", class: "plain small", "aria-pressed": i === state.active ? "true" : "false", "data-branch": i, onclick: () => update({ active: i, other: i === state.active ? state.other : state.active, position: null }) }, `Branch ${letter(i)}`)),
    several && h("button", { type: "button", class: "plain small", onclick: () => drop(state.active) }, `Drop ${letter(state.active)}`));
}

// The first token in which two branches differ.
export function parting() {
  const other = state.other !== null ? state.branches[state.other] : null;
  if (!other || state.other === state.active) return null;
  let at = 0;
  while (at < Math.min(other.ids.length, ids().length) && other.ids[at] === ids()[at]) at++;
  return { other, at };
}

function drawTokens() {
  const all = ids(), pages = Math.max(1, Math.ceil(all.length / PAGE));
  page = Math.min(page, pages - 1);
  const parts = parting(), at = position(), first = page * PAGE;
  const focused = document.activeElement?.closest?.("#tokens");
  put($("tokens"), all.slice(first, first + PAGE).map((id, i) => {
    const token = known.get(id) ?? { id, text: `#${id}`, bytes: "", special: false }, where = first + i;
    const kinds = ["token", token.special && "special", where >= branch().prompt && "made", parts && where >= parts.at && "differs"];
    return h("button", {
      type: "button", class: kinds.filter(Boolean).join(" "), "data-token-id": id, "data-position": where, "data-special": token.special ? "true" : null, "aria-pressed": where === at ? "true" : "false",
      tabindex: where === at ? 0 : -1, title: `id ${id}, bytes ${token.bytes || "none"}`,
      "aria-label": `Token ${where}: ${plain(token.text)}, id ${id}${token.special ? ", special" : ""}`, onclick: () => choose(where),
    }, shown(token.text));
  }));
  if (focused) $("tokens").querySelector('[aria-pressed="true"]')?.focus();
  put($("token-pages"), pages > 1 && [
    h("button", { type: "button", class: "plain small", disabled: page === 0, onclick: () => { page--; drawTokens(); } }, "Earlier"),
    h("span", { class: "quiet" }, `Tokens ${first} to ${Math.min(all.length, first + PAGE) - 1} of ${all.length}`),
    h("button", { type: "button", class: "plain small", disabled: page === pages - 1, onclick: () => { page++; drawTokens(); } }, "Later"),
  ]);
  drawChosen();
}

function drawChosen() {
  const all = ids(), at = position();
  if (!all.length) return put($("chosen"), h("p", { class: "quiet" }, "No tokens yet."));
  const token = known.get(all[at]) ?? { text: "", bytes: "", special: false };
  const fact = (name, ...value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  put($("chosen"),
    h("dl", { class: "facts", id: "token-facts" }, fact("Token", `${at} of ${all.length}`), fact("Text", h("bdi", { class: "text" }, shown(token.text))), fact("Id", String(all[at])), fact("Bytes", token.bytes || "none"), token.special && fact("Special", "yes")),
    h("div", { class: "row" },
      h("button", { type: "button", class: "plain small", id: "rewind", disabled: at === all.length - 1, onclick: () => append([], at) }, "Rewind to here"),
      h("button", { type: "button", class: "plain small", id: "fork", onclick: () => fork(at) }, "Fork here")));
  const parts = parting();
  if (parts) {
    const side = (name, list) => h("div", { class: "box" }, h("h4", {}, `Branch ${name}`), h("div", { class: "text" }, shown(list.slice(parts.at).map(textOf).join("") || "(ends here)")));
    $("chosen").append(h("h3", {}, "Two branches"), h("p", { class: "quiet" }, `They share ${parts.at} tokens. After these:`), h("div", { class: "columns", id: "compared" }, side(letter(state.active), ids()), side(letter(state.other), parts.other.ids)));
  }
}

export function setUp() {
  const prompt = $("prompt");
  prompt.addEventListener("input", () => type(prompt.value));
  $("special").addEventListener("change", () => { update({ special: $("special").checked }); busily(read); });
  $("tokens").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(ids().length - 1, position() + by)));
  });
  if (!model.has_tokenizer) $("prompt").placeholder = "This model has no tokenizer: write ids with spaces between them";
}

export async function refresh(changed) {
  if (document.activeElement !== $("prompt") && $("prompt").value !== state.prompt) $("prompt").value = state.prompt;
  $("special").checked = state.special;
  if (changed.has("branches")) await quietly(() => learn(state.branches.flatMap((one) => one.ids)));
  drawBranches();
  drawTokens();
}
