#!/usr/bin/env node
// node classify.mjs MODEL IMAGE...      (JPEG and PNG, turned upright by their EXIF orientation)
// node classify.mjs MODEL --check       whether this machine computes it right: one JSON line; the exit code is 0 or 1
//
// Before the first image it answers two images of the self-test in the file, and says so in one line; a machine that fails
// is not used.
// Prints one JSON line per image: path, label, index, score (path, labels where an image has several); or path and error, and
// goes on. The exit code is 0 when every
// image has a label, 1 when some have none, 2 for wrong use or a model that cannot be used. The same model and the same
// answers as in Python.

import { readRegular } from "./files.mjs";
import { checkModel, decodeImage, ImageError, ModelError, openClassifier } from "./node.mjs";

const [path, ...images] = process.argv.slice(2);
if (!images.length) {
  console.error("usage: node classify.mjs MODEL IMAGE... | MODEL --check");
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

/** @param {string} image @param {import("./classifier.mjs").Classifier} classifier */
async function classify(image, classifier) {
  try {
    const { label, index, score, labels } = await classifier.classify(decodeImage(await read(image), classifier.metadata.preprocess));
    console.log(JSON.stringify({ path: image, ...(labels ? { labels } : { label, index, score }), error: null }));
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    const none = classifier.metadata.thresholds ? { labels: null } : { label: null, index: null, score: null };
    console.log(JSON.stringify({ path: image, ...none, error: error.message }));
    process.exitCode = 1;
  }
}

try {
  if (images.length === 1 && images[0] === "--check") {
    const check = await checkModel(path);
    console.log(JSON.stringify(check));
    process.exitCode = check.passed ? 0 : 1;
  } else {
    const classifier = await openClassifier(path);
    const { verdict, passed, fault } = await classifier.check({ images: 2 });
    if (!passed && fault !== "no self-test") throw new ModelError(`the self-test failed: ${verdict}`);
    console.error(`${path}: self-test on this machine: ${verdict}`);
    for (const image of images) await classify(image, classifier);
    await classifier.release();
  }
} catch (error) {
  if (!(error instanceof ModelError)) throw error;
  console.error(`${path}: ${error.message}`);
  process.exitCode = 2;
}
