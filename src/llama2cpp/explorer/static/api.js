// The one way to the model's numbers. The token comes once in the address, and stays in this tab's storage.

import { $, say } from "./dom.js";

const address = new URL(location.href);
const given = address.searchParams.get("token");
if (given) sessionStorage.setItem("llama2cpp-token", given);
export const promptInAddress = address.searchParams.get("prompt");
if (given) {
  address.searchParams.delete("token");
  history.replaceState(null, "", address.pathname + address.search + address.hash);
}
const token = sessionStorage.getItem("llama2cpp-token") || "";
const page = Math.random().toString(36).slice(2);
const running = new Map(); // view -> AbortController

export class OutOfDate extends Error {}

// While a button is held down nothing is redrawn: it would be replaced under the pointer or the key, and the press lost.
let held = false, letGo = [];
const PRESSED = "button, a, summary, svg [role=button], svg[role=application]";
const hold = (event) => { if (event.target.closest?.(PRESSED)) held = true; };
const release = () => setTimeout(() => { // after the click that follows
  held = false;
  for (const go of letGo.splice(0)) go();
});
addEventListener("pointerdown", hold, true);
addEventListener("keydown", (event) => { if (event.key === " ") hold(event); }, true);
addEventListener("keyup", (event) => { if (event.key === " ") release(); }, true);
for (const ended of ["pointerup", "pointercancel", "dragend"]) addEventListener(ended, release, true);
addEventListener("blur", (event) => { if (event.target === window) release(); });
const released = async () => { while (held) await new Promise((go) => letGo.push(go)); };

// How much of what was asked for is not drawn yet.
let count = 0;
export async function busily(work) {
  count += 1;
  $("views").setAttribute("aria-busy", "true");
  try {
    return await work();
  } finally {
    count -= 1;
    if (!count) $("views").setAttribute("aria-busy", "false");
  }
}

async function send(name, body, view, control) {
  if (view) {
    running.get(view)?.abort();
    running.set(view, control);
  }
  let response;
  try {
    response = await fetch(`/api/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
      body: JSON.stringify(view ? { ...body, page, view } : body),
      signal: control.signal,
    });
  } catch (error) {
    if (control.signal.aborted) throw new OutOfDate();
    throw new Error("The server does not answer: it has ended, or was started anew.");
  }
  if (response.status === 204) throw new OutOfDate();
  if (response.ok) return response;
  const told = await response.json().catch(() => ({ error: { message: response.statusText } }));
  throw new Error(told.error.message);
}

// Ask for a view's numbers. A newer question for the same view makes this one throw OutOfDate.
export async function ask(name, body = {}, view = name) {
  const control = new AbortController(), response = await send(name, body, view, control);
  try {
    const told = await response.json();
    await released();
    if (control.signal.aborted) throw new OutOfDate();
    return told;
  } catch (error) {
    if (error.name === "AbortError") throw new OutOfDate();
    throw error;
  }
}

// Pieces of an answer, as they come.
export async function* stream(name, body, view = name) {
  const control = new AbortController(), response = await send(name, body, view, control);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const piece = JSON.parse(line);
        if (piece.error) {
          if (piece.error.code === "out_of_date") throw new OutOfDate();
          throw new Error(piece.error.message);
        }
        await released();
        yield piece;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw new OutOfDate();
    throw error;
  }
}

export function stop(view) {
  running.get(view)?.abort();
}

// Run what a reader has asked for; what is out of date says nothing, what fails is told.
export async function quietly(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof OutOfDate)) say(error.message, 10);
    return undefined;
  }
}
