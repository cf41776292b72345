// What a promise gives, unless it takes longer than so many ms or an AbortSignal gives it up: then an Error with a text.
export function within(promise, ms, text, givenUp = null) {
  return new Promise((resolve, reject) => {
    const stop = () => reject(new Error(text));
    const timer = setTimeout(stop, ms);
    givenUp?.addEventListener("abort", stop);
    if (givenUp?.aborted) stop();
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
