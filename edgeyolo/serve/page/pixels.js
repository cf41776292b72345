// Picture to network input by the rules of edgeyolo/images.py: Darknet's bilinear resizing, rounded to 8 bit.

import { placement } from "./postprocess.js";

function taps(source, target) {
  const low = new Int32Array(target);
  const high = new Int32Array(target);
  const weight = new Float32Array(target);
  const step = target > 1 ? (source - 1) / (target - 1) : 0;
  for (let i = 0; i < target; i++) {
    const position = i === target - 1 && target > 1 ? source - 1 : i * step;
    low[i] = Math.floor(position);
    high[i] = Math.min(low[i] + 1, source - 1);
    weight[i] = position - low[i];
  }
  return { low, high, weight };
}

// (C * H * W) uint8 network pixels of an ImageData.
export function toPixels(image, preprocess) {
  const { data, width: sourceWidth, height: sourceHeight } = image;
  const { channels } = preprocess;
  const { left, top, width, height } = placement(preprocess, [sourceWidth, sourceHeight]);
  const plane = preprocess.width * preprocess.height;
  const pixels = new Uint8ClampedArray(channels * plane).fill(preprocess.fill);
  const x = taps(sourceWidth, width);
  const y = taps(sourceHeight, height);
  const sample =
    channels === 1
      ? (at) => (data[at] * 19595 + data[at + 1] * 38470 + data[at + 2] * 7471 + 0x8000) >> 16
      : (at, channel) => data[at + channel];
  for (let channel = 0; channel < channels; channel++) {
    for (let row = 0; row < height; row++) {
      const upper = y.low[row] * sourceWidth;
      const lower = y.high[row] * sourceWidth;
      let to = channel * plane + (top + row) * preprocess.width + left;
      for (let column = 0; column < width; column++, to++) {
        const [near, far, weight] = [x.low[column], x.high[column], x.weight[column]];
        const a = sample(4 * (upper + near), channel);
        const b = sample(4 * (lower + near), channel);
        const first = a + (sample(4 * (upper + far), channel) - a) * weight;
        const second = b + (sample(4 * (lower + far), channel) - b) * weight;
        pixels[to] = first + (second - first) * y.weight[row]; // a clamped array rounds half to even, as numpy does
      }
    }
  }
  return pixels;
}

// What the network reads: float32(pixel) * float32(scale), as ONNX Runtime got it for the golden data.
export function toInput(pixels, preprocess) {
  const scale = Math.fround(preprocess.scale);
  const input = new Float32Array(pixels.length);
  for (let i = 0; i < pixels.length; i++) input[i] = pixels[i] * scale;
  return input;
}
