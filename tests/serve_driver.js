// Runs the page's decoding, suppression and resizing on the cases that tests/test_serve_browser.py made; posts results.
import { nms } from "./nms.js";
import { toInput, toPixels } from "./pixels.js";
import { decode, suppress } from "./postprocess.js";
import { roundBounds } from "./frame.js";
import { verdict } from "./golden.js";

const cases = await (await fetch("cases.json")).json();

const kept = cases.nms.map(({ boxes, scores, classes, iou, kind, beta, max_det }) => {
  const numbers = (values) => Float64Array.from(values, Number); // JSON has no NaN: such values are texts
  return nms(numbers(boxes), numbers(scores), Int32Array.from(classes), iou, kind, beta, max_det);
});

const found = cases.decode.map(({ heads, detector, setting, size }) => {
  const arrays = heads.map(({ data, shape }) => ({ data: Float32Array.from(data), shape }));
  const candidates = decode(arrays, detector, setting.conf, size);
  return { candidates: candidates.scores.length, boxes: suppress(candidates, detector, setting, size) };
});

const pixels = cases.pixels.map(({ rgba, width, height, preprocess }) => {
  const image = { data: Uint8ClampedArray.from(rgba), width, height };
  const made = toPixels(image, preprocess);
  return { pixels: [...made], input: [...toInput(made, preprocess)] };
});

const verdicts = cases.verdicts.map(({ db, different, boxes, least, share }) => {
  return verdict([{ db: db.map(Number), different, boxes }], least, share).good;
});

const rounds = cases.rounds.map(({ frames, medians }) => roundBounds(frames, medians));

await fetch("report", { method: "POST", body: JSON.stringify({ kept, found, pixels, verdicts, rounds }) });
