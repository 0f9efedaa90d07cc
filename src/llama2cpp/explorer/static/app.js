// The page: opens the model, and keeps what is seen in step with what is chosen.

import { $, h, put, say } from "./dom.js";
import { ask, busily, promptInAddress, quietly } from "./api.js";
import { fromFragment, listen, setModel, state, update } from "./state.js";
import * as attention from "./attention.js";
import * as attribution from "./attribution.js";
import * as edit from "./edit.js";
import * as flow from "./flow.js";
import * as lens from "./lens.js";
import * as next from "./next.js";
import * as patching from "./patching.js";
import * as share from "./share.js";
import * as write from "./write.js";

const VIEWS = { flow, attention, lens, attribution, edit, patching, share };
const EXAMPLE = "When Lily and Tom went to the park, Lily gave the ball to";
const stale = new Map(Object.keys(VIEWS).map((name) => [name, new Set(["shared", "theme"])]));
const system = matchMedia("(prefers-color-scheme: dark)");

function setTheme() {
  const theme = state.theme === "auto" ? (system.matches ? "dark" : "light") : state.theme;
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = `Theme: ${state.theme}`;
}

function setTabs() {
  const names = Object.keys(VIEWS);
  put($("tabs"), names.map((name) => h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => update({ view: name }) }, VIEWS[name].title)));
  put($("panels"), names.map((name) => h("div", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}` }, VIEWS[name].panel())));
  $("tabs").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    update({ view: names[(names.indexOf(state.view) + by + names.length) % names.length] });
    queueMicrotask(() => $(`tab-${state.view}`).focus());
  });
}

function showView() {
  if (!(state.view in VIEWS)) state.view = "flow";
  for (const name of Object.keys(VIEWS)) {
    const here = name === state.view;
    $(`tab-${name}`).setAttribute("aria-selected", here ? "true" : "false");
    $(`tab-${name}`).tabIndex = here ? 0 : -1;
    $(`panel-${name}`).hidden = !here;
  }
}

async function changed(names) {
  if (names.has("theme")) setTheme();
  if (names.has("view")) showView();
  const many = (...wanted) => wanted.some((name) => names.has(name));
  for (const [name, view] of Object.entries(VIEWS)) for (const one of names) if (view.needs.includes(one) || one === "shared") stale.get(name).add(one);
  if (many("branches", "active", "other", "position", "prompt", "special", "shared")) await write.refresh(names);
  const work = [];
  if (many("branches", "active", "position", "edits", "editing", "sampling", "shared")) work.push(next.refresh(names));
  const mine = stale.get(state.view);
  if (mine.size) {
    stale.set(state.view, new Set());
    work.push(VIEWS[state.view].refresh(mine));
  }
  await Promise.all(work);
}

async function begin() {
  setTheme();
  $("theme").addEventListener("click", () => update({ theme: { auto: "light", light: "dark", dark: "auto" }[state.theme] }));
  system.addEventListener("change", () => update({ theme: state.theme }));
  const told = await quietly(() => ask("about"));
  if (!told) return void ($("about").textContent = "The model cannot be reached.");
  setModel(told);
  const n = (value) => value.toLocaleString("en");
  $("about").textContent = `${told.name} · ${n(told.n_layers)} layers · ${n(told.n_heads)} heads${told.n_kv_heads < told.n_heads ? `, ${told.n_kv_heads} of keys and values` : ""} · ${n(told.dim)} numbers a token · vocabulary ${n(told.vocab_size)} · context ${n(told.context)} · ${told.hardware}`;
  document.title = `${told.name} · llama2cpp explore`;
  setTabs();
  write.setUp();
  next.setUp();
  listen((names) => busily(() => changed(names)));
  showView();
  addEventListener("hashchange", takeFragment);
  if (!takeFragment()) {
    const first = promptInAddress ?? (told.opened === "llama2cpp.load('storyteller')" ? EXAMPLE : told.has_tokenizer ? "Once upon a time" : "1 2 3");
    $("prompt").value = first;
    write.type(first, 0);
  }
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; update({ theme: state.theme }); } });
}

function takeFragment() {
  if (!location.hash.startsWith("#s=")) return false;
  try {
    fromFragment(location.hash);
    update({ shared: {} });
    return true;
  } catch (error) {
    say(`The link cannot be opened: ${error.message}`, 10);
    return false;
  }
}

begin();
