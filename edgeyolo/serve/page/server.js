// The server: what is posted to it, and this page's session there.

const KEEPALIVE_CHARACTERS = 30000; // 64 KiB of uploads outlive a page, and two may be on their way
const MOST_ROWS = 5000; // of one report, far below the server's bound of an upload

let session;
let tellNumber; // shows the page's number: whoever is forgotten gets another one

export async function post(path, data) {
  const body = JSON.stringify(data);
  const response = await fetch(path, { method: "POST", body, keepalive: body.length < KEEPALIVE_CHARACTERS });
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

// Do it again after a cure where the server does not know any more what it is about: it forgets who is silent.
async function retried(act, cure) {
  try {
    return await act();
  } catch (error) {
    if (error.status !== 409) throw error;
    await cure();
    return act();
  }
}

// Become known to the server. Returns who else is there.
export async function join(tell = tellNumber) {
  const { session: key, number, ...others } = await post("open", {});
  [session, tellNumber] = [key, tell];
  tell(number);
  return others;
}

export const alive = () => retried(() => post("alive", { session }), () => join());
export const leave = () => navigator.sendBeacon("leave", JSON.stringify({ session }));

// A new run on the server, with nothing in it yet.
async function begin(order) {
  const { run } = await retried(() => post("start", { session, ...order }), () => join());
  return run;
}

// What one run sends. Frames that do not arrive are sent again with the next report; the server knows by the number of
// the first one which of them it has. Where it has ended the run, because this device was silent for too long, all
// frames go into a new one.
export class Delivery {
  static async open(order) {
    return new Delivery(order, await begin(order));
  }

  constructor(order, run) {
    Object.assign(this, { order, run, sent: 0, closing: false, arrived: false });
  }

  // The frames that the server does not have yet, and what else is known; an end of { status, reason } is the last.
  async report(frames, known, end = {}) {
    this.closing ||= Boolean(end.status);
    const answer = await retried(() => this.#send(frames, known, end), async () => {
      if (this.closing && !end.status) throw new Error("the last report came first, and has these frames too");
      Object.assign(this, { run: await begin(this.order), sent: 0 });
    });
    this.arrived ||= Boolean(end.status);
    return answer;
  }

  async #send(frames, known, end) {
    for (;;) {
      const { run, sent: first } = this;
      const rows = frames.slice(first, first + MOST_ROWS);
      const last = first + rows.length === frames.length;
      const answer = await post("report", { run, first, frames: rows, ...known, ...(last ? end : {}) });
      if (this.run === run) this.sent = first + rows.length;
      if (last) return answer;
    }
  }
}
