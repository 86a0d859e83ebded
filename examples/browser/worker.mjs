// The model runs here, so that the page stays responsive. Messages carry an id; each gets one answer with the same id.
//
// In: { id, open: Uint8Array | undefined, device, remembered }, see devices.mjs; { id, image: Blob | ImageBitmap }.
// Out: { id, model }, { id, prediction }, or { id, error } with a message for people.

import { openModel, THREADS } from "./devices.mjs";
import { decodeImage, DeviceError, ImageError, ModelError, readBitmap } from "./vit-edge/web.mjs";

/** @type {import("../../javascript/web.mjs").Classifier | null} */
let classifier = null;

async function open({ open: given, device, remembered }) {
  const next = await openModel(given, device, remembered);
  await classifier?.release();
  classifier = next.classifier;
  const { labels, variant } = classifier.metadata;
  const { why, remember, bytes } = next;
  return { labels: labels.length, variant, bytes: bytes.length, device: classifier.device, threads: THREADS, why, remember };
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
    else self.postMessage({ id, model: await open(data) });
  } catch (error) {
    const expected = [DeviceError, ImageError, ModelError].some((kind) => error instanceof kind);
    if (!expected) console.error(error);
    self.postMessage({ id, error: expected ? error.message : `something unexpected happened (${error})` });
  }
};
