// Status: what the server is doing, each second while somebody looks.
import { get } from "./api.js";
import { $, make, svg } from "./dom.js";
import { number, percent, say, t, unsay } from "./lang.js";

const EVERY = 1000; // ms
const SPAN = 120; // seconds of the graph
const [WIDE, HIGH] = [600, 120]; // of the graph, in its own units
const UNITS = [["time.days", 86400], ["time.hours", 3600], ["time.minutes", 60]];

let timer = 0;
let speeds = []; // tokens/s, the newest last
const parts = {};

export function startStatus() {
  parts.line = svg("path", { class: "line" });
  parts.area = svg("path", { class: "area" });
  parts.graph = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img" }, parts.area, parts.line);
  parts.speed = make("strong", { class: "big", text: "–" });
  parts.told = make("p", { class: "quiet", "aria-live": "polite" });
  parts.figures = make("dl", { class: "facts" });
  parts.models = make("div", { class: "engines" });
  parts.about = make("p", { class: "about why" });
  $("status").append(
    parts.told,
    make("div", { class: "speed" }, make("p", {}, parts.speed, " ", make("span", { say: ["status.speed"] })), parts.graph,
      make("p", { class: "why", say: ["status.span"] })),
    parts.figures, make("h3", { say: ["status.models"] }), parts.models, parts.about,
  );
  document.addEventListener("visibilitychange", showStatus);
}

/** Begin or end to look, as the tab is seen or not. */
export function showStatus() {
  clearTimeout(timer);
  if (!$("status").hidden && !document.hidden) look();
}

async function look() {
  clearTimeout(timer);
  const begun = performance.now();
  try {
    const found = await get("/v1/status");
    if (found.draining) say(parts.told, "status.draining");
    else unsay(parts.told);
    draw(found);
  } catch (error) {
    if (error.status) unsay(parts.told, error.plain());
    else say(parts.told, "status.lost");
    if (error.status === 401) return; // who declined to give a key is asked again when they come back to the tab
  }
  if (!$("status").hidden && !document.hidden) timer = setTimeout(look, Math.max(0, EVERY - (performance.now() - begun)));
}

function draw(found) {
  speeds = [...speeds, found.tokens_per_second].slice(-SPAN);
  say(parts.speed, "plain", { value: () => number(found.tokens_per_second, 0) });
  graph();
  const models = Object.values(found.models);
  const sum = (name) => models.reduce((total, one) => total + one[name], 0);
  const figures = [
    ["status.running", () => number(found.running)],
    ["status.waiting", () => number(found.waiting)],
    ["status.prefix", () => share(sum("prefix_tokens"), sum("prompt_tokens"))],
    ["status.drafts", () => share(sum("accepted_tokens"), sum("draft_tokens"))],
    ["status.made", () => number(sum("generation_tokens"))],
  ];
  parts.figures.replaceChildren(...figures.map(([key, value]) =>
    make("div", {}, make("dt", { say: [key] }), make("dd", { say: ["plain", { value }] }))));
  say(parts.about, "status.about", { version: found.version, time: () => duration(found.uptime) });
  parts.models.replaceChildren(...Object.entries(found.models).map(engine));
}

/** A model's name and the share of its cache that is in use. */
function engine([name, one]) {
  const meter = make("span", { class: "meter", "aria-hidden": "true" });
  meter.style.setProperty("--p", one.cache_usage);
  return make("p", {}, make("span", { class: "name", text: name }), meter,
    make("span", { class: "p", say: ["plain", { value: () => percent(one.cache_usage) }] }));
}

const share = (part, whole) => (whole ? percent(part / whole) : "–");

function duration(seconds) {
  const [key, size] = UNITS.find(([, one]) => seconds >= one) ?? ["time.seconds", 1];
  return t(key, { n: Math.floor(seconds / size) });
}

/** The newest at the right edge; the highest speed of the span touches the upper one. */
function graph() {
  const most = Math.max(1, ...speeds);
  const points = speeds.map((speed, i) => {
    const x = WIDE - (speeds.length - 1 - i) * (WIDE / (SPAN - 1));
    return `${x.toFixed(1)} ${(HIGH - 2 - (speed / most) * (HIGH - 6)).toFixed(1)}`;
  });
  const begin = points[0].split(" ")[0];
  parts.line.setAttribute("d", `M${points.join("L")}`);
  parts.area.setAttribute("d", `M${points.join("L")}L${WIDE} ${HIGH}L${begin} ${HIGH}Z`);
  parts.graph.setAttribute("aria-label", t("status.graph", { n: () => number(most, 0) }));
}
