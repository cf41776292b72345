// Compares this browser's results with what ONNX Runtime computed on the server's machine.

const SAME_IOU = 0.5; // as edgeyolo/agreement.py: boxes of one object

// Signal-to-noise ratio of a head in dB; Infinity where every bit is the same, NaN where a value is not a number.
export function decibels(wanted, got) {
  let signal = 0;
  let noise = 0;
  for (let i = 0; i < wanted.length; i++) {
    signal += wanted[i] * wanted[i];
    noise += (got[i] - wanted[i]) * (got[i] - wanted[i]);
  }
  return noise === 0 ? Infinity : 10 * Math.log10(signal / noise);
}

function overlap(a, b) {
  const w = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const h = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (w * h) / Math.max(area(a) + area(b) - w * h, 1e-9);
}

// Boxes that only one side has and that score above the threshold by more than the margin.
export function differences(wanted, got, conf, margin) {
  const free = new Set(wanted);
  const lone = [];
  for (const one of got) {
    let best = null;
    for (const other of free) {
      if (other.label !== one.label || overlap(other.box, one.box) < SAME_IOU) continue;
      if (best === null || overlap(other.box, one.box) > overlap(best.box, one.box)) best = other;
    }
    if (best === null) lone.push(one);
    else free.delete(best);
  }
  return [...lone, ...free].filter((one) => one.score > conf + margin).length;
}

// One verdict over all pictures: { good, text }. results: [{ db: [of every head], different, boxes: golden ones }];
// least: dB; share: of the boxes that may differ.
export function verdict(results, least, share) {
  const worst = Math.min(Infinity, ...results.flatMap((one) => one.db)); // NaN wherever one is
  const [different, boxes] = ["different", "boxes"].map((key) => results.reduce((sum, one) => sum + one[key], 0));
  const noise = worst === Infinity ? "heads are equal to the last bit" : `heads agree to ${worst.toFixed(1)} dB`;
  const found = different === 0 ? "same boxes" : `${different} of ${boxes} boxes differ`;
  return { good: worst >= least && different <= share * boxes, text: `${noise} (at least ${least} wanted), ${found}` };
}
