// The server's public API: JSON, streams, errors in plain words, and the key if it wants one.
import { $, show } from "./dom.js";
import { keep, kept } from "./kept.js";
import { t } from "./lang.js";

const BLANK_LINE = /\r?\n\r?\n/;
const KEYS = { 401: "error.key", 403: "error.scope", 404: "error.none", 413: "error.large", 429: "error.often", 503: "error.busy" };

/** What the server answered instead of a result; status 0: nothing, or the answer broke off. */
export class ServerError extends Error {
  constructor(status, error = {}, retry = null) {
    super(error.message ?? "");
    this.status = status;
    this.code = error.code ?? null;
    this.retry = retry;
  }

  /** In the page's language, with what the server said. */
  plain() {
    const parts = [t(this.#key())];
    if (this.message) parts.push(t("error.said", { message: this.message }));
    if (this.retry) parts.push(t("error.retry", { n: this.retry }));
    return parts.join(" ");
  }

  #key() {
    if (this.status === 0) return this.code === "cut" ? "error.cut" : "error.network";
    if (this.code === "context_length_exceeded") return "error.long";
    return KEYS[this.status] ?? (this.status >= 500 ? "error.server" : "error.asked");
  }
}

export const get = async (path, signal) => (await ask(path, { signal })).json();

export const post = async (path, body, signal) => (await ask(path, { body, signal })).json();

/** An answer's bytes as a data: URL, for pictures that need the key. */
export async function picture(path) {
  const blob = await (await ask(path)).blob();
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** The chunks of a streamed answer, as they come. Aborting `signal` frees what the server holds for it. */
export async function* stream(path, body, signal) {
  const answer = await ask(path, { body: { ...body, stream: true }, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new ServerError(0, { code: "cut" });
    });
    if (done) throw new ServerError(0, { code: "cut" });
    const events = (rest + value).split(BLANK_LINE);
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(500, chunk.error);
      yield chunk;
    }
  }
}

/** A request; asks the person for a key where the server does, until one fits or they give up. */
async function ask(path, { body, signal } = {}) {
  for (;;) {
    const used = key;
    const answer = await send(path, body, signal);
    if (answer.ok) return answer;
    const error = await read(answer);
    if (error.status !== 401 || !(await askKey(used))) throw error;
  }
}

async function send(path, body, signal) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body, whole), signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(0);
  }
}

/** Half of a surrogate pair, which a text field can hold and UTF-8 cannot, becomes U+FFFD. */
const whole = (_, value) => (typeof value === "string" && value.toWellFormed ? value.toWellFormed() : value);

async function read(answer) {
  const retry = Number(answer.headers.get("retry-after")) || null;
  const found = await answer.json().catch(() => ({}));
  return new ServerError(answer.status, found.error, retry);
}

// ------------------------------------------------------------------------------------------------- the key

const STORED = ["api-key", "sessionStorage"]; // the key is gone with the tab
let key = kept(...STORED);
let asking = null; // one question for all requests that want the key

/** true: there is another key than `failed` now. */
function askKey(failed) {
  if (key !== failed) return true;
  asking ??= new Promise((resolve) => openDialog(failed !== null, resolve)).finally(() => (asking = null));
  return asking;
}

function openDialog(wrong, resolve) {
  const dialog = $("key");
  const field = $("secret");
  field.value = "";
  show($("key-wrong"), wrong);
  show($("change-key"));
  dialog.returnValue = "";
  dialog.showModal();
  dialog.addEventListener("close", () => {
    const given = field.value.trim();
    field.value = "";
    if (dialog.returnValue !== "use" || !given) return resolve(false);
    key = given;
    keep(...STORED, key);
    return resolve(true);
  }, { once: true });
}

/** `onChange` is called when somebody has changed the key by themselves. */
export function startKey(onChange) {
  const dialog = $("key");
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault(); // nothing on this page is ever sent by a form
    dialog.close("use");
  });
  $("key-cancel").addEventListener("click", () => dialog.close());
  $("change-key").addEventListener("click", () => openDialog(false, (changed) => changed && onChange()));
  show($("change-key"), key !== null);
}
