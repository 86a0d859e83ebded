// node classify.mjs MODEL IMAGE...      (npm install, first; JPEG without EXIF rotation, and PNG)
//
// Prints one JSON line an image: path, label, index, score. The same model and the same answers as in
// Python; with onnxruntime-web in place of onnxruntime-node it runs in a browser.

import { readFile } from "node:fs/promises";
import jpeg from "jpeg-js";
import * as ort from "onnxruntime-node";
import { PNG } from "pngjs";
import { readMetadata } from "./metadata.mjs";
import { preprocess } from "./preprocess.mjs";

const decode = (file) => (file[0] === 0x89 ? PNG.sync.read(file) : jpeg.decode(file, { useTArray: true }));

const [path, ...images] = process.argv.slice(2);
if (!images.length) {
  console.error("usage: node classify.mjs MODEL IMAGE...");
  process.exit(2);
}
const model = await readFile(path);
const metadata = readMetadata(model);
const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 1 });
for (const image of images) {
  const bytes = preprocess(decode(await readFile(image)), metadata.preprocess);
  const pixels = new ort.Tensor("uint8", bytes, [1, ...metadata.preprocess.size, 3]);
  const { logits } = await session.run({ pixels });
  const index = logits.data.indexOf(Math.max(...logits.data));
  const powers = logits.data.map((value) => Math.exp(value - logits.data[index]));
  const score = 1 / powers.reduce((a, b) => a + b, 0);
  console.log(JSON.stringify({ path: image, label: metadata.labels[index], index, score }));
}
