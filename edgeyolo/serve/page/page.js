// The page: choices, one worker per measurement, and the way of its frames to the server.

import { deviceFacts } from "./device.js";
import { drawBoxes, drawPlot, fillTable } from "./show.js";

const TELL_MS = 1000;
const KEEPALIVE_CHARACTERS = 30000; // 64 KiB of uploads outlive a page, and two may be on their way
const element = (id) => document.getElementById(id);
const wanted = new URLSearchParams(location.search);

let facts;
let device;
let session;
let current = null; // the measurement that runs
let shown = 0;
let lost = false; // the server did not answer
const found = new Map(); // picture -> boxes

async function post(path, data) {
  const body = JSON.stringify(data);
  const response = await fetch(path, { method: "POST", body, keepalive: body.length < KEEPALIVE_CHARACTERS });
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

// Do it again after a cure where the server does not know any more what it is about: it forgets who is silent.
async function retried(act, cure) {
  try {
    return await act();
  } catch (error) {
    if (error.status !== 409) throw error;
    await cure();
    return act();
  }
}

async function join() {
  const answer = await post("open", {});
  session = answer.session;
  element("number").textContent = `page ${answer.number}`;
  others(answer);
}

// A new run on the server, with nothing in it yet.
async function begin({ model, backend, threads }) {
  const choice = { model, backend, threads, device: device.system, machine: device };
  const { run, ...rest } = await retried(() => post("start", { session, ...choice }), join);
  others(rest);
  return run;
}

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

function choices() {
  facts.models.forEach((model, i) => option("model", i, `${model.name} (${(model.bytes / 1e6).toPrecision(2)} MB)`));
  const backends = Object.keys(facts.backends).filter((name) => name === "wasm" || device.gpu);
  backends.forEach((name) => option("backend", name, name === "wasm" ? "CPU" : "WebGPU"));
  const most = device.isolated ? Math.min(device.cpus ?? 1, 16) : 1;
  for (let n = 1; n <= most; n++) option("threads", n);
  element("threads").value = Math.min(4, most);
  element("frames").value = facts.frames;
  for (const name of ["model", "backend", "threads", "frames"]) {
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
  const frames = Math.round(Number(element("frames").value));
  return {
    model: Number(value("model")),
    backend: value("backend"),
    threads: value("backend") === "wasm" ? Number(value("threads")) : 1,
    frames: Math.min(Math.max(frames || facts.frames, 1), 10000),
  };
}

async function start() {
  const chosen = order();
  element("start").disabled = true;
  for (const id of ["golden", "results", "pictures"]) element(id).hidden = true;
  found.clear();
  try {
    current = { run: await begin(chosen), order: chosen, frames: [], sent: 0, extra: {}, ended: false, there: false };
  } catch (error) {
    element("start").disabled = false;
    say(`Cannot start: ${error.message}`, true);
    return;
  }
  current.worker = new Worker("worker.js", { type: "module" });
  current.worker.onmessage = ({ data }) => heard[data.kind](data);
  current.worker.onerror = (event) => finish("failed", `the worker cannot run: ${event.message ?? "not loaded"}`);
  current.worker.postMessage({ order: chosen, facts });
  const mine = current;
  mine.wake = await navigator.wakeLock?.request("screen").catch(() => null);
  if (mine.ended) mine.wake?.release();
}

const heard = {
  stage: ({ text }) => say(`${text[0].toUpperCase()}${text.slice(1)} ...`),
  boxes({ picture, boxes }) {
    found.set(picture, boxes);
    if (picture === 0) show(0);
  },
  golden({ good, text, version, load_ms, first_ms }) {
    Object.assign(current.extra, { golden: text, version, load_ms, first_ms });
    element("golden").hidden = false;
    element("golden").className = `verdict ${good ? "good" : "bad"}`;
    element("golden").textContent = `${good ? "Results are right" : "Wrong results"}: ${text}.`;
    if (!good) finish("failed", `golden data: ${text}`);
  },
  frames({ rows }) {
    current.frames.push(...rows);
    const progress = element("progress");
    progress.hidden = false;
    progress.value = current.frames.length / current.order.frames;
    tables();
  },
  done: () => finish("ok"),
  failed: ({ text }) => finish("failed", text),
};

function tables() {
  if (!current.frames.length) return;
  element("results").hidden = false;
  fillTable(current.frames);
  drawPlot(element("plot"), current.frames.map((row) => row[4]));
  element("note").textContent =
    `pre: picture file to network input. Score > ${facts.setting.conf}, overlap <= ${facts.setting.iou}, at most ` +
    `${facts.setting.max_det} boxes. The clock of this browser has steps of ${device.clock_step_ms} ms.`;
}

async function show(picture) {
  shown = picture;
  element("pictures").hidden = false;
  const boxes = found.get(picture) ?? [];
  const names = facts.models[current.order.model].detector.names;
  await drawBoxes(element("picture"), `picture/${picture}`, boxes, names);
  const place = `${picture + 1} of ${facts.pictures.length}`;
  element("found").textContent = `${place}: ${boxes.length} boxes, found on this device`;
}

// Sends frames that the server does not have yet. What does not arrive is sent again with the next report; the server
// knows by the number of the first frame which of them it has. Where it has ended the run, because this device was
// silent for too long, all frames go into a new one.
async function report(end = {}) {
  const mine = current;
  const send = async () => {
    const { run, frames, sent: first, extra } = mine;
    const rows = frames.slice(first);
    const answer = await post("report", { run, first, frames: rows, ...extra, ...end });
    if (mine.run === run) mine.sent = first + rows.length;
    return answer;
  };
  const answer = await retried(send, async () => {
    if (mine.ended && !end.status) throw new Error("the last report came first, and has these frames too");
    Object.assign(mine, { run: await begin(mine.order), sent: 0 });
  });
  if (end.status) mine.there = true;
  else others(answer);
}

// The last report does not wait for one on its way: a page that is closed could not send it then.
async function finish(status, reason = null) {
  const mine = current;
  if (mine === null || mine.ended) return;
  mine.ended = true;
  mine.worker.terminate();
  mine.wake?.release();
  element("progress").hidden = true;
  if (status !== "ok") say(reason, status === "failed");
  await deliver(status, reason);
}

async function deliver(status, reason) {
  const again = () => deliver(status, reason);
  try {
    await report({ status, reason });
    const ends = { ok: "Done", failed: `Failed: ${reason}`, stopped: `Stopped: ${reason}` };
    const count = current.frames.length;
    const what = count ? `a record of ${count} frames` : "a record without frames";
    say(`${ends[status]}. The server has ${what}.`, status === "failed");
    element("start").textContent = "Measure again";
    element("start").onclick = start;
    document.documentElement.dataset.end = status;
  } catch (error) {
    say(`The result did not arrive: ${error.message}. It is still here.`, true);
    element("start").textContent = "Send again";
    element("start").onclick = again;
  }
  element("start").disabled = false;
}

// Once a second: the page is still there, and what it measured since.
async function beat() {
  try {
    if (current === null || current.ended) others(await retried(() => post("alive", { session }), join));
    else await report().catch(() => null);
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
  await join();
  notice();
  choices();
  element("start").onclick = start;
  element("next").onclick = () => show((shown + 1) % facts.pictures.length);
  addEventListener("pagehide", () => {
    finish("stopped", "the page was closed");
    // It must not overtake the last report; the server sees by itself who is gone.
    if (current === null || current.there) navigator.sendBeacon("leave", JSON.stringify({ session }));
  });
  addEventListener("visibilitychange", () => {
    if (document.hidden) finish("stopped", "the page went to the background, where browsers slow it down");
  });
  say("Ready.");
  setTimeout(beat, TELL_MS);
  if (wanted.has("auto")) await start();
}

main().catch((error) => say(`The page cannot start: ${error.message}`, true));
