// Model: its shape, scores, loss curve and origin, from its card.
import { get, picture } from "./api.js";
import { $, make } from "./dom.js";
import { number, say, t } from "./lang.js";

const [WIDEST, DEEPEST] = [1600, 48]; // GPT-2 XL

let session = null;

export function startModel(given) {
  session = given;
  session.onModel(showModel);
}

/** Draw the card anew, if the tab is seen. */
export async function showModel() {
  const name = session.model;
  if (!name || $("model").hidden) return;
  try {
    const about = (await get(`/v1/models/${encodeURIComponent(name)}`)).gpt2kit;
    const curve = about.loss_picture ? await picture(`/v1/models/${encodeURIComponent(name)}/loss.png`) : null;
    if (name === session.model) draw(name, about, curve);
  } catch (error) {
    session.notice(error);
  }
}

function draw(name, about, curve) {
  const { config } = about;
  const inner = config.n_inner ?? 4 * config.n_embd;
  const summary = {
    parameters: about.parameters, layers: config.n_layer, width: config.n_embd, heads: config.n_head, context: about.context,
    vocabulary: config.vocab_size, inner,
  };
  $("model").replaceChildren(
    make("h2", { class: "title", text: name }),
    make("p", { class: "lead", say: ["model.summary", summary] }),
    facts(about),
    make("div", { class: "halves" }, make("div", {}, shape(summary), scores(about.scores)), curve ? loss(curve) : ""),
    lineage(about.lineage ?? {}),
    details("model.settings", table(about.lineage?.settings ?? {})),
    details("model.config", table(config)),
    details("model.all", make("pre", { text: JSON.stringify(about, null, 2) })),
  );
}

function facts(about) {
  const { config } = about;
  const all = {
    parameters: about.parameters, layers: config.n_layer, width: config.n_embd, heads: config.n_head, context: about.context,
    vocabulary: config.vocab_size, tokenizer: about.tokenizer?.kind, precision: about.precision,
  };
  const known = Object.entries(all).filter(([, value]) => value !== undefined && value !== null);
  return make("dl", { class: "facts" }, ...known.map(([key, value]) =>
    make("div", {}, make("dt", { say: [`fact.${key}`] }), written(value))));
}

/** A value; numbers in the language's own way. */
function written(value) {
  const node = make("dd");
  if (typeof value === "number") return say(node, "plain", { value });
  node.textContent = value;
  return node;
}

/** The network as bars: one a layer, longer for a wider one (by the square root: a narrow one is still to be seen). */
function shape(summary) {
  const layers = Math.min(summary.layers, DEEPEST);
  const bars = Array.from({ length: layers }, () => make("i"));
  const box = make("div", { class: "stack", "aria-hidden": "true" }, make("i", { class: "table" }), ...bars, make("i", { class: "table" }));
  box.style.setProperty("--share", Math.min(1, Math.sqrt(summary.width / WIDEST)));
  box.style.setProperty("--thick", `${Math.max(3, Math.min(16, 150 / layers))}px`);
  const list = ["model.embedding", "model.blocks", "model.out"].map((key) => make("li", { say: [key, summary] }));
  return make("section", {}, make("h3", { say: ["model.shape"] }), box, make("ol", { class: "steps" }, ...list));
}

function scores(found) {
  const rows = Object.entries(found ?? {}).flatMap(([key, value]) => score(key, value));
  return make("section", {}, make("h3", { say: ["model.scores"] }), rows.length
    ? make("dl", { class: "rows" }, ...rows) : make("p", { class: "quiet", say: ["model.scores.none"] }));
}

function loss(curve) {
  const image = make("img", { src: curve });
  say(image, "model.loss.alt", undefined, "tAlt");
  return make("section", {}, make("h3", { say: ["model.loss"] }), image);
}

function score(key, value) {
  const entry = (words, figure, digits) => [make("dt", words), say(make("dd"), "plain", { value: () => number(figure, digits) })];
  if (key !== "validation_loss") {
    const words = key === "validation_accuracy" ? { say: [`score.${key}`] } : { text: key };
    return typeof value === "number" ? entry(words, value, 4) : [make("dt", { text: key }), make("dd", { text: flat(value) })];
  }
  return [
    ...entry({ say: [`score.${key}`] }, value, 3),
    ...entry({ say: ["score.perplexity"] }, Math.exp(value), 1),
    ...entry({ say: ["score.bits"] }, value / Math.LN2, 2),
  ];
}

function lineage(found) {
  const { data = {}, versions } = found;
  const parents = found.parents?.map((parent) => parent.name ?? flat(parent)).join(", ");
  const all = {
    sources: data.sources?.join(", "), training_tokens: data.training_tokens, parents: parents || (found.parents && t("fact.scratch")),
    step: found.step, optimizer: found.settings?.optimizer, seed: found.seed,
    versions: versions && Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(", "), hash: data.hash,
  };
  const known = Object.entries(all).filter(([, value]) => value !== undefined && value !== null);
  const rows = known.flatMap(([key, value]) => {
    const own = key === "parents" && !parents ? say(make("dd"), "fact.scratch") : written(value);
    own.classList.toggle("hash", key === "hash");
    return [make("dt", { say: [`fact.${key}`] }), own];
  });
  const content = rows.length ? make("dl", { class: "rows" }, ...rows) : make("p", { class: "quiet", say: ["model.lineage.none"] });
  return make("section", {}, make("h3", { say: ["model.lineage"] }), content);
}

const flat = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

function table(values) {
  const rows = Object.entries(values).flatMap(([key, value]) => [make("dt", { text: key }), make("dd", { text: flat(value) })]);
  return rows.length ? make("dl", { class: "rows plain" }, ...rows) : null;
}

function details(key, content) {
  return content === null ? "" : make("details", { class: "more" }, make("summary", { say: [key] }), content);
}
