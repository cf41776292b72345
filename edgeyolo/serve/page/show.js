// Tables, the plot over time, and pictures with boxes.

const STAGES = ["pre", "infer", "decode", "nms", "total"];

// As numpy: between neighbours.
function percentile(sorted, share) {
  const at = (sorted.length - 1) * share;
  const low = sorted[Math.floor(at)];
  return low + (sorted[Math.ceil(at)] - low) * (at - Math.floor(at));
}

function spread(values) {
  const sorted = Float64Array.from(values).sort();
  const [p50, p90, p99] = [0.5, 0.9, 0.99].map((share) => percentile(sorted, share));
  const mean = sorted.reduce((a, b) => a + b) / sorted.length;
  return { p50, p90, p99, mean, min: sorted[0], jitter: p99 - p50 };
}

const figure = (ms) => (ms < 10 ? ms.toFixed(2) : ms < 1000 ? ms.toFixed(1) : ms.toFixed(0));

export function fillTable(frames) {
  const rows = STAGES.map((stage, i) => {
    const figures = spread(frames.map((row) => row[i]));
    const row = document.createElement("tr");
    const texts = [stage, ...["p50", "p90", "p99", "mean", "min", "jitter"].map((key) => figure(figures[key]))];
    for (const text of texts) row.append(Object.assign(document.createElement("td"), { textContent: text }));
    if (stage === "total") {
      document.getElementById("ms").textContent = figure(figures.p50);
      document.getElementById("fps").textContent = (1000 / figures.mean).toFixed(1);
    }
    return row;
  });
  document.getElementById("rows").replaceChildren(...rows);
}

export function drawPlot(canvas, totals) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const [left, top, bottom] = [76, 16, height - 16];
  const most = Math.max(...totals);
  const x = (i) => left + ((width - left - 16) * i) / Math.max(1, totals.length - 1);
  const y = (ms) => bottom - ((bottom - top) * ms) / most;
  const color = getComputedStyle(canvas).color;
  context.clearRect(0, 0, width, height);
  Object.assign(context, { font: "22px system-ui", fillStyle: color, strokeStyle: color, textAlign: "right" });
  context.globalAlpha = 0.3;
  context.beginPath();
  for (const ms of [0, most]) {
    context.moveTo(left, y(ms));
    context.lineTo(width - 16, y(ms));
  }
  context.stroke();
  context.globalAlpha = 1;
  context.fillText(`${figure(most)}`, left - 8, top + 12);
  context.fillText("0 ms", left - 8, bottom + 4);
  context.lineWidth = 2.5;
  context.beginPath();
  totals.forEach((ms, i) => (i ? context.lineTo(x(i), y(ms)) : context.moveTo(x(i), y(ms))));
  if (totals.length === 1) context.arc(x(0), y(totals[0]), 3, 0, 7);
  context.stroke();
}

// The same class has the same colour on every device.
const hue = (label) => (label * 137.5) % 360;

export async function drawBoxes(canvas, path, boxes, names) {
  const bitmap = await createImageBitmap(await (await fetch(path)).blob());
  const scale = Math.max(1, 800 / Math.max(bitmap.width, bitmap.height)); // so that labels of small pictures are sharp
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  const unit = Math.max(width, height) / 400;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  Object.assign(context, { lineWidth: 2 * unit, font: `${12 * unit}px system-ui`, textBaseline: "top" });
  for (const { box, score, label } of [...boxes].reverse()) {
    const [left, top, right, bottom] = box.map((value) => value * scale);
    const text = `${names[label] ?? label} ${score.toFixed(2)}`;
    context.strokeStyle = context.fillStyle = `hsl(${hue(label)} 90% 35%)`;
    context.strokeRect(left, top, right - left, bottom - top);
    const size = context.measureText(text).width + 6 * unit;
    const [beside, above] = [Math.max(0, Math.min(left, width - size)), Math.max(0, top - 15 * unit)];
    context.fillRect(beside, above, size, 15 * unit);
    context.fillStyle = "white";
    context.fillText(text, beside + 3 * unit, above + 2 * unit);
  }
}
