#!/usr/bin/env node
// node classify.mjs MODEL IMAGE...      (JPEG and PNG, turned upright by their EXIF orientation)
//
// Prints one JSON line per image: path, label, index, score; or path and error, and goes on. The exit code is 0 when every
// image has a label, 1 when some have none, 2 for wrong use or a model that cannot be used. The same model and the same
// answers as in Python.

import { readRegular } from "./files.mjs";
import { decodeImage, ImageError, ModelError, openClassifier } from "./node.mjs";

const [path, ...images] = process.argv.slice(2);
if (!images.length) {
  console.error("usage: node classify.mjs MODEL IMAGE...");
  process.exit(2);
}

/** @param {string} image */
async function read(image) {
  try {
    return await readRegular(image);
  } catch (error) {
    const { code, message } = /** @type {NodeJS.ErrnoException} */ (error);
    throw new ImageError(`it cannot be opened: ${code ?? message}`);
  }
}

try {
  const classifier = await openClassifier(path);
  for (const image of images)
    try {
      const { label, index, score } = await classifier.classify(decodeImage(await read(image), classifier.metadata.preprocess));
      console.log(JSON.stringify({ path: image, label, index, score, error: null }));
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      console.log(JSON.stringify({ path: image, label: null, index: null, score: null, error: error.message }));
      process.exitCode = 1;
    }
  await classifier.release();
} catch (error) {
  if (!(error instanceof ModelError)) throw error;
  console.error(`${path}: ${error.message}`);
  process.exitCode = 2;
}
