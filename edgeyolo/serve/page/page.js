// The page: what can be chosen, and what is shown of a measurement.

import { cameraMissing } from "./camera.js";
import { deviceFacts } from "./device.js";
import { Run } from "./run.js";
import { alive, join, leave } from "./server.js";
import { drawPicture, drawPlot, fillModels, fillStages, fillVerdicts } from "./show.js";

const TELL_MS = 1000;
const MOST_FRAMES = 10000;
const NAME = "edgeyolo device"; // in the browser's memory
const element = (id) => document.getElementById(id);
const wanted = new URLSearchParams(location.search);

let facts;
let device;
let current = null; // the measurement that runs, or ran last
let shown = 0; // of the pictures of all models
let lost = false; // the server did not answer

function say(text, bad = false) {
  element("state").textContent = text;
  element("state").classList.toggle("bad", bad);
}

function others({ others, measuring }) {
  const note = element("others");
  note.hidden = others === 0;
  const pages = others === 1 ? "1 other page is open" : `${others} other pages are open`;
  note.textContent =
    `${pages}${measuring ? `, ${measuring} measuring now` : ""}. Each has records of its own. On one device, measure ` +
    "with one page at a time: two slow each other down.";
}

function notice() {
  if (device.isolated) return;
  element("notice").hidden = false;
  element("notice").textContent = device.secure_context
    ? "This browser does not isolate the page, so there is one thread only."
    : "This page came over plain http, so the browser allows one thread, no WebGPU, and a coarser clock. For all of " +
      "it, connect an Android phone by USB and run adb reverse, or start the server with --cert and --key.";
}

function option(select, value, text) {
  element(select).append(new Option(text ?? value, value));
}

// What the user called this device before; some browsers allow no memory.
function remembered() {
  try {
    return localStorage.getItem(NAME);
  } catch {
    return null;
  }
}

function remember() {
  try {
    localStorage.setItem(NAME, element("device").value);
  } catch {
    // It has to be typed again next time.
  }
}

function choices() {
  if (facts.models.length > 1) option("model", "all", `all ${facts.models.length}, in turns`);
  facts.models.forEach((model, i) => option("model", i, `${model.name} (${(model.bytes / 1e6).toPrecision(2)} MB)`));
  option("source", "golden", "golden pictures");
  const missing = cameraMissing();
  if (missing === null) option("source", "camera", "camera");
  element("sources").hidden = missing !== null;
  Object.assign(element("nocamera"), { hidden: missing === null, textContent: missing ?? "" });
  const backends = Object.keys(facts.backends).filter((name) => name === "wasm" || device.gpu);
  backends.forEach((name) => option("backend", name, name === "wasm" ? "CPU" : "WebGPU"));
  const most = device.isolated ? Math.min(device.cpus ?? 1, 16) : 1;
  for (let n = 1; n <= most; n++) option("threads", n);
  element("threads").value = Math.min(4, most);
  element("frames").value = facts.frames;
  element("device").value = remembered() ?? "";
  for (const name of ["model", "source", "backend", "threads", "frames", "device"]) {
    if (wanted.has(name)) element(name).value = wanted.get(name);
  }
  for (const [name, value] of Object.entries(device)) {
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name.replaceAll("_", " ");
    text.textContent = value ?? "not told";
    element("facts").append(term, text);
  }
}

// What was chosen, or the first choice where a parameter of the address names none.
function order() {
  const value = (id) => element(id).value || element(id).options[0].value;
  const models = value("model") === "all" ? facts.models.map((_, i) => i) : [Number(value("model"))];
  const wish = Math.round(Number(element("frames").value)) || facts.frames;
  const frames = Math.min(Math.max(wish, 1), MOST_FRAMES, Math.floor(facts.most_frames / models.length));
  element("frames").value = frames;
  return {
    models,
    source: value("source"),
    backend: value("backend"),
    threads: value("backend") === "wasm" ? Number(value("threads")) : 1,
    frames,
    system: device.system,
    device: element("device").value,
  };
}

function stopIfHidden() {
  if (document.hidden) current?.finish("stopped", "the page went to the background, where browsers slow it down");
}

function button(text, act) {
  Object.assign(element("start"), { disabled: act === null, textContent: text, onclick: act });
}

function stop() {
  button("Stopping ...", null);
  current.finish("stopped", "the user stopped it");
}

async function start() {
  for (const id of ["verdicts", "results", "pictures"]) element(id).hidden = true;
  remember();
  say("Starting ...");
  const chosen = order();
  element(chosen.source === "camera" ? "progress" : "results").after(element("pictures")); // what is live comes first
  current = new Run(chosen, facts, view);
  button("Stop", stop);
  stopIfHidden();
  try {
    await current.begin(device, element("video"));
  } catch (error) {
    button("Measure", start);
    say(`Cannot start: ${error.message}`, true);
  }
}

