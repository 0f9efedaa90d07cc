// Give a state to others: as a file, or as a link.

import { download, h, put, say } from "./dom.js";
import { fromFragment, fromJson, state, toFragment, toJson, update } from "./state.js";

export const title = "Share";
const box = h("div");

export function panel() {
  return [
    h("h2", {}, "Share what you see"),
    h("p", { class: "why" }, "The state is the prompt and its branches, the edits, and what you look at, not the numbers: whoever opens it computes them anew, with the same model. The link works with anybody's own llama2cpp explore: they paste it below, or put what is after # behind their own address. It holds no token of access."),
    box,
  ];
}

const taken = () => { update({ shared: {} }); say("Taken over."); };

export async function refresh() {
  const link = `${location.origin}/${toFragment()}`;
  const paste = h("input", { id: "share-paste", type: "text", autocomplete: "off", placeholder: "a link, or what is after #" });
  put(box,
    h("h3", {}, "As a link"), h("div", { class: "form" }, h("label", { for: "share-link", class: "wide" }, "Link", h("input", { id: "share-link", type: "text", readonly: true, value: link })),
      h("button", { type: "button", id: "share-copy", onclick: async () => { history.replaceState(null, "", toFragment()); try { await navigator.clipboard.writeText(link); say("Copied. It is in the address bar too."); } catch { say("It is in the address bar now."); } } }, "Copy")),
    h("div", { class: "form" }, h("label", { for: "share-paste", class: "wide" }, "Open a link", paste), h("button", { type: "button", class: "plain", id: "share-open", onclick: () => { try { fromFragment(`#s=${paste.value.replace(/^.*#?s=/, "")}`); taken(); } catch (error) { say(`This cannot be opened: ${error.message}`, 10); } } }, "Open")),
    h("h3", {}, "As a file"), h("div", { class: "form" }, h("button", { type: "button", class: "plain", id: "share-save", onclick: () => download("llama2cpp-explore.json", new Blob([JSON.stringify(toJson(), null, 1)], { type: "application/json" })) }, "Save JSON"),
      h("label", { for: "share-file" }, "Open a JSON file", h("input", { id: "share-file", type: "file", accept: ".json,application/json", onchange: async (event) => { try { fromJson(JSON.parse(await event.target.files[0].text())); taken(); } catch (error) { say(`This cannot be opened: ${error.message}`, 10); } } }))),
    h("h3", {}, "Pictures"), h("p", { class: "quiet" }, "Each picture has buttons below it that save it as SVG or PNG."));
}

export const needs = ["prompt", "branches", "active", "other", "position", "sampling", "edits", "editing", "layer", "head", "product", "target", "versus", "patch"];
