// From raw heads to boxes, by the rules of edgeyolo/postprocess.py. A head is { data: Float32Array, shape: [C, H, W] }.

import { nms } from "./nms.js";

const MAX_LOG_SIZE = 16;
const GATE_MARGIN = 1e-3;
const OBJECTNESS = { yolo: 4, region: 4, gaussian_yolo: 8 };

const sigmoid = (x) => 1 / (1 + Math.exp(-Math.max(x, -700)));
const logit = (p) => Math.log(p) - Math.log1p(-p);

// Where the resized picture lies in the network's input: as in Darknet, sizes and offsets are rounded down.
export function placement(preprocess, [pictureWidth, pictureHeight]) {
  let { width, height } = preprocess;
  if (preprocess.resize === "stretch") return { left: 0, top: 0, width, height };
  if (width * pictureHeight < height * pictureWidth) {
    height = Math.max(1, Math.floor((pictureHeight * width) / pictureWidth));
  } else {
    width = Math.max(1, Math.floor((pictureWidth * height) / pictureHeight));
  }
  const left = Math.floor((preprocess.width - width) / 2);
  return { left, top: Math.floor((preprocess.height - height) / 2), width, height };
}

// All boxes above conf before suppression: { boxes: Float64Array (4 n) relative to the picture, scores, classes }.
export function decode(heads, detector, conf, size) {
  const found = { boxes: [], scores: [], classes: [] };
  if (heads.length === 2 && heads[0].shape.length === 2) gateDecoded(heads[0], heads[1], conf, found);
  else heads.forEach((head, i) => decodeHead(head, detector.heads[i], conf, found));
  const { left, top, width, height } = placement(detector.preprocess, size);
  const boxes = Float64Array.from(found.boxes, (value, i) => {
    const side = i % 2;
    return ((value - (side ? top : left)) * (size[side] / (side ? height : width))) / size[side];
  });
  return { boxes, scores: Float64Array.from(found.scores), classes: Int32Array.from(found.classes) };
}

// Of a graph that decodes by itself: boxes (n, 4) in network pixels and scores (n, classes).
function gateDecoded(boxes, scores, conf, found) {
  const [n, classes] = scores.shape;
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < classes; c++) {
      const score = scores.data[i * classes + c];
      if (score > conf) push(found, boxes.data.subarray(4 * i, 4 * i + 4), score, c);
    }
  }
}

function push(found, box, score, label) {
  found.boxes.push(box[0], box[1], box[2], box[3]);
  found.scores.push(score);
  found.classes.push(label);
}

function decodeHead(raw, head, conf, found) {
  const where = OBJECTNESS[head.kind];
  const entries = where + 1 + head.classes;
  const [, gridHeight, gridWidth] = raw.shape;
  const cells = gridHeight * gridWidth;
  const bound = (head.new_coords ? conf : logit(conf)) - GATE_MARGIN;
  head.anchors.forEach((anchor, a) => {
    const base = a * entries * cells;
    for (let cell = 0; cell < cells; cell++) {
      const at = base + cell;
      if (!(raw.data[at + where * cells] > bound)) continue;
      const value = (entry) => raw.data[at + entry * cells];
      const objectness = head.new_coords ? value(where) : sigmoid(value(where));
      let factor = objectness;
      if (head.kind === "gaussian_yolo") {
        const doubt = [1, 3, 5, 7].reduce((sum, entry) => sum + sigmoid(value(entry)), 0) / 4;
        factor = objectness * (1 - doubt);
      }
      if (!(objectness > conf && factor > conf)) continue;
      const box = boxOf(value, head, anchor, cell, gridWidth);
      if (!box.every(Number.isFinite)) continue;
      classScores(value, where + 1, factor, head, conf, (score, label) => push(found, box, score, label));
    }
  });
}

// Calls emit(score, class) for every class that lifts factor * probability above conf.
function classScores(value, first, factor, head, conf, emit) {
  if (head.softmax) {
    const raw = Array.from({ length: head.classes }, (_, c) => value(first + c));
    const most = raw.reduce((a, b) => Math.max(a, b));
    const powers = raw.map((x) => Math.exp(x - most));
    const total = powers.reduce((a, b) => a + b);
    powers.forEach((x, c) => factor * (x / total) > conf && emit(factor * (x / total), c));
    return;
  }
  const needed = conf / factor;
  const bound = (head.new_coords ? needed : logit(needed)) - GATE_MARGIN;
  for (let c = 0; c < head.classes; c++) {
    const raw = value(first + c);
    if (!(raw > bound)) continue;
    const score = factor * (head.new_coords ? raw : sigmoid(raw));
    if (score > conf) emit(score, c);
  }
}

// Corners in network pixels.
function boxOf(value, head, anchor, cell, gridWidth) {
  const step = head.kind === "gaussian_yolo" ? 2 : 1;
  const grid = [cell % gridWidth, Math.floor(cell / gridWidth)];
  const low = [];
  const high = [];
  for (let side = 0; side < 2; side++) {
    const raw = value(side * step);
    const size = value((2 + side) * step);
    let centre = head.scale_x_y * (head.new_coords ? raw : sigmoid(raw)) - 0.5 * (head.scale_x_y - 1);
    centre = (centre + grid[side]) * head.stride[side];
    const factor = head.new_coords ? 4 * size * size : Math.exp(Math.min(size, MAX_LOG_SIZE));
    const half = 0.5 * factor * anchor[side];
    low.push(centre - half);
    high.push(centre + half);
  }
  return [...low, ...high];
}

// Suppress what decode() found; boxes of the result are in pixels of the picture and clipped to it, best first.
export function suppress(found, detector, setting, size) {
  const { boxes, scores, classes } = found;
  const keep = nms(boxes, scores, classes, setting.iou, detector.nms_kind, detector.beta_nms, setting.max_det);
  return keep.map((i) => ({
    box: [0, 1, 2, 3].map((side) => Math.min(Math.max(boxes[4 * i + side] * size[side % 2], 0), size[side % 2])),
    score: scores[i],
    label: classes[i],
  }));
}
