// The live page: asks for consent, sends what it was allowed to, and shows what comes back.
import { LiveSession } from "./cmt-live.js";
import { camera, microphone, recording } from "./capture.js";
import { Chart } from "./chart.js";

const BUDGET_MS = 128;
const MOST_TURNS = 50;
const $ = (id) => document.getElementById(id);

let session = null;
let sources = [];
const chart = new Chart($("chart"), $("legend"));

await introduce();
$("options").addEventListener("submit", (event) => {
  event.preventDefault();
  begin(new FormData(event.target)).catch((error) => stopped(`Couldn't begin: ${error.message}`));
});
$("words").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text) session?.sendText(text, session.now());
  $("text").value = "";
});
$("text").addEventListener("input", () => session?.sendText($("text").value, session.now(), false));
$("end-turn").addEventListener("click", () => session?.endTurn());
$("stop").addEventListener("click", () => (release(), session?.close()));

async function introduce() {
  const service = await (await fetch(new URL("v1/service", document.baseURI))).json();
  $("notice").textContent = service.notice || "Only words are read here: no face and no voice.";
  $("reason").textContent = `Context: ${service.context.replace("_", " ")}; ${service.reason}.`;
  for (const name of service.policies) $("options").elements.policy.add(new Option(name.replace("_", " "), name));
  for (const [field, modality] of [["camera", "image"], ["microphone", "audio"], ["file", "audio"]]) {
    if (!service.modalities.includes(modality)) {
      const input = $("options").elements[field];
      input.disabled = true;
      input.checked = false;
    }
  }
}

async function begin(chosen) {
  const live = (session = new LiveSession({ key: chosen.get("key"), policy: chosen.get("policy") || null }));
  const on = (type, show) => live.addEventListener(type, ({ detail }) => session === live && show(detail));
  on("turn.start", () => ($("speaking").textContent = "Listening …"));
  on("turn.result", (found) => (showTurn(found), showReading(found)));
  on("frame.result", showReading);
  on("quiet", showReading);
  on("turn.error", (found) => turnRow(found, "–", found.problem.detail, "failed"));
  on("frame.error", (found) => ($("devices").textContent = found.problem.detail));
  on("error", (found) => ($("connection").textContent = found.problem.detail));
  on("reconnecting", ({ pause }) => ($("connection").textContent = `Connection lost; again in ${pause} ms.`));
  on("session.created", ({ resumed }) => ($("connection").textContent = resumed ? "Connected again; it goes on." : "Connected."));
  on("closed", () => stopped("Ended."));
  await live.open();
  $("start").hidden = true;
  $("live").hidden = false;
  const told = [];
  const send = { pcm: (samples, at) => live.sendPcm(samples, at), jpeg: (bytes, at) => live.sendImage(bytes, at) };
  const file = chosen.get("file");
  if (file?.size) {
    const played = await recording(live, file, $("video"), send.pcm, send.jpeg);
    keep(live, played);
    played.ended.then(() => live.close());
    told.push(`Plays ${file.name}.`);
  } else {
    await opened("camera", live, chosen, told, () => camera(live, $("video"), send.jpeg));
    await opened("microphone", live, chosen, told, () => microphone(live, send.pcm));
  }
  if (current(live)) $("devices").textContent = told.join(" ");
}

/** A device that is missing or denied is said; the session goes on with the others. */
async function opened(name, live, chosen, told, open) {
  if (!chosen.get(name) || !current(live)) return;
  try {
    keep(live, await open());
    told.push(`The ${name} is on.`);
  } catch (error) {
    told.push(`No ${name} (${error.name === "NotAllowedError" ? "denied" : error.message}): it goes on without.`);
  }
}

function current(live) {
  return session === live && !live.closing;
}

/** A device may be granted when the session is over: it is let go at once. */
function keep(live, source) {
  if (current(live)) sources.push(source);
  else source.stop();
}

function release() {
  for (const source of sources) source.stop();
  sources = [];
}

function stopped(why) {
  release();
  const last = session;
  session = null;
  last?.close();
  $("connection").textContent = why;
  $("devices").textContent = $("speaking").textContent = "";
  $("start").hidden = false;
}

function showReading({ reading, decision, answer }) {
  const certain = reading.certainty ? ` (${Math.round(100 * reading.certainty)} %)` : "";
  const standing = { steady: `${reading.label}${certain}`, unsettled: "Unsettled", no_evidence: "No evidence" };
  $("state").textContent = standing[reading.standing];
  if (decision) {
    const action = Object.assign(document.createElement("strong"), { textContent: decision.action ?? decision.kind });
    $("decision").replaceChildren(action, decision.reason);
  }
  const weights = Object.entries(answer?.attention ?? {});
  $("attention").replaceChildren(...weights.flatMap(([name, share]) => weighed(name, share)));
  chart.add(reading.clock_s, reading.probabilities);
}

function weighed(name, share) {
  const term = Object.assign(document.createElement("dt"), { textContent: name });
  const meter = Object.assign(document.createElement("meter"), { value: share, max: 1 });
  meter.setAttribute("aria-label", `weight of ${name}`);
  const bar = document.createElement("dd");
  bar.append(meter);
  const number = Object.assign(document.createElement("dd"), { textContent: `${Math.round(100 * share)} %` });
  return [term, bar, number];
}

function showTurn(found) {
  $("speaking").textContent = "";
  const kind = found.latency_ms <= BUDGET_MS ? "within" : "over";
  const label = `${found.answer.label} (${Math.round(100 * found.answer.probability)} %)`;
  turnRow(found, label, `${found.latency_ms.toFixed(0)} ms`, kind);
}

function turnRow(found, label, last, kind) {
  const row = document.createElement("tr");
  const faces = 1 + (found.answer?.face?.others.length ?? 0);
  const image = faces > 1 ? `image (the most prominent of ${faces} faces)` : "image";
  const from = (found.answer?.modalities ?? []).map((name) => (name === "image" ? image : name)).join(", ");
  for (const text of [`${found.start_s.toFixed(1)} s`, `${found.end_s.toFixed(1)} s`, label, from, last]) {
    row.insertCell().textContent = text;
  }
  row.lastChild.className = kind;
  $("turns").prepend(row);
  while ($("turns").rows.length > MOST_TURNS) $("turns").deleteRow(-1);
}
