// One measurement: its worker, its camera, what is known of each model, and the way of all that to the server.

import { Camera } from "./camera.js";
import { Delivery } from "./server.js";

// Calls view.stage(text), view.changed() when something is new, view.live(frame) for every video frame, and
// view.ended({ status, reason, problem }) when it is over; problem says why the server may not have the result.
export class Run {
  // order: what the server is told of the run, and how many frames. Throws an Error where the run cannot begin.
  static async start(order, facts, device, video, view) {
    const run = new Run(order, facts, view);
    let trouble = null;
    const machine = { ...device };
    if (order.source === "camera") {
      try {
        run.camera = await Camera.open(video, (text) => {
          if (run.delivery) run.finish("stopped", text);
          else trouble = text;
        });
        machine.camera = run.camera.size;
      } catch (error) {
        trouble = error.message;
      }
    }
    const { frames, ...rest } = order;
    try {
      run.delivery = await Delivery.open({ ...rest, machine });
    } catch (error) {
      run.camera?.close();
      throw error;
    }
    run.#go(trouble);
    return run;
  }

  constructor(order, facts, view) {
    Object.assign(this, { order, facts, view, frames: [], version: null, ended: false });
    const models = order.models.map((number) => facts.models[number]);
    const folder = /^[^/]*\//.exec(models[0].name)?.[0] ?? "";
    const cut = models.every(({ name }) => name.startsWith(folder)) ? folder.length : 0;
    // Of each model its name, without the folder that all are in; boxes by picture; and what the server is told of it.
    this.parts = models.map((model) => ({ model, name: model.name.slice(cut), boxes: new Map(), outcome: {} }));
  }

  async #go(trouble) {
    if (trouble) return this.finish("failed", trouble);
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
    if (this.ended) return undefined;
    this.ended = true;
    this.worker?.terminate();
    this.camera?.close();
    this.wake?.release();
    return this.deliver(status, reason);
  }

  async deliver(status, reason) {
    let problem = null;
    try {
      const { records } = await this.report({ status, reason });
      records.forEach((record, i) => Object.assign(this.parts[i], { record }));
    } catch (error) {
      problem = error.message;
    }
    this.view.ended({ status, reason, problem });
  }
}
