// Tables, verdicts, the plot over time, and pictures with boxes.

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

const cell = (text) => Object.assign(document.createElement("td"), { textContent: text });

// Figures of one model's frames by stages.
export function fillStages(frames) {
  const rows = STAGES.map((stage, i) => {
    const figures = spread(frames.map((row) => row[i]));
    const row = document.createElement("tr");
    row.append(cell(stage), ...["p50", "p90", "p99", "mean", "min", "jitter"].map((key) => cell(figure(figures[key]))));
    if (stage === "total") {
      document.getElementById("ms").textContent = figure(figures.p50);
      document.getElementById("fps").textContent = (1000 / figures.mean).toFixed(1);
    }
    return row;
  });
  document.getElementById("stages").replaceChildren(...rows);
}

// The same model has the same colour in the table and in the plot; a single one has the page's.
const colour = (i) => `hsl(${(210 + i * 137.5) % 360} 70% 50%)`;

// A row a model. The ratio is to the first that has not failed: of medians while it runs, then what the server found.
export function fillModels(parts, each) {
  const totals = each.map((frames) => (frames.length ? spread(frames.map((row) => row[4])) : null));
  const first = parts.findIndex(({ outcome }, i) => !outcome.failed && totals[i]);
  const rows = parts.map(({ name, outcome, record }, i) => {
    const row = document.createElement("tr");
    const mark = Object.assign(document.createElement("span"), { className: "mark" });
    mark.style.background = colour(i);
    row.append(cell(name));
    row.firstChild.prepend(mark);
    if (outcome.failed) row.append(Object.assign(cell("failed"), { colSpan: 4, className: "bad" }));
    else if (!totals[i]) row.append(...["-", "-", "-", "-"].map(cell));
    else {
      const infer = spread(each[i].map((frame) => frame[1])).p50;
      row.append(...[totals[i].p50, totals[i].p90, infer].map((ms) => cell(figure(ms))));
      row.append(i === first ? cell("1") : ratio(record?.ratio, totals[i].p50 / totals[first].p50));
    }
    return row;
  });
  document.getElementById("compared").replaceChildren(...rows);
}

function ratio(found, now) {
  const shown = cell((found?.value ?? now).toFixed(2));
  const interval = found ? `[${found.low.toFixed(2)}, ${found.high.toFixed(2)}]` : "";
  shown.append(Object.assign(document.createElement("span"), { className: "interval small", textContent: interval }));
  return shown;
}

// What is known of each model's results, in red where they are wrong or there are none.
export function fillVerdicts(parts) {
  const known = parts.filter(({ outcome }) => outcome.golden || outcome.failed);
  const lines = known.map(({ name, outcome: { golden, failed } }) => {
    const wrong = failed?.startsWith("golden data");
    const text = wrong ? `Wrong results: ${golden}.` : failed ? `Failed: ${failed}.` : `Results are right: ${golden}.`;
    const line = Object.assign(document.createElement("p"), { className: `verdict ${failed ? "bad" : "good"}` });
    line.textContent = parts.length > 1 ? `${name}: ${text}` : text;
    return line;
  });
  const all = document.getElementById("verdicts");
  all.classList.toggle("several", parts.length > 1);
  all.replaceChildren(...lines);
}

// Totals of each model over its frames.
export function drawPlot(canvas, each) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const [left, top, bottom] = [76, 16, height - 16];
  const most = each.flat().reduce((a, b) => Math.max(a, b), 0);
  const last = Math.max(1, ...each.map((totals) => totals.length - 1));
  const x = (i) => left + ((width - left - 16) * i) / last;
  const y = (ms) => bottom - ((bottom - top) * ms) / Math.max(most, 1e-9);
  const color = getComputedStyle(canvas).color;
  context.clearRect(0, 0, width, height);
  Object.assign(context, { font: "22px system-ui", fillStyle: color, strokeStyle: color, textAlign: "right" });
  Object.assign(context, { globalAlpha: 0.3, lineWidth: 1 });
  context.beginPath();
  for (const ms of [0, most]) {
    context.moveTo(left, y(ms));
    context.lineTo(width - 16, y(ms));
  }
  context.stroke();
  Object.assign(context, { globalAlpha: 1, lineWidth: 2.5 });
  context.fillText(`${figure(most)}`, left - 8, top + 12);
  context.fillText("0 ms", left - 8, bottom + 4);
  each.forEach((totals, part) => {
    context.strokeStyle = each.length > 1 ? colour(part) : color;
    context.beginPath();
    totals.forEach((ms, i) => (i ? context.lineTo(x(i), y(ms)) : context.moveTo(x(i), y(ms))));
    if (totals.length === 1) context.arc(x(0), y(totals[0]), 3, 0, 7);
    context.stroke();
  });
}

// The same class has the same colour on every device.
const hue = (label) => (label * 137.5) % 360;

// A picture with boxes and, where there is one, a note in its corner.
export function drawPicture(canvas, bitmap, boxes, names, note = null) {
  const scale = Math.max(1, 800 / Math.max(bitmap.width, bitmap.height)); // so that labels of small pictures are sharp
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  const unit = Math.max(width, height) / 400;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, width, height);
  Object.assign(context, { lineWidth: 2 * unit, font: `${12 * unit}px system-ui`, textBaseline: "top" });
  const label = (text, left, top, colour) => {
    const size = context.measureText(text).width + 6 * unit;
    const beside = Math.max(0, Math.min(left, width - size));
    context.fillStyle = colour;
    context.fillRect(beside, top, size, 15 * unit);
    context.fillStyle = "white";
    context.fillText(text, beside + 3 * unit, top + 2 * unit);
  };
  for (const one of [...boxes].reverse()) {
    const [left, top, right, bottom] = one.box.map((value) => value * scale);
    const colour = `hsl(${hue(one.label)} 90% 35%)`;
    context.strokeStyle = colour;
    context.strokeRect(left, top, right - left, bottom - top);
    const text = `${names[one.label] ?? one.label} ${one.score.toFixed(2)}`;
    label(text, left, Math.max(0, top - 15 * unit), colour);
  }
  if (note) label(note, 0, height - 15 * unit, "#000a");
}
