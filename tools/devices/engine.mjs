// node engine.mjs PACKAGE MODEL PIXELS HEIGHT WIDTH EXACT: the logits of uint8 pixels [N, H, W, 3], as JSON.
//
// PACKAGE is onnxruntime-node (native code) or onnxruntime-web (wasm); it is looked for from the working folder.
// EXACT is 1 to ask for exact kernels on an x86 CPU without VNNI.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [name, model, pixels, height, width, exact] = process.argv.slice(2);
const find = createRequire(pathToFileURL(process.cwd() + "/"));
process.env.ORT_DISABLE_TELEMETRY ||= "1"; // before onnxruntime-node is loaded
const loaded = await import(pathToFileURL(find.resolve(name)));
const ort = loaded.InferenceSession ? loaded : loaded.default;
if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;
const extra = exact === "1" ? { session: { x64quantprecision: "1" } } : {};
const providers = name === "onnxruntime-web" ? ["wasm"] : ["cpu"];
const options = { executionProviders: providers, intraOpNumThreads: 1, extra };
const session = await ort.InferenceSession.create(await readFile(model), options);
const bytes = new Uint8Array(await readFile(pixels));
const size = height * width * 3;
const rows = [];
for (let at = 0; at < bytes.length; at += size) {
  const image = new ort.Tensor("uint8", bytes.subarray(at, at + size), [1, +height, +width, 3]);
  const { logits } = await session.run({ pixels: image });
  rows.push(Array.from(logits.data));
}
console.log(JSON.stringify(rows));
