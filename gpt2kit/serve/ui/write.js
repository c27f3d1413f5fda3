// Write: a text, the model's continuation of it, branches from any token, several versions side by side.
import { post, stream } from "./api.js";
import { closeCard } from "./alternatives.js";
import { $, announce, make, Reader, show } from "./dom.js";
import { Flow } from "./flow.js";
import { number, onLanguage, say, t } from "./lang.js";
import { keepSeed, settings } from "./settings.js";
import { Assembler } from "./text.js";

const STARTS = ["Once upon a time", "The sea was calm, and", "春", "从前有一座山，"];
const MOST_SOURCES = 3; // named on the empty sheet
const ROOM = 0.25; // of the model's view, at least, to write in
const MARGIN = 140; // px below the end of the text as it grows

let session = null;
let main = null; // the flow in the sheet: what is kept, and the new text if it is the only one
let runs = []; // the new texts: {flow, queue: units to be shown, assembler, finish}
const before = []; // to undo: {prompt, units, texts}
let working = null; // the AbortController of the request that runs
let measured = null; // of the last request: {begun, first, end (ms), tokens, bits, seed, seen}
let due = 0; // the next frame, in which what came is shown
let follow = true; // the end of the growing text stays in view, until somebody scrolls up

const prompt = $("prompt");
const ghost = make("span", { class: "ghost", "aria-hidden": "true" });

export function startWrite(given) {
  session = given;
  const text = make("span", { role: "group", label: ["write.text"] });
  main = new Flow(text, (index, unit) => branch(main, index, unit));
  $("flow").append(ghost, make("wbr"), text, make("span", { class: "caret", "aria-hidden": "true", text: "\u200b" }));
  prompt.addEventListener("input", edited);
  $("go").addEventListener("click", write);
  $("stop").addEventListener("click", stop);
  $("more").addEventListener("click", more);
  $("undo").addEventListener("click", undo);
  $("copy").addEventListener("click", copy);
  $("shade").addEventListener("change", () => $("write").classList.toggle("plain", !$("shade").checked));
  $("starts").append(make("span", { say: ["write.begins"] }), ...STARTS.map((start) =>
    make("button", { class: "start", text: start, on: { click: () => begin(start) } })));
  session.onModel(greet);
  onLanguage(measure);
  edited();
}

export const isWriting = () => working !== null;

function greet() {
  const sources = session.about.lineage?.data?.sources ?? [];
  const shown = [...sources.slice(0, MOST_SOURCES), ...(sources.length > MOST_SOURCES ? ["…"] : [])].join(", ");
  say(prompt, shown ? "write.placeholder.read" : "write.placeholder", { sources: shown }, "tPlaceholder");
}

// ------------------------------------------------------------------------------------------------ what one does

function begin(start) {
  prompt.value = start;
  edited();
  write();
}

function edited() {
  ghost.textContent = prompt.value;
  $("flow").classList.toggle("stale", !isWriting() && hasText());
  refresh();
}

/** A new text for the prompt. */
export function write() {
  remember();
  main.set([]);
  go();
}

/** Go on from the end. */
function more() {
  remember();
  const last = main.units.at(-1);
  if (last?.end) main.set(main.units.slice(0, -1));
  go();
}

/** Let `unit` stand at `index` of a flow, and write on from there. */
function branch(flow, index, unit) {
  remember();
  const base = flow === main ? [] : main.units;
  main.set([...base, ...flow.units.slice(0, index), unit]);
  if (unit.end) {
    clearRuns();
    refresh();
  } else {
    go();
  }
}

/** One of several versions becomes the text. */
function choose(run) {
  remember();
  main.set([...main.units, ...run.flow.units]);
  clearRuns();
  refresh();
  prompt.focus();
}

function remember() {
  stop();
  const texts = runs.filter((run) => run.flow !== main).map((run) => ({ units: run.flow.units, finish: run.finish }));
  if (hasText()) before.push({ prompt: prompt.value, units: [...main.units], texts });
}

