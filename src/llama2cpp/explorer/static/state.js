// What the reader has chosen. All of it can be shared; what the model has computed of it is asked for anew.

export const state = {
  prompt: "",
  special: false,
  branches: [{ ids: [], prompt: 0, from: null }],
  active: 0,
  other: null, // a branch to compare with
  position: null, // the token that is looked at; null: the last
  sampling: { temperature: 1, top_k: 0, top_p: 1, min_p: 0, seed: 1, max_tokens: 20 },
  edits: [],
  editing: true, // whether views show the model with its edits
  view: "flow",
  layer: 0,
  head: 0,
  zoom: "attention",
  product: { kind: "q", output: 0, key: 0 },
  target: null, // a token's id
  versus: null,
  patch: { clean: "", corrupt: "", name: "resid_pre", answer: "", wrong: "" },
  theme: "auto",
};

export let model = null;
export function setModel(told) { model = told; }

export const known = new Map(); // id -> token

const listeners = [];
let changed = new Set();

export function listen(listener) { listeners.push(listener); }

// Change something, and tell everybody once.
export function update(patch) {
  Object.assign(state, patch);
  const first = changed.size === 0;
  for (const name of Object.keys(patch)) changed.add(name);
  if (first) queueMicrotask(() => {
    const told = changed;
    changed = new Set();
    for (const listener of listeners) listener(told);
  });
}

export const branch = () => state.branches[state.active];
export const ids = () => branch().ids;
export const position = () => Math.max(0, Math.min(state.position ?? Infinity, ids().length - 1));
export const upTo = () => ids().slice(0, position() + 1);
export const edits = () => (state.editing ? state.edits : []);

// The positions that views show: those up to the chosen one, or the first ones.
export function begin() {
  const last = Math.max(position() + 1, Math.min(ids().length, model.window));
  return Math.max(0, last - model.window);
}

export function setIds(made, more = {}) {
  const branches = state.branches.slice();
  branches[state.active] = { ...branch(), ...more, ids: made };
  update({ branches });
}

const SHARED = ["prompt", "special", "branches", "active", "other", "position", "sampling", "edits", "editing", "view", "layer", "head", "zoom", "product", "target", "versus", "patch"];

export function toJson() {
  return { llama2cpp: "explore", version: 1, model: model.name, ...Object.fromEntries(SHARED.map((name) => [name, state[name]])) };
}

const isId = (id) => Number.isInteger(id) && id >= 0 && id < model.vocab_size;

// Take a state that somebody has sent. What does not fit this model is refused, and what is missing stays as it is.
export function fromJson(told) {
  if (!told || told.llama2cpp !== "explore" || told.version !== 1) throw new Error("This is no state of llama2cpp explore.");
  const taken = {};
  for (const name of SHARED) {
    if (!(name in told)) continue;
    const now = state[name], given = told[name];
    if (now !== null && (typeof now !== typeof given || Array.isArray(now) !== Array.isArray(given) || given === null)) throw new Error(`The state has a ${name} that cannot be.`);
    taken[name] = now !== null && typeof now === "object" && !Array.isArray(now) ? { ...now, ...given } : given;
  }
  const branches = taken.branches ?? state.branches;
  if (!branches.length || !branches.every((one) => Array.isArray(one?.ids) && one.ids.every(isId) && one.ids.length <= model.context)) throw new Error("The state has tokens that this model does not have.");
  for (const [name, count] of [["layer", model.n_layers], ["head", model.n_heads], ["active", branches.length]]) {
    if (name in taken && !(Number.isInteger(taken[name]) && taken[name] >= 0 && taken[name] < count)) throw new Error(`The state has a ${name} that this model does not have.`);
  }
  for (const name of ["target", "versus"]) if (taken[name] != null && !isId(taken[name])) throw new Error("The state has tokens that this model does not have.");
  if (taken.other != null && !(taken.other in branches)) taken.other = null;
  if (taken.position != null && !Number.isInteger(taken.position)) taken.position = null;
  update(taken);
}

export function toFragment() {
  const bytes = new TextEncoder().encode(JSON.stringify(toJson()));
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return `#s=${btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")}`;
}

export function fromFragment(fragment) {
  const text = atob(fragment.replace(/^.*#s=/, "").replaceAll("-", "+").replaceAll("_", "/"));
  fromJson(JSON.parse(new TextDecoder().decode(Uint8Array.from(text, (character) => character.charCodeAt(0)))));
}
