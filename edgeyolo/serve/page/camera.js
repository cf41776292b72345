// The camera of this device, which a browser gives to secure contexts only.

const WANTED = { audio: false, video: { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 480 } } };
const SILENCE_MS = 5000; // without a picture, as when a call comes in
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
  // gone(text) is called once, when no more pictures come. Throws an Error with one sentence.
  static async open(video, gone) {
    try {
      const stream = await navigator.mediaDevices.getUserMedia(WANTED);
      video.srcObject = stream;
      await video.play();
      return new Camera(video, stream, gone);
    } catch (error) {
      video.srcObject?.getTracks().forEach((track) => track.stop());
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
    const late = setTimeout(() => this.gone(`the camera gave no picture for ${SILENCE_MS / 1000} s`), SILENCE_MS);
    await new Promise((resolve) => this.video.requestVideoFrameCallback(resolve));
    clearTimeout(late);
    return createImageBitmap(this.video);
  }

  close() {
    for (const track of this.stream.getTracks()) track.stop();
    this.video.srcObject = null;
  }
}
