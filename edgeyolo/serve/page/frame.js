// One measured frame, and how many of them make a round.

import { toInput, toPixels } from "./pixels.js";
import { decode, suppress } from "./postprocess.js";

// As in edgeyolo/bench/harness.py and stats.py:
const BLOCK_MS = 100; // of the fastest model in a round, and of warm-up
const LONGEST_MS = 2000; // of the slowest in a round, unless a single frame takes longer
const MIN_ROUNDS = 5; // fewer give no ratio
const WARMUP_MS = 10000;

const canvas = new OffscreenCanvas(1, 1);
const context = canvas.getContext("2d", { willReadFrequently: true });

function imageData(bitmap) {
  const { width, height } = bitmap;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, width, height);
}

const exact = (ms) => Math.round(ms * 1e4) / 1e4; // finer than any browser's clock, and short on its way

// { figures: [pre, infer, decode, nms, total, candidates, kept], boxes }. The picture is a file (Blob), or a video
// frame (ImageBitmap) that stays open: pre begins with it.
export async function frame(network, picture, setting) {
  const { detector } = network.model;
  const start = performance.now();
  const bitmap = picture instanceof Blob ? await createImageBitmap(picture) : picture;
  const image = imageData(bitmap);
  if (bitmap !== picture) bitmap.close();
  const tensor = network.tensor(toInput(toPixels(image, detector.preprocess), detector.preprocess));
  const ready = performance.now();
  const heads = await network.run(tensor);
  const inferred = performance.now();
  const size = [image.width, image.height];
  const found = decode(heads, detector, setting.conf, size);
  const decoded = performance.now();
  const boxes = suppress(found, detector, setting, size);
  const end = performance.now();
  const stages = [ready - start, inferred - ready, decoded - inferred, end - decoded, end - start].map(exact);
  return { figures: [...stages, found.scores.length, boxes.length], boxes };
}

// The medians of the last three blocks lie within 5 % of one another.
function settled(medians) {
  const last = medians.slice(-3);
  return last.length === 3 && Math.max(...last) <= 1.05 * Math.min(...last);
}

// Measure until times settle; next() gives the figures of a frame. Returns the last median total in ms.
export async function warmUp(next) {
  const medians = [];
  const end = performance.now() + WARMUP_MS;
  while (performance.now() < end && !settled(medians)) {
    const totals = [];
    const until = performance.now() + BLOCK_MS;
    do totals.push((await next())[4]);
    while (performance.now() < until);
    medians.push(totals.sort((a, b) => a - b)[totals.length >> 1]);
  }
  return medians.at(-1);
}

// Where each round begins and the last one ends: [0, 17, 34, 50] are three rounds of 50 frames. medians: of the models.
export function roundBounds(frames, medians) {
  const [fastest, slowest] = [Math.min(...medians), Math.max(...medians)];
  const block = Math.ceil(Math.min(BLOCK_MS / fastest, Math.max(1, LONGEST_MS / slowest)));
  const rounds = Math.max(Math.min(frames, MIN_ROUNDS), Math.floor(frames / block));
  return Array.from({ length: rounds + 1 }, (_, i) => Math.round((i * frames) / rounds));
}
