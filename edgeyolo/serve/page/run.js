// One measurement: its worker, its camera, what is known of each model, and the way of all that to the server.

import { Camera } from "./camera.js";
import { Delivery } from "./server.js";

// Calls view.stage(text), view.changed() when something is new, view.live(frame) for every video frame, and
// view.ended({ status, reason, problem }) when it is over; problem says why the server may not have the result.
export class Run {
  // order: what the server is told of the run, and how many frames.
  constructor(order, facts, view) {
    Object.assign(this, { order, facts, view, frames: [], version: null, ended: false, delivery: null });
    this.givenUp = new AbortController();
    const models = order.models.map((number) => facts.models[number]);
    const folder = /^[^/]*\//.exec(models[0].name)?.[0] ?? "";
    const cut = models.every(({ name }) => name.startsWith(folder)) ? folder.length : 0;
    // Of each model its name, without the folder that all are in; boxes by picture; and what the server is told of it.
    this.parts = models.map((model) => ({ model, name: model.name.slice(cut), boxes: new Map(), outcome: {} }));
  }

  // Measure, unless finish is called meanwhile. Throws an Error where the server does not take the run.
  async begin(device, video) {
    const machine = { ...device };
    if (this.order.source === "camera" && !this.ended) {
      this.view.stage("Waiting for the camera ...");
      try {
        this.camera = await Camera.open(video, (text) => this.finish("stopped", text), this.givenUp.signal);
        machine.camera = this.camera.size;
        if (this.ended) this.camera.close();
      } catch (error) {
        this.finish("failed", error.message);
      }
    }
    const { frames, ...rest } = this.order;
    try {
      this.delivery = await Delivery.open({ ...rest, machine });
    } catch (error) {
      this.ended = true;
      this.camera?.close();
      throw error;
    }
    if (this.ended) this.deliver();
    else this.#measure();
  }

  async #measure() {
    this.worker = new Worker("worker.js", { type: "module" });
    this.worker.onmessage = ({ data }) => this.ended || this.#heard[data.kind](data);
    this.worker.onerror = (event) => this.finish("failed", `the worker cannot run: ${event.message ?? "not loaded"}`);
    this.worker.postMessage({ order: this.order, facts: this.facts });
    this.wake = await navigator.wakeLock?.request("screen").catch(() => null);
    if (this.ended) this.wake?.release();
  }

  #heard = {
    stage: ({ text }) => this.view.stage(`${text[0].toUpperCase()}${text.slice(1)} ...`),
    runtime: ({ version }) => Object.assign(this, { version }),
    boxes: ({ part, picture, boxes }) => {
      this.parts[part].boxes.set(picture, boxes);
      if (picture === 0) this.view.changed();
    },
    golden: ({ part, good, text, load_ms, first_ms }) => {
      const { outcome } = this.parts[part];
      Object.assign(outcome, { golden: text, load_ms, first_ms });
      if (!good) this.#fail(part, `golden data: ${text}`);
      this.view.changed();
    },
    failed: ({ part, text }) => this.#fail(part, text),
    wanted: async () => {
      const bitmap = await this.camera.next().catch((error) => this.finish("stopped", error.message));
      if (bitmap && !this.ended) this.worker.postMessage({ bitmap }, [bitmap]);
    },
    seen: ({ part, ...seen }) => {
      this.view.live({ ...seen, part: this.parts[part] });
      seen.bitmap.close();
    },
    frames: ({ rows }) => {
      this.frames.push(...rows);
      this.view.changed();
    },
    done: () => this.finish("ok"),
    broken: ({ text }) => this.finish("failed", text),
  };

  // A model is out. The others go on; where it was the last one, the run is over.
  #fail(part, text) {
    this.parts[part].outcome.failed ??= text;
    this.view.changed();
    if (this.parts.every(({ outcome }) => outcome.failed)) this.finish("failed", text);
  }

  // Frames of one of the models, as it measured them: [pre, infer, decode, nms, total, candidates, kept].
  framesOf(part) {
    return this.frames.filter((row) => row[0] === part).map((row) => row.slice(2));
  }

  get progress() {
    const alive = this.parts.filter(({ outcome }) => !outcome.failed).length;
    return this.frames.length / (this.order.frames * Math.max(1, alive));
  }

  // Tell the server what is new.
  report(end = {}) {
    const known = { outcomes: this.parts.map(({ outcome }) => outcome) };
    if (this.version) known.version = this.version;
    return this.delivery.report(this.frames, known, end);
  }

  // The last report does not wait for one on its way: a page that is closed could not send it then.
  finish(status, reason = null) {
    if (this.ended) return;
    Object.assign(this, { ended: true, end: { status, reason } });
    this.givenUp.abort();
    this.worker?.terminate();
    this.camera?.close();
    this.wake?.release();
    if (this.delivery) this.deliver(); // else begin does it
  }

  async deliver() {
    let problem = null;
    try {
      const { records } = await this.report(this.end);
      records.forEach((record, i) => Object.assign(this.parts[i], { record }));
    } catch (error) {
      problem = error.message;
    }
    this.view.ended({ ...this.end, problem });
  }
}
