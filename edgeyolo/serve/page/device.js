// What a browser tells of the device it runs on; much of it only where the context is secure.

import { within } from "./wait.js";

const HINT_MS = 3000; // some drivers never answer

// The smallest step of the clock in ms: stages that are shorter cannot be measured one by one.
function clockStep() {
  let least = Infinity;
  for (let i = 0; i < 5; i++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    least = Math.min(least, now - start);
  }
  return Math.round(least * 1000) / 1000;
}

async function gpu() {
  if (!navigator.gpu) return null;
  const adapter = await within(navigator.gpu.requestAdapter(), HINT_MS, "no answer").catch(() => null);
  const info = adapter?.info;
  return adapter && ([info?.vendor, info?.architecture, info?.description].filter(Boolean).join(" ") || "unnamed");
}

async function model() {
  const hints = await navigator.userAgentData?.getHighEntropyValues(["model", "platformVersion"]).catch(() => null);
  if (hints) return [navigator.userAgentData.platform, hints.platformVersion, hints.model].filter(Boolean).join(" ");
  const words = /\(([^)]*)\)/.exec(navigator.userAgent)?.[1] ?? "";
  return words.replace(/^Linux; /, "").split("; ").slice(0, 2).join(" ");
}

const short = (value) => String(value).slice(0, 300);

export async function deviceFacts() {
  const { width, height } = screen;
  const adapter = await gpu();
  return {
    system: short(await model()),
    browser: short(navigator.userAgent),
    cpus: navigator.hardwareConcurrency ?? null,
    memory_bytes: navigator.deviceMemory ? navigator.deviceMemory * 2 ** 30 : null,
    gpu: adapter && short(adapter),
    screen: `${width}x${height} at ${devicePixelRatio}`,
    secure_context: isSecureContext,
    isolated: Boolean(self.crossOriginIsolated),
    clock_step_ms: clockStep(),
  };
}
