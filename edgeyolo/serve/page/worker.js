// Opens the models of one run, compares each with its golden data, then measures them in turns. A worker for one run:
// the number of threads cannot change later, and the page stays alive meanwhile.

import { check } from "./check.js";
import { frame, roundBounds, warmUp } from "./frame.js";
import { file, openNetwork, openRuntime } from "./network.js";

const TELL_MS = 250;

const tell = (kind, data, transfer = []) => postMessage({ kind, ...data }, transfer);

function sentence(error) {
  const text = String(error?.message ?? error).slice(0, 1000);
  return /bad_alloc|allocat|out of memory/i.test(text) ? `not enough memory: ${text}` : text;
}

let receive; // the next video frame
const videoFrame = () =>
  new Promise((resolve) => {
    receive = resolve;
    tell("wanted");
  });

// The memory of a model that is out is free for the others.
async function drop(part) {
  part.failed = true;
  await part.network?.session.release().catch(() => null);
}

// Do something with one model of the run; where that fails the model is out, and the others go on.
async function attempt(part, act) {
  try {
    await act();
  } catch (error) {
    tell("failed", { part: part.at, text: sentence(error) });
    await drop(part);
  }
}

async function load(ort, part, order, facts) {
  const number = order.models[part.at];
  const model = facts.models[number];
  const place = order.models.length > 1 ? ` (${part.at + 1} of ${order.models.length})` : "";
  tell("stage", { text: `loading ${model.name}${place}` });
  part.network = await openNetwork(ort, order.backend, number, model);
  tell("stage", { text: `comparing ${model.name} with golden data${place}` });
  const found = (picture, boxes) => tell("boxes", { part: part.at, picture, boxes });
  const result = await check(part.network, number, facts, found);
  tell("golden", { part: part.at, ...result, load_ms: part.network.loadMs });
  if (!result.good) await drop(part);
}

// Frames on their way to the page, a few at a time.
class Rows {
  rows = [];
  told = performance.now();

  add(row) {
    this.rows.push(row);
    if (performance.now() - this.told > TELL_MS) this.flush();
  }

  flush() {
    tell("frames", { rows: this.rows });
    Object.assign(this, { rows: [], told: performance.now() });
  }
}

// Every model measures the same pictures, one model after the other; who is first moves on with the number.
async function turn(parts, pictures, number, measured) {
  const alive = parts.filter((part) => !part.failed);
  const first = number % Math.max(1, alive.length);
  for (const part of [...alive.slice(first), ...alive.slice(0, first)]) {
    await attempt(part, async () => {
      for (const picture of pictures) measured(part, await frame(part.network, picture, part.setting));
    });
  }
}

// A video frame is seen by all models, then shown; of several the boxes are the first one's.
async function cameraTurn(parts, number, measured) {
  const bitmap = await videoFrame();
  const results = [];
  await turn(parts, [bitmap], number, (part, result) => {
    results[part.at] = result;
    measured(part, result);
  });
  const part = results.findIndex(Boolean);
  if (part >= 0) tell("seen", { part, bitmap, boxes: results[part].boxes, ms: results[part].figures[4] }, [bitmap]);
}

async function rounds(parts, order, files, medians) {
  const rows = new Rows();
  const bounds = roundBounds(order.frames, medians);
  for (let round = 0; round + 1 < bounds.length && parts.some((part) => !part.failed); round++) {
    const measured = (part, { figures }) => rows.add([part.at, round, ...figures]);
    const frames = Array.from({ length: bounds[round + 1] - bounds[round] }, (_, i) => bounds[round] + i);
    if (files) await turn(parts, frames.map((i) => files[i % files.length]), round, measured);
    else for (const i of frames) await cameraTurn(parts, i, measured);
  }
  rows.flush();
}

async function measure(order, facts) {
  tell("stage", { text: "loading the runtime" });
  const ort = await openRuntime(order, facts);
  tell("runtime", { version: ort.env.versions.web ?? ort.env.versions.common });
  const parts = order.models.map((_, at) => ({ at, setting: facts.setting, failed: false }));
  for (const part of parts) await attempt(part, () => load(ort, part, order, facts));
  const fetchAll = () => Promise.all(facts.pictures.map((_, i) => file(`picture/${i}`)));
  const files = order.source === "golden" ? await fetchAll() : null;
  tell("stage", { text: "warming up" });
  const medians = [];
  for (const part of parts.filter(({ failed }) => !failed)) {
    let count = 0;
    const next = async () => {
      const picture = files ? files[count++ % files.length] : await videoFrame();
      const { figures, boxes } = await frame(part.network, picture, facts.setting);
      if (!files) tell("seen", { part: part.at, bitmap: picture, boxes, ms: figures[4] }, [picture]);
      return figures;
    };
    await attempt(part, async () => medians.push(await warmUp(next)));
  }
  if (!medians.length) return;
  tell("stage", { text: "measuring" });
  await rounds(parts, order, files, medians);
}

self.onmessage = async ({ data }) => {
  if (data.bitmap) return receive(data.bitmap);
  try {
    await measure(data.order, data.facts);
    tell("done");
  } catch (error) {
    tell("broken", { text: sentence(error) });
  }
};
