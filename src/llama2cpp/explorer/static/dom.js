// Elements from code. Text is always text: nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== undefined && child !== null && child !== false) element.append(child);
  }
  return element;
}

export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

// Put children into an element in place of those that are there. Whoever is inside with the keyboard stays: at the control
// that has taken the place of theirs, or in the element.
export function put(element, ...children) {
  const here = document.activeElement, inside = here !== element && element.contains(here);
  const at = inside ? controls(element).indexOf(here) : -1, name = inside ? nameOf(here) : null;
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  if (inside) {
    const now = controls(element);
    let place = now.findIndex((one) => nameOf(one) === name);
    if (place < 0) place = Math.min(at, now.length - 1);
    const far = (one) => Math.abs(now.indexOf(one) - place);
    const nearest = now.filter((one) => !one.disabled).sort((a, b) => far(a) - far(b))[0];
    if (!nearest) element.tabIndex = -1;
    (nearest ?? element).focus({ preventScroll: true });
  }
  return element;
}

const controls = (element) => [...element.querySelectorAll("button, input, select, textarea, [tabindex]")];
const nameOf = (one) => one.id || ["data-station", "data-head", "data-branch", "data-export", "aria-label"].map((name) => one.getAttribute(name)).find((found) => found) || `${one.tagName} ${one.textContent}`;

export const $ = (id) => document.getElementById(id);

// What cannot be seen, or would change how what stands beside it is seen.
const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\u00a0\u2000-\u200a\u202f\u205f\u3000\u115f\u1160\u3164\uffa0]/u;
const NAMES = { "\n": "\\n", "\t": "\\t", "\r": "\\r" };

function escaped(character) {
  return NAMES[character] || `\\u{${character.codePointAt(0).toString(16)}}`;
}

// A token's text where only text can be: in pictures and in names for screen readers.
export function plain(text, most = 40) {
  let made = "";
  for (const character of text) made += character === " " ? "\u00b7" : HIDDEN.test(character) ? escaped(character) : character;
  const all = [...made];
  return all.length > most ? `${all.slice(0, most - 1).join("")}\u2026` : made;
}

// A token's text as elements: spaces stay spaces, with a dot drawn over them.
export function shown(text) {
  const parts = [];
  let run = "";
  const flush = () => { if (run) parts.push(run); run = ""; };
  for (const character of text) {
    if (character === " ") { flush(); parts.push(h("span", { class: "sp" }, " ")); }
    else if (HIDDEN.test(character)) { flush(); parts.push(h("span", { class: "escaped" }, escaped(character))); }
    else run += character;
  }
  flush();
  return parts.length ? parts : [h("span", { class: "escaped" }, "(empty)")];
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("-", "\u2212").replace("e+", "e");
  return value.toFixed(size >= 100 ? 1 : digits).replace("-", "\u2212");
}

export function percent(p) {
  if (p === 0) return "0 %";
  if (p < 1e-6) return "< 0.0001 %";
  const digits = p >= 0.0995 ? 1 : p >= 0.0005 ? 2 : p >= 0.00005 ? 3 : 4;
  return `${(100 * p).toFixed(digits)} %`;
}

let quiet;
export function say(message, seconds = 6) {
  const status = $("status");
  status.textContent = message;
  clearTimeout(quiet);
  if (message) quiet = setTimeout(() => { status.textContent = ""; }, seconds * 1000);
}

export function download(name, blob) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000); // a slow disk reads it late
}
