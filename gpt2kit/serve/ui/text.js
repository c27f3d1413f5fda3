// Tokens to text.
import { make } from "./dom.js";

// The API names a token that is no whole character by its bytes: bytes:\xe6\x98
const BYTES = /^bytes:((?:\\x[0-9a-f]{2})+)$/;
const SPECIAL = /^(?:<\|[^|]*\|>|<\/?s>|\[(?:UNK|CLS|SEP|PAD|MASK)\]|token_id:\d+)$/;

const encoder = new TextEncoder();
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lenient = new TextDecoder("utf-8", { ignoreBOM: true });

export const isSpecial = (name) => SPECIAL.test(name);

/** A token's name to bytes: an array of numbers. */
export function bytesOf(name) {
  const found = BYTES.exec(name);
  return found ? found[1].slice(2).split("\\x").map((pair) => parseInt(pair, 16)) : [...encoder.encode(name)];
}

/** The text of bytes; null where they are not whole characters. */
export function textOf(bytes) {
  try {
    return strict.decode(Uint8Array.from(bytes));
  } catch {
    return null;
  }
}

export const hex = (bytes) => bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

/**
 * Tokens as they come -> units: whole characters, of one token or of several that share them.
 *
 * A unit: {text, end, p, steps}. end: it is a special token, which leaves no text. p: its probability, null where it is
 * not known. A step is one token: {bytes, before, p, options}; before: the unit's bytes so far; options: what else was
 * likely, [{name, p}], the likeliest first.
 */
export class Assembler {
  #steps = [];

  /** `top`: name -> log-probability. `leavesText`: whether the answer's text grew by it. */
  push(name, logprob, top, leavesText) {
    const p = logprob === null ? null : Math.exp(logprob);
    const options = Object.entries(top ?? {}).map(([other, value]) => ({ name: other, p: Math.exp(value) }));
    options.sort((a, b) => b.p - a.p);
    const whole = !BYTES.test(name);
    if (whole && !leavesText && isSpecial(name)) {
      return [...this.end(), { text: "", end: true, p, steps: [{ name, bytes: [], before: [], p, options }] }];
    }
    const broken = whole ? this.end() : []; // a character that is never completed
    const before = this.#steps.flatMap((step) => step.bytes);
    const bytes = bytesOf(name);
    this.#steps.push({ name, bytes, before, p, options });
    const text = textOf([...before, ...bytes]);
    return text === null ? broken : [...broken, this.#unit(text)];
  }

  /** What is left of a character that was not completed. */
  end() {
    if (!this.#steps.length) return [];
    return [this.#unit(lenient.decode(Uint8Array.from(this.#steps.flatMap((step) => step.bytes))))];
  }

  #unit(text) {
    const steps = this.#steps;
    this.#steps = [];
    const p = steps.some((step) => step.p === null) ? null : steps.reduce((product, step) => product * step.p, 1);
    return { text, end: false, p, steps };
  }
}

const MARKS = { " ": "␣", "\n": "↵", "\t": "⇥" };

/** A piece of text with its spaces and line ends made visible. */
export const visible = (text) => text.replace(/[ \n\t]/g, (space) => MARKS[space]) || "∅";

/** The same as a node, in which the marks stand back. */
export const visibleNode = (text, tag = "span") => make(tag, { class: "word" },
  ...visible(text).split(/([␣↵⇥∅]+)/).map((part, i) => (i % 2 ? make("span", { class: "mark", text: part }) : part)));
