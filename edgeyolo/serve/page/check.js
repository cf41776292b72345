// A model's results on the golden pictures against those of the server's machine.

import { differences, decibels, verdict } from "./golden.js";
import { bytes } from "./network.js";
import { toInput } from "./pixels.js";
import { decode, suppress } from "./postprocess.js";

// What the server's ONNX Runtime found in a picture, from the same pixels.
async function wantedOf(number, model, picture) {
  const path = `golden/${number}/${picture}`;
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

// { first_ms, good, text }; found(picture, boxes) is called with what this device finds in each picture.
export async function check(network, number, facts, found) {
  const { model } = network;
  const results = [];
  let first_ms = null;
  for (let picture = 0; picture < facts.pictures.length; picture++) {
    const wanted = await wantedOf(number, model, picture);
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
    found(picture, boxes);
  }
  return { first_ms, ...verdict(results, model.least_db, model.share) };
}
