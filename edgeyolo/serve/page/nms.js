// Non-maximum suppression as edgeyolo/nms.py defines it, in the order of operations of targets/engine/nms.c: doubles
// without contraction, so that what stays is the same to the last bit.

const GREEDY_BETA = 0.6;
const LOG_TERMS = 10;
const EXP_TERMS = 13;
const ROOT_HALF = 0.7071067811865476;
const LOG_2 = 0.6931471805599453;
const LOWEST_LOG = -1000;
const LOWEST_SCORE = -Number.MAX_VALUE;

// a and b where neither is NaN; with NaN they are b, as in C. Math.min and Math.max would spread it.
const lower = (a, b) => (a < b ? a : b);
const higher = (a, b) => (a > b ? a : b);

// x**y for 0 < x <= 1 and y > 0 by series: Math.pow may differ in its last bit from browser to browser.
function power(x, y) {
  let whole = 0;
  for (; x < ROOT_HALF; x *= 2) whole -= 1;
  const s = (x - 1) / (x + 1);
  const z = s * s;
  let sum = 0;
  for (let k = LOG_TERMS; k >= 0; k--) sum = sum * z + 1 / (2 * k + 1);
  sum *= s;
  sum *= 2 / LOG_2;
  const log = higher(y * (whole + sum), LOWEST_LOG);
  const nearest = Math.trunc(log - 0.5);
  const t = (log - nearest) * LOG_2;
  let result = 1;
  for (let k = EXP_TERMS; k > 0; k--) result = result * (t / k) + 1;
  for (let n = nearest; n < 0; n++) result *= 0.5;
  return result;
}

// What (d / c)**exponent takes off the overlap of boxes at offsets a and b.
function penalty(boxes, a, b, exponent) {
  const x = boxes[a] + boxes[a + 2] - boxes[b] - boxes[b + 2];
  const y = boxes[a + 1] + boxes[a + 3] - boxes[b + 1] - boxes[b + 3];
  const w = higher(boxes[a + 2], boxes[b + 2]) - lower(boxes[a], boxes[b]);
  const h = higher(boxes[a + 3], boxes[b + 3]) - lower(boxes[a + 1], boxes[b + 1]);
  const ratio = lower((x * x + y * y) / 4 / (w * w + h * h), 1);
  return ratio > 0 ? power(ratio, exponent) : 0;
}

// Whether the box at offset b falls to the one at a. Comparisons with NaN are false, so that a NaN lets it stay.
function falls(boxes, a, b, iou, exponent) {
  const w = lower(boxes[a + 2], boxes[b + 2]) - higher(boxes[a], boxes[b]);
  const h = lower(boxes[a + 3], boxes[b + 3]) - higher(boxes[a + 1], boxes[b + 1]);
  if (!(w > 0 && h > 0)) return false;
  const common = w * h;
  const areaA = (boxes[a + 2] - boxes[a]) * (boxes[a + 3] - boxes[a + 1]);
  const areaB = (boxes[b + 2] - boxes[b]) * (boxes[b + 3] - boxes[b + 1]);
  const overlap = common / (areaA + areaB - common);
  return overlap > iou && (exponent === 0 || overlap - penalty(boxes, a, b, exponent) > iou);
}

// Put an item at a position of the heap or below it, so that no entry ranks before its parent.
function sift(heap, n, at, item, before) {
  while (2 * at + 1 < n) {
    let child = 2 * at + 1;
    if (child + 1 < n && before(heap[child + 1], heap[child])) child++;
    if (!before(heap[child], item)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = item;
}

// Indices of the boxes that stay, best first.
// boxes: Float64Array (4 n) of corners; scores: Float64Array (n); classes: Int32Array (n); kind: default, greedynms or
// diounms; beta: exponent of diounms.
export function nms(boxes, scores, classes, iou, kind, beta, maxDet) {
  let exponent = kind === "greedynms" ? GREEDY_BETA : kind === "diounms" ? beta : 0;
  if (exponent < 0 || (exponent === 0 && kind === "diounms")) {
    iou = 1; // a penalty of 1 or more: nothing falls
    exponent = 0;
  }
  const rank = scores.map((score) => (score >= LOWEST_SCORE ? score : LOWEST_SCORE));
  const before = (a, b) =>
    rank[a] !== rank[b] ? rank[a] > rank[b] : classes[a] !== classes[b] ? classes[a] < classes[b] : a < b;
  let n = scores.length;
  const heap = Uint32Array.from({ length: n }, (_, i) => i);
  for (let i = n >> 1; i > 0; i--) sift(heap, n, i - 1, heap[i - 1], before);
  const keep = [];
  const stayed = new Map(); // class -> indices
  while (n > 0 && keep.length < maxDet) {
    const best = heap[0];
    n--;
    sift(heap, n, 0, heap[n], before);
    const others = stayed.get(classes[best]) ?? [];
    if (others.some((other) => falls(boxes, 4 * other, 4 * best, iou, exponent))) continue;
    if (others.push(best) === 1) stayed.set(classes[best], others);
    keep.push(best);
  }
  return keep;
}