const view = {
  stage: (text) => say(text),

  changed() {
    const { order, parts, frames } = current;
    element("verdicts").hidden = false;
    fillVerdicts(parts);
    if (order.source === "golden" && element("pictures").hidden && viewable().length) show(0);
    if (!frames.length) return;
    const each = parts.map((_, i) => current.framesOf(i));
    const several = parts.length > 1;
    element("results").hidden = false;
    element("one").hidden = several;
    element("models").hidden = !several;
    if (several) fillModels(parts, each);
    else fillStages(each[0]);
    drawPlot(element("plot"), each.map((rows) => rows.map((row) => row[4])));
    Object.assign(element("progress"), { hidden: current.ended, value: current.progress });
    const begin = order.source === "camera" ? "video frame" : "picture file";
    element("note").textContent =
      `pre: ${begin} to network input. Score > ${facts.setting.conf}, overlap <= ${facts.setting.iou}, at most ` +
      `${facts.setting.max_det} boxes. The clock of this browser has steps of ${device.clock_step_ms} ms.`;
  },

  live({ part, bitmap, boxes, ms }) {
    element("pictures").hidden = false;
    element("next").hidden = true;
    drawPicture(element("picture"), bitmap, boxes, part.model.detector.names, `${ms.toFixed(1)} ms`);
    element("found").textContent = `${part.name}: ${boxes.length} boxes in this video frame`;
  },

  ended({ status, reason, problem }) {
    element("progress").hidden = true;
    if (problem !== null) {
      say(`The result did not arrive: ${problem}. It is still here.`, true);
      button("Send again", () => {
        button("Sending ...", null);
        current.deliver();
      });
      return;
    }
    view.changed();
    const failed = current.parts.filter(({ outcome }) => outcome.failed).length;
    const some = failed && failed < current.parts.length ? ` ${failed} of ${current.parts.length} models failed.` : "";
    const ends = { ok: "Done.", failed: `Failed: ${reason}.`, stopped: `Stopped: ${reason}.` };
    const counts = current.parts.map(({ record }) => record.frames);
    const records = counts.length === 1 ? "a record" : `${counts.length} records`;
    const frames = Math.max(...counts) ? `of ${[...new Set(counts)].join(", ")} frames` : "without frames";
    say(`${ends[status]}${some} The server has ${records} ${frames}.`, status === "failed" || failed > 0);
    button("Measure again", start);
    document.documentElement.dataset.end = status;
  },
};

// Golden pictures in which a model has looked for boxes: those of the next model follow the last picture of one.
const viewable = () =>
  current.parts.flatMap((part) => [...part.boxes].map(([picture, boxes]) => ({ part, picture, boxes })));

async function show(number) {
  shown = number;
  const { part, picture, boxes } = viewable()[number];
  element("pictures").hidden = false;
  element("next").hidden = false;
  const name = current.parts.length > 1 ? `${part.name}, ` : "";
  const place = `${name}${picture + 1} of ${facts.pictures.length}`;
  element("found").textContent = `${place}: ${boxes.length} boxes, found on this device`;
  const bitmap = await createImageBitmap(await (await fetch(`picture/${picture}`)).blob());
  drawPicture(element("picture"), bitmap, boxes, part.model.detector.names);
  bitmap.close();
}

// Once a second: the page is still there, and what it measured since.
async function beat() {
  try {
    const measuring = current?.delivery && !current.ended;
    const answer = measuring ? await current.report().catch(() => null) : await alive();
    if (answer) others(answer);
    if (lost && current === null) say("Ready.");
    lost = false;
  } catch {
    lost = true;
    if (current === null) say("The server does not answer. Is edgeyolo serve still running?", true);
  }
  setTimeout(beat, TELL_MS);
}

async function main() {
  [facts, device] = [await (await fetch("facts.json")).json(), await deviceFacts()];
  others(await join((number) => (element("number").textContent = `page ${number}`)));
  notice();
  choices();
  element("start").onclick = start;
  element("next").onclick = () => show((shown + 1) % viewable().length);
  addEventListener("pagehide", () => {
    current?.finish("stopped", "the page was closed");
    // It must not overtake the last report; the server sees by itself who is gone.
    if (!current?.delivery || current.delivery.arrived) leave();
  });
  addEventListener("visibilitychange", stopIfHidden);
  say("Ready.");
  setTimeout(beat, TELL_MS);
  if (wanted.has("auto")) await start();
}

main().catch((error) => say(`The page cannot start: ${error.message}`, true));