export function undo() {
  const last = before.at(-1);
  if (!last) return;
  stop();
  before.pop();
  prompt.value = last.prompt;
  main.set(last.units);
  clearRuns();
  runs = last.texts.map((text, i) => card(i, text));
  measured = null;
  $("measure").replaceChildren();
  edited();
  $("flow").classList.remove("stale");
}

/** true: there was something to stop. */
export function stop() {
  if (!working) return false;
  working.abort();
  working = null;
  for (const run of runs) run.queue.push(...run.assembler.end());
  flush();
  finish("write.stopped");
  return true;
}

async function copy() {
  await navigator.clipboard.writeText(prompt.value + main.text);
  say($("copy"), "write.copied");
  announce(t("write.copied"));
  setTimeout(() => say($("copy"), "write.copy"), 1500);
}

// ------------------------------------------------------------------------------------------------ the request

async function go() {
  closeCard();
  clearRuns();
  session.notice(null);
  const own = (working = new AbortController());
  const asked = settings();
  runs = asked.n === 1 ? [fresh(main)] : Array.from({ length: asked.n }, (_, i) => card(i));
  measured = { begun: performance.now(), first: null, end: null, tokens: 0, bits: 0, seed: asked.seed, seen: null };
  const reader = asked.n === 1 ? new Reader() : null;
  follow = true;
  $("flow").classList.remove("stale");
  refresh();
  measure();
  announce(t("write.writing"));
  let outcome = "write.done";
  try {
    await ask(asked, own.signal, (choice) => own === working && take(choice, reader));
  } catch (error) {
    if (own === working) session.notice(error);
    outcome = "write.stopped";
  }
  if (own !== working) return; // somebody stopped it, or something newer runs
  working = null;
  for (const run of runs) run.queue.push(...run.assembler.end());
  flush();
  finish(outcome, reader);
}

/** Stream the completions. A single one goes on past the model's view, which then slides along the text. */
async function ask(asked, signal, on) {
  let left = asked.max_tokens;
  for (let seed = asked.seed; ; seed += 1) {
    const text = await seen(prompt.value + main.text, left, signal);
    const body = { model: session.model, prompt: text, logprobs: 5, ...asked, max_tokens: left, seed };
    const had = measured.tokens;
    for await (const chunk of stream("/v1/completions", body, signal)) chunk.choices.forEach(on);
    const came = measured.tokens - had;
    left -= came;
    if (asked.n > 1 || runs[0].finish !== "length" || left <= 0 || !came) return;
    runs[0].assembler = new Assembler(); // the model writes a half-written character anew
    flush();
  }
}

/** The end of a text that leaves the model some of its view to write in; as a rule, all of it. */
async function seen(text, wanted, signal) {
  const view = session.about.context ?? Infinity;
  const most = Math.max(1, view - Math.min(wanted, Math.ceil(view * ROOM)));
  if (new TextEncoder().encode(text).length <= most) return text; // a token is a byte at least
  const { pieces } = await post("/tokenize", { model: session.model, prompt: text }, signal);
  if (pieces.length <= most) return text;
  measured.seen = most;
  return [...text].slice(pieces.at(-most).start).join("");
}

function fresh(flow) {
  return { flow, queue: [], assembler: new Assembler(), finish: null };
}

function take(choice, reader) {
  const run = runs[choice.index];
  measured.first ??= performance.now();
  const found = choice.logprobs;
  found?.tokens.forEach((name, i) => {
    const leavesText = choice.text.includes(name);
    run.queue.push(...run.assembler.push(name, found.token_logprobs[i], found.top_logprobs?.[i], leavesText));
    measured.tokens += 1;
    measured.bits -= (found.token_logprobs[i] ?? 0) / Math.LN2;
  });
  run.finish = choice.finish_reason ?? run.finish;
  reader?.push(choice.text);
  due ||= requestAnimationFrame(flush);
}

