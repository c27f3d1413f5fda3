// Tokens: how a text is cut, Chinese beside English.
import { post } from "./api.js";
import { $, make } from "./dom.js";
import { say } from "./lang.js";
import { visibleNode } from "./text.js";

const SAMPLES = [
  ["tokens.english", "en", "Spring dreams: I slept past dawn, and everywhere the birds were singing."],
  ["tokens.chinese", "zh-CN", "春眠不觉晓，处处闻啼鸟。"],
];
const PAUSE = 200; // ms after the last key

let session = null;
let cuts = [];

export function startTokens(given) {
  session = given;
  cuts = SAMPLES.map(cut);
  session.onModel(showTokens);
}

/** Cut both texts anew, if the tab is seen. */
export function showTokens() {
  if (session.model && !$("tokens").hidden) for (const one of cuts) one();
}

/** One text with its pieces; a function that asks the server for them. */
function cut([title, lang, sample], index) {
  const id = `cut-${index}`;
  const field = make("textarea", { id, lang, rows: 3, spellcheck: "false" });
  const figures = make("p", { class: "figures" });
  const pieces = make("ol", { class: "pieces", lang, label: ["tokens.pieces"] });
  field.value = sample;
  $("cuts").append(make("div", { class: "cut" }, make("label", { for: id, say: [title] }), field, figures, pieces));
  let timer = 0;
  let latest = 0;
  const ask = async () => {
    const own = ++latest;
    const text = field.value;
    try {
      const found = await post("/tokenize", { model: session.model, prompt: text });
      if (own === latest) draw([...text], found, figures, pieces);
    } catch (error) {
      session.notice(error);
    }
  };
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, PAUSE);
  });
  return ask;
}

function draw(characters, found, figures, place) {
  const each = characters.length ? found.count / characters.length : 0;
  figures.replaceChildren(
    make("strong", { say: ["tokens.count", { n: found.count }] }),
    make("span", { say: ["tokens.characters", { n: characters.length }] }),
    make("span", { say: ["tokens.each", { n: Math.round(each * 100) / 100 }] }),
  );
  if (each) figures.append(make("span", { say: ["tokens.room", { n: Math.round(found.max_model_len / each) }] }));
  place.replaceChildren(...groups(found.pieces).map((group) => drawGroup(group, characters)));
}

/** Pieces that share a character stand together. */
function groups(pieces) {
  const found = [];
  for (const piece of pieces) {
    const last = found.at(-1)?.at(-1);
    if (last && piece.start < last.end) found.at(-1).push(piece);
    else found.push([piece]);
  }
  return found;
}

function drawGroup(group, characters) {
  const text = characters.slice(group[0].start, group.at(-1).end).join("");
  const parts = group.map((piece) => {
    const bytes = piece.bytes.replace(/(..)(?=.)/g, "$1 ");
    const node = make("span", { class: `part hue-${piece.id % 6}` }, make("span", { class: "id", text: piece.id }));
    say(node, group.length > 1 ? "tokens.part" : "tokens.piece", { id: String(piece.id), bytes, text }, "tTitle");
    return node;
  });
  const word = visibleNode(text || group[0].text);
  if (group.length === 1) {
    parts[0].prepend(word);
    return make("li", { class: "piece" }, parts[0]);
  }
  return make("li", { class: "piece shared" }, word, make("span", { class: "parts" }, ...parts));
}
