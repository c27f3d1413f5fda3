// Chat, where the model has a template for it.
import { stream } from "./api.js";
import { $, announce, isComposing, make, Reader, show } from "./dom.js";
import { t } from "./lang.js";
import { settings } from "./settings.js";

// What DEFAULT_TEMPLATE of gpt2kit/text/chat.py writes: shown to whoever wants to tune a model that chats.
const TEMPLATE = "user\nWhat is the sea?<|endoftext|>assistant\nWater, salt and patience.<|endoftext|>";

let session = null;
let messages = [];
let working = null; // the AbortController of the answer that comes

export function startChat(given) {
  session = given;
  $("chat-template").textContent = TEMPLATE.replaceAll("<|endoftext|>", "<|endoftext|>\n").trim();
  $("send").addEventListener("click", send);
  $("chat-stop").addEventListener("click", stopChat);
  $("forget").addEventListener("click", forget);
  $("chat-to-write").addEventListener("click", () => session.open("write"));
  $("message").addEventListener("keydown", (event) => {
    // While Chinese is being typed, Enter belongs to the input method.
    if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
    event.preventDefault();
    if (!event.repeat && !working) send();
  });
  session.onModel(() => {
    forget();
    show($("chat-none"), !session.about.chat);
    show($("chat-room"), Boolean(session.about.chat));
  });
}

function forget() {
  stopChat();
  messages = [];
  $("talk").replaceChildren(make("li", { class: "quiet", say: ["chat.hello"] }));
  show($("forget"), false);
}

/** true: there was something to stop. */
export function stopChat() {
  if (!working) return false;
  working.abort();
  return true;
}

export async function send() {
  const text = $("message").value.trim();
  if (!text || working || !session.about.chat) return;
  $("message").value = "";
  session.notice(null);
  if (!messages.length) $("talk").replaceChildren();
  messages.push({ role: "user", content: text });
  bubble("user", "chat.you").textContent = text;
  const place = bubble("assistant");
  const talk = messages;
  working = new AbortController();
  waiting(true);
  try {
    await listen(place, working.signal);
  } catch (error) {
    if (error.name !== "AbortError") session.notice(error);
  }
  working = null;
  waiting(false);
  if (messages === talk) settle(place, text); // else a new conversation has begun meanwhile
}

async function listen(place, signal) {
  const instructions = $("system").value.trim();
  const system = instructions ? [{ role: "system", content: instructions }] : [];
  const body = { model: session.model, messages: [...system, ...messages], ...settings(), n: 1 };
  const reader = new Reader();
  let due = 0;
  let came = "";
  const put = () => {
    due = 0;
    place.append(came);
    came = "";
    place.parentNode.scrollIntoView({ block: "nearest" });
  };
  try {
    for await (const chunk of stream("/v1/chat/completions", body, signal)) {
      for (const choice of chunk.choices) came += choice.delta.content ?? "";
      reader.push(chunk.choices[0]?.delta.content ?? "");
      due ||= requestAnimationFrame(put);
    }
  } finally {
    cancelAnimationFrame(due);
    put();
  }
  reader.end("chat.over");
}

/** What came stays in the conversation; where nothing did, the question goes back to its field. */
function settle(place, text) {
  if (place.textContent) {
    messages.push({ role: "assistant", content: place.textContent });
  } else {
    messages.pop();
    place.parentNode.previousSibling.remove();
    place.parentNode.remove();
    if (!$("message").value) $("message").value = text;
  }
  show($("forget"), messages.length > 0);
}

function bubble(role, title) {
  const place = make("p", { class: "said" });
  const name = title ? make("h3", { say: [title] }) : make("h3", { text: session.model });
  $("talk").append(make("li", { class: role }, name, place));
  return place;
}

function waiting(is) {
  show($("send"), !is);
  show($("chat-stop"), is);
  $("talk").lastChild?.classList.toggle("writing", is);
  if (is) announce(t("write.writing"));
  $("message").focus();
}