// ------------------------------------------------------------------------------------------------ what one sees

addEventListener("wheel", (event) => (follow &&= event.deltaY > 0), { passive: true });
addEventListener("touchmove", () => (follow = false), { passive: true });

function flush() {
  cancelAnimationFrame(due);
  due = 0;
  for (const run of runs) run.flow.add(run.queue.splice(0));
  measure();
  if (!follow || !working || runs[0].flow !== main) return;
  const beyond = $("flow").getBoundingClientRect().bottom - innerHeight + MARGIN;
  if (beyond > 0) scrollBy(0, beyond);
}

function finish(key, reader) {
  measured.end = performance.now();
  const values = { tokens: () => t("measure.tokens", { n: measured.tokens }) };
  if (reader) reader.end(key, values);
  else announce(t(key, values));
  refresh();
  measure();
}

const hasText = () => main.units.length > 0 || runs.some((run) => run.flow.units.length > 0);

function refresh() {
  const writing = isWriting();
  const several = runs.some((run) => run.flow !== main);
  const had = document.activeElement;
  show($("go"), !writing);
  show($("stop"), writing);
  if (had === $("go") && writing) $("stop").focus();
  if (had === $("stop") && !writing) $("go").focus();
  show($("more"), !writing && !several && main.units.length > 0);
  show($("undo"), before.length > 0);
  show($("copy"), !writing && main.units.length > 0 && Boolean(navigator.clipboard)); // which plain http to another machine has not
  show($("shade-tick"), hasText());
  show($("legend"), hasText());
  show($("starts"), !hasText() && !writing && !prompt.value);
  $("write").classList.toggle("several", several);
  $("flow").classList.toggle("writing", writing && !several);
  for (const run of runs) run.button?.toggleAttribute("disabled", writing);
}

function clearRuns() {
  $("cards").replaceChildren();
  runs = [];
}

/** A version beside others; `text` {units, finish} where it is there already. */
function card(index, text = { units: [], finish: null }) {
  const box = make("p", { class: "flow" });
  const run = fresh(new Flow(box, (i, unit) => branch(run.flow, i, unit)));
  run.button = make("button", { say: ["write.keep"], on: { click: () => choose(run) } });
  const title = make("h3", { say: ["write.version", { n: index + 1 }] });
  $("cards").append(make("article", { class: "version" }, title, box, run.button));
  run.flow.set(text.units);
  run.finish = text.finish;
  return run;
}

/** The line of figures below the text. */
function measure() {
  const line = $("measure");
  if (!measured) return;
  if (measured.first === null) {
    line.textContent = isWriting() ? t("write.waiting") : "";
    return;
  }
  const seconds = ((measured.end ?? performance.now()) - measured.begun) / 1000; // the wait for the first one counts
  const parts = [t("measure.tokens", { n: measured.tokens })];
  if (measured.tokens > 1) parts.push(t("measure.speed", { n: () => number(measured.tokens / seconds, 0) }));
  parts.push(t("measure.first", { n: () => number(measured.first - measured.begun, 0) }));
  if (measured.tokens) parts.push(t("measure.bits", { n: () => number(measured.bits / measured.tokens, 1) }));
  const ends = new Set(runs.map((run) => run.finish));
  if (!isWriting() && ends.size === 1) {
    if (ends.has("stop")) parts.push(t("measure.ended"));
    if (ends.has("length")) parts.push(t("measure.full"));
  }
  if (measured.seen) parts.push(t("measure.seen", { n: measured.seen }));
  const { seed } = measured;
  const button = make("button", { class: "link", title: ["measure.seed.title"], on: { click: () => keepSeed(seed) } });
  button.textContent = t("measure.seed", { n: String(seed) });
  line.replaceChildren(`${parts.join(" · ")} · `, button);
}
