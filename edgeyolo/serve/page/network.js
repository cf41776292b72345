// Models in onnxruntime-web.

async function fetched(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: the server answered ${response.status}`);
  return response;
}

export const bytes = async (path) => (await fetched(path)).arrayBuffer();
export const file = async (path) => (await fetched(path)).blob();

// The runtime, whose files are all here when this is done. It compiles itself when it opens its first model.
export async function openRuntime(order, facts) {
  const ort = await import(`./runtime/ort.${order.backend}.min.mjs`);
  ort.env.wasm.wasmPaths = new URL("runtime/", self.location.href).href;
  ort.env.wasm.numThreads = order.threads;
  ort.env.logLevel = "error";
  const [, module, wasm] = facts.backends[order.backend];
  await import(`./runtime/${module}`);
  ort.env.wasm.wasmBinary = await bytes(`runtime/${wasm}`);
  return ort;
}

// A model of facts.models by its number; load_ms has no download in it.
export async function openNetwork(ort, backend, number, model) {
  const data = await bytes(`model/${number}`);
  const start = performance.now();
  const session = await ort.InferenceSession.create(data, { executionProviders: [backend] });
  return new Network(ort, session, model, performance.now() - start);
}

class Network {
  constructor(ort, session, model, loadMs) {
    Object.assign(this, { ort, session, model, loadMs });
  }

  tensor(input) {
    const { channels, height, width } = this.model.detector.preprocess;
    return new this.ort.Tensor("float32", input, [1, channels, height, width]);
  }

  // Heads without the batch axis; on a GPU this waits until they are here.
  async run(tensor) {
    const results = await this.session.run({ [this.session.inputNames[0]]: tensor }, this.model.outputs);
    const heads = [];
    for (const name of this.model.outputs) {
      heads.push({ data: await results[name].getData(), shape: results[name].dims.slice(1) });
    }
    return heads;
  }
}
