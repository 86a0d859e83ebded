// The model runs here, so that the page stays responsive. Messages carry an id; each gets one answer with the same id.
//
// In: { id, open: Uint8Array | undefined }, undefined for the model beside the page; { id, image: Blob | ImageBitmap }.
// Out: { id, model }, { id, prediction }, or { id, error } with a message for people.

import * as runtime from "./ort/ort.wasm.min.mjs";
import { decodeImage, ImageError, ModelError, openClassifier, readBitmap } from "./vit-edge/web.mjs";

const MAX_THREADS = 4;
runtime.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
// Threads in WebAssembly need a page that is isolated (two headers, see docs/guides/browser.md).
runtime.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency) : 1;

/** @type {import("../../javascript/web.mjs").Classifier | null} */
let classifier = null;

/** @param {Uint8Array | undefined} given */
async function open(given) {
  const bytes = given ?? (await download("./model.onnx"));
  const next = await openClassifier(bytes, { runtime, top: 5 });
  const spec = next.metadata.preprocess;
  const black = { width: 1, height: 1, data: new Uint8Array([0, 0, 0, 255]) };
  await next.classify(black); // the first image as fast as the next
  await classifier?.release();
  classifier = next;
  const { labels, variant } = next.metadata;
  return { labels: labels.length, variant, size: spec.size, bytes: bytes.length, threads: runtime.env.wasm.numThreads };
}

/** @param {string} path */
async function download(path) {
  let answer;
  try {
    answer = await fetch(new URL(path, import.meta.url));
  } catch {
    throw new ModelError("the model could not be downloaded: there is no connection");
  }
  if (answer.status === 404) throw new ModelError("there is no model beside this page; open one (.onnx)");
  if (!answer.ok) throw new ModelError(`the model could not be downloaded (HTTP ${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** @param {Blob | ImageBitmap} image */
async function classify(image) {
  if (classifier === null) throw new ModelError("no model is open");
  const spec = classifier.metadata.preprocess;
  const began = performance.now();
  const pixels = image instanceof Blob ? await decodeImage(image, spec) : readBitmap(image, spec);
  const decode = performance.now() - began;
  const prediction = await classifier.classify(pixels);
  return { ...prediction, milliseconds: { decode, ...prediction.milliseconds } };
}

self.onmessage = async ({ data }) => {
  const { id } = data;
  try {
    if ("image" in data) self.postMessage({ id, prediction: await classify(data.image) });
    else self.postMessage({ id, model: await open(data.open) });
  } catch (error) {
    const expected = error instanceof ImageError || error instanceof ModelError;
    if (!expected) console.error(error);
    self.postMessage({ id, error: expected ? error.message : `something unexpected happened (${error})` });
  }
};
