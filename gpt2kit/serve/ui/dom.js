// Nodes, and a voice for screen readers. Text only ever enters the document as text.
import { say, t } from "./lang.js";

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** A node: `say`, `label`, `title` are [key, values] of words.js; `on` are listeners; `text` is text. */
export function make(tag, { text, say: words, label, title, on = {}, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "boolean") node.toggleAttribute(name, value);
    else node.setAttribute(name, value);
  }
  if (text !== undefined) node.textContent = text;
  if (words) say(node, ...words);
  if (label) say(node, label[0], label[1], "tLabel");
  if (title) say(node, title[0], title[1], "tTitle");
  for (const [name, call] of Object.entries(on)) node.addEventListener(name, call);
  node.append(...children);
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const show = (node, is = true) => node.toggleAttribute("hidden", !is);

/** A key that belongs to an input method. Safari sends the Enter that ends it behind compositionend, as key 229. */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** Let screen readers say this when they are done with what they say. */
export function announce(text) {
  const speaker = $("speaker");
  // A new node each time: the same text twice is said twice.
  speaker.replaceChildren(make("p", { text }));
}

const PAUSE = 4000; // ms between two announcements of a stream
const SENTENCE = /^[\s\S]*[.!?。！？…\n]/;

/** A stream read aloud sentence by sentence, not token by token. */
export class Reader {
  #heard = "";
  #last = performance.now();

  push(text) {
    this.#heard += text;
    if (performance.now() - this.#last < PAUSE) return;
    const whole = SENTENCE.exec(this.#heard)?.[0];
    if (!whole) return;
    announce(whole);
    this.#heard = this.#heard.slice(whole.length);
    this.#last = performance.now();
  }

  end(key, values) {
    announce(`${this.#heard} ${t(key, values)}`);
  }
}
