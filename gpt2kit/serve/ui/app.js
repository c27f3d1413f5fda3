// The page: its tabs, models, languages and keys. Each tab has a file of its own.
import { closeCard, startCard } from "./alternatives.js";
import { get, ServerError, startKey } from "./api.js";
import { send, startChat, stopChat } from "./chat.js";
import { $, isComposing, make, show } from "./dom.js";
import { keep, kept } from "./kept.js";
import { onLanguage, say, switchLanguage, translate, unsay } from "./lang.js";
import { showModel, startModel } from "./model.js";
import { startSettings } from "./settings.js";
import { showStatus, startStatus } from "./status.js";
import { showTokens, startTokens } from "./tokens.js";
import { isWriting, startWrite, stop, undo, write } from "./write.js";

const TABS = ["write", "chat", "tokens", "model", "status"];
const RETRY = 2000; // ms until a server that does not answer is asked again
const KEYS = [
  [["Ctrl/⌘", "Enter"], "help.write"],
  [["Esc"], "help.stop"],
  [["Alt", "Z"], "help.undo"],
  [["←", "→"], "help.walk"],
  [["Enter"], "help.open.token"],
  [["←", "→"], "help.tabs"],
  [["?"], "help.help"],
];

const changed = []; // whom to tell of another model
let cards = {};

/** What the tabs share: the model, and ways to tell of errors and to open a tab. */
const session = {
  model: "", // its name
  about: {}, // the card's "gpt2kit"
  onModel: (call) => changed.push(call),
  notice,
  open,
};

// ------------------------------------------------------------------------------------------------ notices

let told = null; // the error that is shown, to say it again in the other language

/** An error or a key of words.js to show; null: nothing any more. */
function notice(what, values) {
  told = what instanceof Error ? what : null;
  const text = $("notice").querySelector("p");
  if (typeof what === "string") say(text, what, values);
  else unsay(text, told ? inWords(told) : "");
  $("notice").classList.toggle("mild", typeof what === "string");
  show($("notice"), what !== null);
}

/** What is no ServerError is our own mistake: it is shown as it is. */
const inWords = (error) => (error instanceof ServerError ? error.plain() : String(error));

// ------------------------------------------------------------------------------------------------ tabs

function open(name) {
  closeCard();
  for (const one of TABS) {
    const tab = $(`tab-${one}`);
    tab.setAttribute("aria-selected", one === name);
    tab.tabIndex = one === name ? 0 : -1;
    show($(one), one === name);
  }
  history.replaceState(null, "", `#/${name}`); // no id of the page, to which the browser would scroll
  showTokens();
  showModel();
  showStatus();
}

const current = () => TABS.find((name) => !$(name).hidden);

function startTabs() {
  for (const name of TABS) $(`tab-${name}`).addEventListener("click", () => open(name));
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    const at = TABS.indexOf(current());
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: TABS.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const name = TABS[(to + TABS.length) % TABS.length];
    open(name);
    $(`tab-${name}`).focus();
  });
  const asked = location.hash.slice(2);
  open(TABS.includes(asked) ? asked : "write");
}

// ------------------------------------------------------------------------------------------------ models

async function findModels() {
  try {
    const { data } = await get("/v1/models");
    cards = Object.fromEntries(data.map((card) => [card.id, card]));
    if (told) notice(null);
  } catch (error) {
    if (told?.status !== error.status) notice(error); // said once, however often it is tried again
    if (error.status === 0 || error.status === 503) setTimeout(findModels, RETRY);
    return;
  }
  const names = Object.keys(cards);
  $("models").replaceChildren(...names.map((name) => make("option", { value: name, text: name })));
  $("models").disabled = names.length < 2;
  const last = kept("model", "localStorage");
  choose(names.includes(last) ? last : names[0]);
}

function choose(name) {
  session.model = name;
  session.about = cards[name].gpt2kit ?? {};
  $("models").value = name;
  document.title = `${name} · gpt2kit`;
  for (const call of changed) call();
}

// ------------------------------------------------------------------------------------------------ keys

function onKey(event) {
  if (isComposing(event) || document.querySelector("dialog[open]")) return;
  const isTyping = event.target.matches("textarea, input:not([type=range], [type=radio], [type=checkbox]), select");
  if (event.key === "Escape") {
    if (closeCard() || stop() || stopChat()) event.preventDefault();
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (current() === "write" && !isWriting()) write();
    if (current() === "chat") send();
  } else if (event.altKey && event.code === "KeyZ" && current() === "write") {
    event.preventDefault();
    undo();
  } else if (event.key === "?" && !isTyping) {
    $("help").showModal();
  }
}

function startHelp() {
  const names = (keys) => make("dt", {}, ...keys.map((key) => make("kbd", { text: key })));
  $("keys").append(...KEYS.flatMap(([keys, words]) => [names(keys), make("dd", { say: [words] })]));
  $("show-help").addEventListener("click", () => $("help").showModal());
  $("close-help").addEventListener("click", () => $("help").close());
}

function switchTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  keep("theme", "localStorage", root.dataset.theme);
}

// ------------------------------------------------------------------------------------------------ begin

startCard();
startKey(findModels);
startSettings();
startWrite(session);
startChat(session);
startTokens(session);
startModel(session);
startStatus();
startHelp();
startTabs();
translate();
onLanguage(() => told && notice(told));
document.addEventListener("keydown", onKey);
$("theme").addEventListener("click", switchTheme);
$("language").addEventListener("click", switchLanguage);
$("notice").querySelector("button").addEventListener("click", () => notice(null));
$("models").addEventListener("change", () => {
  keep("model", "localStorage", $("models").value);
  stop();
  choose($("models").value);
});
findModels();
