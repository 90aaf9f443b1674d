// The status page: asks the gateway what it counts, every two seconds, and plots what that means.
import { Chart } from "./chart.js";
import { Readings } from "./figures.js";

const POLL_MS = 2000;
const PATIENCE_MS = 5000;
const WINDOW_S = 30;
const BUDGET_S = 0.128;
const MOMENT = ({ route }) => route === "/v1/emotion";
const $ = (id) => document.getElementById(id);

const readings = new Readings(WINDOW_S);
const clock = (time) => new Date(1000 * time).toLocaleTimeString();
const figure = (value) => Number(value.toPrecision(value < 1 ? 2 : 3)).toString();
const milliseconds = (seconds) => `${figure(1000 * seconds)} ms`;
const plots = {
  answered: plot("answered", figure),
  refused: plot("refused", figure),
  turns: plot("turns", milliseconds, BUDGET_S),
  requests: plot("requests", milliseconds),
};

let shownAt = null;
$("pause").addEventListener("click", ({ target }) => {
  target.setAttribute("aria-pressed", target.getAttribute("aria-pressed") !== "true");
});
for (;;) {
  if ($("pause").getAttribute("aria-pressed") === "false") await look();
  await new Promise((resolve) => setTimeout(resolve, POLL_MS));
}

function plot(id, format, mark = null) {
  const canvas = $(id);
  const options = { spanS: 300, most: null, told: true, mark, format, when: clock };
  return new Chart(canvas, canvas.nextElementSibling, options);
}

async function look() {
  let answers;
  try {
    answers = await Promise.all([asked("metrics"), asked("readyz")]);
  } catch {
    const last = shownAt ? ` The figures are of ${clock(shownAt)}.` : "";
    return tell("health", `The gateway can't be reached.${last}`, "failed");
  }
  const [counts, health] = answers;
  shownAt = Date.now() / 1000;
  show(shownAt, counts, JSON.parse(health));
}

async function asked(path) {
  const signal = AbortSignal.timeout(PATIENCE_MS);
  return (await fetch(new URL(path, document.baseURI), { cache: "no-store", signal })).text();
}

function show(now, counts, { status, release, digest }) {
  const goesOn = readings.add(counts, now);
  const ready = status === "ready";
  tell("health", ready ? "Ready." : `Not ready: ${status}.`, ready ? "within" : "failed");
  tell("triton", status === "draining" ? "not asked" : status, ready ? "within" : "failed");
  tell("release", release ? `${release} (${digest.slice(0, 8)})` : "–");
  tell("in-flight", readings.gauge("cmt_gateway_in_flight"));
  tell("sessions", readings.gauge("cmt_gateway_sessions"));
  tell("held", `${figure(readings.gauge("cmt_gateway_held_bytes") / 2 ** 20)} MiB`);
  tell("dropped", `${figure(readings.rate("cmt_gateway_dropped_frames_total"))} a second`);
  if (goesOn) draw(now);
}

function draw(now) {
  const requests = readings.rate("cmt_gateway_requests_total", ({ status }) => status === "200");
  plots.answered.add(now, { requests, turns: readings.rate("cmt_gateway_turn_seconds_count") });
  const codes = [...byCode("refusals", "refused"), ...byCode("faults", "failed")];
  plots.refused.add(now, codes.length ? Object.fromEntries(codes) : { "none yet": 0 });
  plots.turns.add(now, times("cmt_gateway_turn_seconds"));
  plots.requests.add(now, times("cmt_gateway_request_seconds", MOMENT));
  const slow = readings.quantile(0.95, "cmt_gateway_turn_seconds");
  if (slow === null) tell("budget", "");
  else if (slow <= BUDGET_S) tell("budget", "It is kept.", "within");
  else tell("budget", "It is exceeded.", "over");
}

/** By code, of the codes that were ever counted: [[name, a second]]. */
function byCode(what, said) {
  const rates = readings.rates(`cmt_gateway_${what}_total`, "code", (_, value) => value > 0);
  return [...rates].sort().map(([code, rate]) => [`${said}, ${code}`, rate]);
}

function times(histogram, wanted) {
  const within = (share) => readings.quantile(share, histogram, wanted);
  return { "half within": within(0.5), "95 % within": within(0.95) };
}

/** Only what has changed, so that nothing is read out twice. */
function tell(id, said, kind = "") {
  const element = $(id);
  if (element.textContent !== String(said)) element.textContent = said;
  element.className = kind;
}
