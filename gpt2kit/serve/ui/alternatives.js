// The card beside a token: what else could have stood there.
import { make, show } from "./dom.js";
import { onLanguage, percent, t } from "./lang.js";
import { bytesOf, hex, isSpecial, textOf, visibleNode } from "./text.js";

const OPEN_AFTER = 120; // ms under the pointer
const CLOSE_AFTER = 250; // ms beside it: time to reach the card
const GAP = 8; // px

const narrow = matchMedia("(max-width: 40rem)"); // the card is a sheet at the lower edge there
let card = null;
let owner = null; // the token that it belongs to
let pinned = false;
let timer = 0;

export function startCard() {
  card = make("div", { id: "card", class: "card", role: "dialog", label: ["token.choices"], hidden: true });
  card.addEventListener("pointerenter", () => clearTimeout(timer));
  card.addEventListener("pointerleave", leaveToken);
  card.addEventListener("keydown", walk);
  document.body.append(card);
  document.addEventListener("pointerdown", (event) => {
    if (!card.contains(event.target) && event.target !== owner) closeCard();
  });
  onLanguage(closeCard);
}

export function hoverToken(node, unit, choose) {
  clearTimeout(timer);
  if (!pinned && node !== owner) timer = setTimeout(() => open(node, unit, choose), OPEN_AFTER);
}

export function leaveToken() {
  clearTimeout(timer);
  if (!pinned) timer = setTimeout(closeCard, CLOSE_AFTER);
}

/** Open until it is closed. `focus`: the keyboard goes there, too. */
export function pinToken(node, unit, choose, focus) {
  clearTimeout(timer);
  open(node, unit, choose);
  pinned = true;
  if (focus) card.querySelector("button:not([disabled])")?.focus();
}

/** true: it was open. */
export function closeCard() {
  clearTimeout(timer);
  if (!card || card.hidden) return false;
  if (card.contains(document.activeElement)) owner.focus();
  owner.classList.remove("open");
  show(card, false);
  owner = null;
  pinned = false;
  return true;
}

function open(node, unit, choose) {
  closeCard();
  owner = node;
  node.classList.add("open");
  const pick = (chosen) => {
    closeCard();
    choose(chosen);
  };
  card.replaceChildren(head(unit), ...unit.steps.flatMap((_, number) => list(unit, number, pick)),
    make("p", { class: "why", text: t("token.hint") }));
  show(card);
  place(node);
}

function head(unit) {
  const p = unit.p === null ? "" : percent(unit.p);
  return make("p", { class: "row" },
    unit.end ? make("strong", { class: "word", text: t("write.end") }) : visibleNode(unit.text, "strong"), make("span", { class: "p", text: p }));
}

/** The alternatives of one token of a unit. */
function list(unit, number, pick) {
  const step = unit.steps[number];
  const rest = 1 - step.options.reduce((sum, option) => sum + option.p, 0);
  const rows = step.options.map((option) => make("li", {}, choice(unit, number, option, pick)));
  if (rest >= 0.0005 && step.options.length > 1) {
    rows.push(make("li", { class: "choice rest" }, ...columns(make("span", { class: "word", text: t("token.rest") }), rest)));
  }
  const title = make("p", { class: "why", text: t("token.step", { n: number + 1, of: unit.steps.length }) });
  return [...(unit.steps.length > 1 ? [title] : []), make("ul", {}, ...rows)];
}

function choice(unit, number, option, pick) {
  const step = unit.steps[number];
  const end = isSpecial(option.name);
  const text = end ? "" : textOf([...step.before, ...bytesOf(option.name)]);
  const word = end || text === null
    ? make("span", { class: "word", text: end ? t("write.end") : `${hex(bytesOf(option.name))} · ${t("token.part")}` })
    : visibleNode(text);
  const node = make("button", { class: "choice", disabled: text === null }, ...columns(word, option.p));
  if (text === null) node.title = t("token.part.title");
  if (option.name === step.name) {
    node.classList.add("chosen");
    if (text) node.title = t("token.again");
  }
  node.addEventListener("click", () => {
    const steps = [...unit.steps.slice(0, number), { ...step, name: option.name, bytes: bytesOf(option.name), p: option.p }];
    pick({ text, end, p: steps.reduce((product, one) => product * one.p, 1), steps, branch: true });
  });
  return node;
}

function columns(word, p) {
  const bar = make("span", { class: "share", "aria-hidden": "true" });
  bar.style.setProperty("--p", Math.max(p, 0));
  return [word, bar, make("span", { class: "p", text: percent(p) })];
}

function place(node) {
  card.classList.toggle("docked", narrow.matches);
  const at = node.getClientRects()[0];
  if (narrow.matches || !at) return;
  const { width, height } = card.getBoundingClientRect();
  const left = Math.min(Math.max(GAP, at.left - GAP), document.documentElement.clientWidth - width - GAP);
  const below = at.bottom + GAP + height < innerHeight || at.top < height + GAP;
  card.style.left = `${left + scrollX}px`;
  card.style.top = `${(below ? at.bottom + GAP : at.top - GAP - height) + scrollY}px`;
}

function walk(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const all = [...card.querySelectorAll("button:not([disabled])")];
  all[(all.indexOf(document.activeElement) + step + all.length) % all.length]?.focus();
}
