// How tokens are chosen: the controls, and a small picture of what they do.
import { $, make, svg } from "./dom.js";
import { onLanguage, number, percent, say, t } from "./lang.js";

// name: [lowest, highest, step, default, the value that switches it off]
const REALS = {
  temperature: [0, 2, 0.05, 0.8],
  top_p: [0, 1, 0.01, 0.95, 1],
  top_k: [0, 100, 1, 0, 0],
  min_p: [0, 0.5, 0.01, 0, 0],
  repetition_penalty: [1, 2, 0.01, 1, 1],
};
// name: [lowest, highest, default; null: drawn anew each time]
const INTEGERS = { max_tokens: [1, 4096, 128], seed: [0, 2 ** 53 - 1, null] };
const MOST_VERSIONS = 4;

// Odds of 16 tokens as a model might give them, for the picture
const EXAMPLE = Array.from({ length: 16 }, (_, rank) => 1 / (rank + 1) ** 1.1);

const fields = {};
const redraw = [];

/** The settings in the API's names. A seed is always sent, so that the text can be made again. */
export function settings() {
  const found = { n: Number(document.querySelector("input[name=n]:checked").value) };
  for (const name of Object.keys(REALS)) found[name] = Number(fields[name].value);
  found.max_tokens = whole("max_tokens") ?? INTEGERS.max_tokens[2];
  found.seed = whole("seed") ?? crypto.getRandomValues(new Uint32Array(1))[0];
  return found;
}

export function keepSeed(seed) {
  fields.seed.value = seed;
}

function whole(name) {
  const [low, high] = INTEGERS[name];
  const value = Math.round(fields[name].valueAsNumber);
  return Number.isNaN(value) ? null : Math.min(high, Math.max(low, value));
}

export function startSettings() {
  const picture = example();
  const box = $("controls");
  box.append(real("temperature"), picture, ...Object.keys(REALS).slice(1).map(real), integer("max_tokens"), versions(), integer("seed"));
  box.append(make("button", { class: "link", say: ["settings.reset"], on: { click: reset } }));
  update();
  onLanguage(update);
  if (matchMedia("(max-width: 60rem)").matches) $("settings").open = false;
}

function reset() {
  for (const [name, [, , , start]] of Object.entries(REALS)) fields[name].value = start;
  for (const [name, [, , start]] of Object.entries(INTEGERS)) fields[name].value = start ?? "";
  $("n-1").checked = true;
  update();
}

function update() {
  for (const call of redraw) call();
}

function row(name, input, ...more) {
  input.id = `set-${name}`;
  input.setAttribute("aria-describedby", `why-${name}`);
  fields[name] = input;
  return make("div", { class: "setting" },
    make("div", { class: "row" }, make("label", { for: input.id, say: [name] }), ...more),
    make("p", { id: `why-${name}`, class: "why", say: [`${name}.why`] }));
}

function real(name) {
  const [min, max, step, value, off] = REALS[name];
  const input = make("input", { type: "range", min, max, step, on: { input: update } });
  input.value = value;
  const output = make("output", { for: `set-${name}` });
  redraw.push(() => {
    const now = Number(input.value);
    output.textContent = now === off ? t("settings.off") : number(now);
    input.setAttribute("aria-valuetext", output.textContent);
    input.style.setProperty("--at", `${((now - min) / (max - min)) * 100}%`);
  });
  const box = row(name, input, output);
  box.firstChild.after(input);
  return box;
}

function integer(name) {
  const [min, max, value] = INTEGERS[name];
  const input = make("input", { type: "number", min, max, step: 1, inputmode: "numeric" });
  input.value = value ?? "";
  if (value === null) say(input, "settings.random", undefined, "tPlaceholder");
  return row(name, input, input);
}

function versions() {
  const choices = Array.from({ length: MOST_VERSIONS }, (_, i) => i + 1).map((n) => [
    make("input", { type: "radio", name: "n", value: n, id: `n-${n}`, checked: n === 1 }),
    make("label", { for: `n-${n}`, text: n }),
  ]);
  return make("fieldset", { class: "setting", "aria-describedby": "why-n" },
    make("div", { class: "row" }, make("legend", { say: ["n"] }), make("div", { class: "choices" }, ...choices.flat())),
    make("p", { id: "why-n", class: "why", say: ["n.why"] }));
}

/** Sixteen bars: the odds of example tokens after the settings; pale where they cannot be chosen. */
function example() {
  const bars = EXAMPLE.map((_, i) => svg("rect", { x: i * 10 + 1, width: 8, rx: 1.5 }));
  const text = make("p", { class: "why" });
  redraw.push(() => {
    const odds = reshape(EXAMPLE);
    odds.forEach((p, i) => {
      const height = Math.max(1.5, 46 * p ** 0.7);
      bars[i].setAttribute("height", height);
      bars[i].setAttribute("y", 48 - height);
      bars[i].classList.toggle("out", p === 0);
    });
    say(text, "settings.example", { of: odds.length, n: odds.filter((p) => p > 0).length, p: () => percent(odds[0]) });
  });
  return make("div", { class: "example" }, svg("svg", { viewBox: "0 0 160 48", "aria-hidden": "true" }, ...bars), text);
}

/** The sampler's steps on odds in falling order: temperature, top-k, top-p, min-p, each renormalised. */
function reshape(odds) {
  const now = Object.fromEntries(Object.keys(REALS).map((name) => [name, Number(fields[name]?.value ?? REALS[name][3])]));
  const norm = (list) => {
    const sum = list.reduce((before, p) => before + p, 0);
    return list.map((p) => p / sum);
  };
  if (now.temperature === 0) return odds.map((_, i) => (i === 0 ? 1 : 0));
  let left = norm(odds.map((p) => (p / odds[0]) ** (1 / now.temperature)));
  if (now.top_k > 0) left = norm(left.map((p, i) => (i < now.top_k ? p : 0)));
  let before = 0;
  left = norm(left.map((p, i) => {
    const stays = i === 0 || before < now.top_p;
    before += p;
    return stays ? p : 0;
  }));
  return norm(left.map((p) => (p >= now.min_p * left[0] ? p : 0)));
}
