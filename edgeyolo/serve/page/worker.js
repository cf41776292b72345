// Loads one model into onnxruntime-web, compares it with the golden data, then measures frames. A worker for one run:
// the number of threads cannot change later, and the page stays alive meanwhile.

import { differences, decibels, verdict } from "./golden.js";
import { toInput, toPixels } from "./pixels.js";
import { decode, suppress } from "./postprocess.js";

const BLOCK_MS = 100; // of warm-up, as in edgeyolo/bench/harness.py
const WARMUP_MS = 10000;
const TELL_MS = 250;

async function fetched(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: the server answered ${response.status}`);
  return response;
}

const bytes = async (path) => (await fetched(path)).arrayBuffer();
const tell = (kind, data) => postMessage({ kind, ...data });

async function open(order, facts) {
  const ort = await import(`./runtime/ort.${order.backend}.min.mjs`);
  ort.env.wasm.wasmPaths = new URL("runtime/", self.location.href).href;
  ort.env.wasm.numThreads = order.threads;
  ort.env.logLevel = "error";
  // All that comes over the network is here before the clock starts.
  const [, module, wasm] = facts.backends[order.backend];
  await import(`./runtime/${module}`);
  ort.env.wasm.wasmBinary = await bytes(`runtime/${wasm}`);
  const data = await bytes(`model/${order.model}`);
  const start = performance.now();
  const session = await ort.InferenceSession.create(data, { executionProviders: [order.backend] });
  return new Network(ort, session, facts.models[order.model], performance.now() - start);
}

class Network {
  constructor(ort, session, model, loadMs) {
    Object.assign(this, { ort, session, model, loadMs });
  }

  tensor(input) {
    const { channels, height, width } = this.model.detector.preprocess;
    return new this.ort.Tensor("float32", input, [1, channels, height, width]);
  }

  // Heads without the batch axis; on a GPU this waits until they are here.
  async run(tensor) {
    const results = await this.session.run({ [this.session.inputNames[0]]: tensor }, this.model.outputs);
    const heads = [];
    for (const name of this.model.outputs) {
      heads.push({ data: await results[name].getData(), shape: results[name].dims.slice(1) });
    }
    return heads;
  }
}

// What the server's ONNX Runtime found in a picture, from the same pixels.
async function golden(order, model, picture) {
  const path = `golden/${order.model}/${picture}`;
  const [pixels, buffer] = await Promise.all([bytes(`${path}/pixels`), bytes(`${path}/heads`)]);
  const facts = model.golden[picture];
  let offset = 0;
  const heads = facts.shapes.map((shape) => {
    const count = shape.reduce((a, b) => a * b, 1);
    offset += 4 * count;
    return new Float32Array(buffer, offset - 4 * count, count);
  });
  const boxes = facts.boxes.map((box, i) => ({ box, score: facts.scores[i], label: facts.classes[i] }));
  return { pixels: new Uint8Array(pixels), heads, boxes };
}

async function check(network, order, facts) {
  const { model } = network;
  const results = [];
  let first_ms = null;
  for (let picture = 0; picture < facts.pictures.length; picture++) {
    const wanted = await golden(order, model, picture);
    const tensor = network.tensor(toInput(wanted.pixels, model.detector.preprocess));
    const start = performance.now();
    const heads = await network.run(tensor);
    first_ms ??= performance.now() - start;
    const size = facts.pictures[picture];
    const candidates = decode(heads, model.detector, facts.setting.conf, size);
    const boxes = suppress(candidates, model.detector, facts.setting, size);
    results.push({
      db: heads.map((head, i) => decibels(wanted.heads[i], head.data)),
      different: differences(wanted.boxes, boxes, facts.setting.conf, model.margin),
      boxes: wanted.boxes.length,
    });
    tell("boxes", { picture, boxes });
  }
  return { first_ms, ...verdict(results, model.least_db, model.share) };
}

const canvas = new OffscreenCanvas(1, 1);
const context = canvas.getContext("2d", { willReadFrequently: true });

async function imageData(file) {
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

// One frame: [pre, infer, decode, nms, total, candidates, kept]; pre begins with the picture file.
async function frame(network, file, setting) {
  const { detector } = network.model;
  const start = performance.now();
  const image = await imageData(file);
  const tensor = network.tensor(toInput(toPixels(image, detector.preprocess), detector.preprocess));
  const ready = performance.now();
  const heads = await network.run(tensor);
  const inferred = performance.now();
  const size = [image.width, image.height];
  const found = decode(heads, detector, setting.conf, size);
  const decoded = performance.now();
  const kept = suppress(found, detector, setting, size);
  const end = performance.now();
  const stages = [ready - start, inferred - ready, decoded - inferred, end - decoded, end - start];
  return [...stages, found.scores.length, kept.length];
}

// As edgeyolo/bench/stats.py: the medians of the last three blocks lie within 5 % of one another.
function settled(medians) {
  const last = medians.slice(-3);
  return last.length === 3 && Math.max(...last) <= 1.05 * Math.min(...last);
}

async function warmUp(next) {
  const medians = [];
  const end = performance.now() + WARMUP_MS;
  while (performance.now() < end && !settled(medians)) {
    const totals = [];
    const until = performance.now() + BLOCK_MS;
    do totals.push((await next())[4]);
    while (performance.now() < until);
    medians.push(totals.sort((a, b) => a - b)[totals.length >> 1]);
  }
}

async function measure(order, facts) {
  tell("stage", { text: "loading the model" });
  const network = await open(order, facts);
  tell("stage", { text: "comparing with golden data" });
  const result = await check(network, order, facts);
  const { loadMs: load_ms, ort } = network;
  tell("golden", { ...result, version: ort.env.versions.web ?? ort.env.versions.common, load_ms });
  if (!result.good) return;
  const files = [];
  for (let i = 0; i < facts.pictures.length; i++) files.push(await (await fetched(`picture/${i}`)).blob());
  let count = 0;
  const next = () => frame(network, files[count++ % files.length], facts.setting);
  tell("stage", { text: "warming up" });
  await warmUp(next);
  tell("stage", { text: "measuring" });
  let rows = [];
  let told = performance.now();
  for (let i = 0; i < order.frames; i++) {
    rows.push(await next());
    if (performance.now() - told > TELL_MS) {
      tell("frames", { rows });
      rows = [];
      told = performance.now();
    }
  }
  tell("frames", { rows });
}

self.onmessage = async ({ data: { order, facts } }) => {
  try {
    await measure(order, facts);
    tell("done");
  } catch (error) {
    tell("failed", { text: String(error?.message ?? error).slice(0, 1000) });
  }
};
