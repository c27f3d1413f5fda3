// Two languages. What `say` writes is written anew when the language changes.
import { keep, kept } from "./kept.js";
import { WORDS } from "./words.js";

const LANGUAGES = ["en", "zh-CN"]; // in the order of WORDS' pairs
const SLOTS = { t: null, tLabel: "aria-label", tTitle: "title", tPlaceholder: "placeholder", tAlt: "alt" };
const SELECTOR = "[data-t],[data-t-label],[data-t-title],[data-t-placeholder],[data-t-alt]";
const given = new WeakMap(); // node -> slot -> values
const listeners = [];
let index = first();

function first() {
  const chosen = kept("language", "localStorage");
  if (LANGUAGES.includes(chosen)) return LANGUAGES.indexOf(chosen);
  const known = (navigator.languages ?? [navigator.language]).map((name) => name.toLowerCase().split("-")[0]);
  return known.find((name) => name === "zh" || name === "en") === "zh" ? 1 : 0;
}

export const language = () => LANGUAGES[index];
export const onLanguage = (call) => listeners.push(call);

export function switchLanguage() {
  index = 1 - index;
  keep("language", "localStorage", language());
  translate();
  for (const call of listeners) call();
}

/** A sentence. Values: text, numbers (written as the language does), or functions that give text. */
export function t(key, values = {}) {
  const forms = WORDS[key][index].split("|");
  const text = forms[forms.length > 1 && values.n !== 1 ? 1 : 0];
  return text.replace(/\{(\w+)\}/g, (_, name) => shown(values[name]));
}

function shown(value) {
  if (typeof value === "function") return value();
  return typeof value === "number" ? number(value) : String(value);
}

export const number = (value, digits = 2) =>
  new Intl.NumberFormat(language(), { maximumFractionDigits: digits }).format(value);

/** A probability, 0 to 1, in per cent. */
export function percent(p) {
  return p > 0 && p < 0.001 ? `<${number(0.1)}%` : `${number(p * 100, p < 0.1 ? 1 : 0)}%`;
}

/** Put a sentence into a node: its text, or the attribute of a slot. */
export function say(node, key, values, slot = "t") {
  node.dataset[slot] = key;
  if (values !== undefined) given.set(node, { ...given.get(node), [slot]: values });
  put(node, slot);
  return node;
}

/** Put a text into a node that is in no language, or in one language only. */
export function unsay(node, text = "") {
  delete node.dataset.t;
  node.textContent = text;
}

function put(node, slot) {
  const text = t(node.dataset[slot], given.get(node)?.[slot]);
  if (SLOTS[slot] === null) node.textContent = text;
  else node.setAttribute(SLOTS[slot], text);
}

/** Every sentence of the document, in the language of now. */
export function translate() {
  document.documentElement.lang = language();
  for (const node of document.querySelectorAll(SELECTOR)) {
    for (const slot of Object.keys(SLOTS)) if (slot in node.dataset) put(node, slot);
  }
}
