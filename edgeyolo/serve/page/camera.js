// The camera of this device, which a browser gives to secure contexts only.

import { within } from "./wait.js";

const WANTED = { audio: false, video: { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 480 } } };
const SILENCE_MS = 5000; // without a picture, as when a call comes in
const ANSWER_MS = 60000; // of who is asked whether the page may use the camera
const seconds = (ms) => `${ms / 1000} s`;
const off = (stream) => stream.getTracks().forEach((track) => track.stop());
const REASONS = {
  NotAllowedError: "allow it for this page in the browser's settings, then measure again",
  NotFoundError: "there is none",
  NotReadableError: "another program may have it",
};

// Why there is no choice of a camera; null where there is one.
export function cameraMissing() {
  if (!isSecureContext) return "No camera: a browser gives one to pages that come over https or from localhost only.";
  const able = navigator.mediaDevices?.getUserMedia && "requestVideoFrameCallback" in HTMLVideoElement.prototype;
  return able ? null : "No camera: this browser does not give one to pages.";
}

export class Camera {
  // gone(text) is called once, when no more pictures come; givenUp: an AbortSignal. Throws an Error with one sentence.
  static async open(video, gone, givenUp) {
    const asked = navigator.mediaDevices.getUserMedia(WANTED);
    try {
      const stream = await within(asked, ANSWER_MS, `nobody allowed it for ${seconds(ANSWER_MS)}`, givenUp);
      video.srcObject = stream;
      await within(video.play(), SILENCE_MS, `it gave no picture for ${seconds(SILENCE_MS)}`, givenUp);
      return new Camera(video, stream, gone);
    } catch (error) {
      asked.then(off, () => null); // also a stream that comes later
      video.srcObject = null;
      throw new Error(`the camera cannot be used: ${REASONS[error.name] ?? error.message}`);
    }
  }

  constructor(video, stream, gone) {
    Object.assign(this, { video, stream, gone });
    for (const track of stream.getTracks()) track.onended = () => gone("the camera was taken away");
  }

  get size() {
    return `${this.video.videoWidth}x${this.video.videoHeight}`;
  }

  // The next picture that the camera takes.
  async next() {
    const late = setTimeout(() => this.gone(`the camera gave no picture for ${seconds(SILENCE_MS)}`), SILENCE_MS);
    await new Promise((resolve) => this.video.requestVideoFrameCallback(resolve));
    clearTimeout(late);
    return createImageBitmap(this.video);
  }

  close() {
    off(this.stream);
    this.video.srcObject = null;
  }
}
