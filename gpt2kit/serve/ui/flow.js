// Written text: its units as nodes, shaded by probability; the pointer and the keyboard find their alternatives.
import { hoverToken, leaveToken, pinToken } from "./alternatives.js";
import { make } from "./dom.js";
import { percent, t } from "./lang.js";
import { visible } from "./text.js";

// Bits of surprise that get no shade yet (the token was as likely as all others together), and the full one
const [NONE, FULL] = [1, 12];

export class Flow {
  units = [];
  #nodes = new Map(); // node -> unit
  #current = null; // the node that Tab leads to

  /** `choose(index, unit)`: `unit` was chosen to stand where units[index] stands. */
  constructor(box, choose) {
    this.box = box;
    const at = (event) => {
      const node = event.target.closest(".t");
      const unit = this.#nodes.get(node);
      return unit?.steps.length ? [node, unit, (chosen) => choose(this.units.indexOf(unit), chosen)] : null;
    };
    const hears = (name, call) => box.addEventListener(name, (event) => {
      const found = at(event);
      if (found) call(event, found);
    });
    // Moved there by a hand: a text that grows under a resting pointer opens nothing.
    const isMoved = (event) => event.pointerType === "mouse" && (event.movementX || event.movementY);
    hears("pointermove", (event, found) => isMoved(event) && hoverToken(...found));
    hears("pointerout", (event) => event.pointerType === "mouse" && leaveToken());
    hears("click", (event, found) => {
      if (!getSelection().isCollapsed) return; // somebody selects text to copy it
      this.#focus(found[0]);
      pinToken(...found, false);
    });
    hears("keydown", (event, found) => this.#key(event, found));
  }

  set(units) {
    this.units = [];
    this.#nodes.clear();
    this.#current = null;
    this.box.replaceChildren();
    this.add(units);
  }

  add(units) {
    const nodes = units.map((unit) => this.#node(unit));
    this.units.push(...units);
    this.box.append(...nodes);
    if (!this.#current && nodes.length) this.#lead(nodes[0]);
  }

  get text() {
    return this.units.map((unit) => unit.text).join("");
  }

  #node(unit) {
    const node = make("span", { class: "t", text: unit.text });
    if (unit.end) node.classList.add("end");
    if (unit.text.includes("\n")) node.classList.add("line");
    if (unit.branch) node.classList.add("branch");
    node.style.setProperty("--s", shade(unit.p));
    this.#nodes.set(node, unit);
    return node;
  }

  /** One token at a time is a button, so that Tab passes through the text in one step and readers read it as text. */
  #lead(node) {
    for (const name of ["tabindex", "role", "aria-haspopup", "aria-label"]) this.#current?.removeAttribute(name);
    this.#current = node;
    const unit = this.#nodes.get(node);
    const token = unit.end ? t("write.end") : visible(unit.text);
    node.setAttribute("tabindex", "0");
    node.setAttribute("role", "button");
    node.setAttribute("aria-haspopup", "dialog");
    node.setAttribute("aria-label", unit.p === null ? token : t("token.is", { token, p: percent(unit.p) }));
  }

  #focus(node) {
    this.#lead(node);
    node.focus({ preventScroll: true });
  }

  #key(event, found) {
    const all = [...this.#nodes.keys()];
    const here = all.indexOf(found[0]);
    const there = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      if (event.ctrlKey || event.metaKey) return; // that writes
      event.preventDefault();
      pinToken(...found, true);
    } else if (there !== undefined) {
      event.preventDefault();
      if (all[there]) this.#focus(all[there]);
    }
  }
}

/** How strongly a token of this probability is shaded, 0 to 1. */
function shade(p) {
  const share = p === null ? 0 : (-Math.log2(p) - NONE) / (FULL - NONE);
  return Math.min(1, Math.max(0, share)).toFixed(3);
}
