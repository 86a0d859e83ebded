// The self-test that a model file carries: images by recipe, and what the exporting machine answered to them. Read from
// untrusted bytes, and compared with what a device answers: the table and the faults of runtime/self_test.

import { digitsOf } from "./digest.mjs";
import { ModelError } from "./errors.mjs";
import { makeImage, MOST_EDGE } from "./made_images.mjs";
import { preprocess } from "./preprocess.mjs";
import { isObject, listed } from "./spec.mjs";
import { parseJson } from "./strict_json.mjs";

/** @typedef {{file: Float32Array, float32: Float32Array}} Answers of this file and of the float32 file, [images, columns] */
/**
 * What this package uses of a self-test.
 * @typedef {object} SelfTest
 * @property {({made: number, size: [number, number]} | {jpeg: Uint8Array})[]} images before preprocessing
 * @property {string[]} pixels SHA-256 of the pixels after it, by image
 * @property {(Uint8Array | null)[]} means of 8 x 8 blocks of the pixels, RGB; of JPEG images only, which decoders read differently
 * @property {number[] | null} columns of the logits that are kept; null: all. Of an embedding the first ones are
 * @property {Record<string, Answers>} outputs by name: logits, embedding
 * @property {[number, string][][]} top by image: the best classes and their labels, best first
 */
/**
 * What a self-test found on a device; the names are those of `python -m vit_edge check --json`.
 * @typedef {object} DeviceCheck
 * @property {string} device
 * @property {string | null} variant of the model file; null where it was not opened
 * @property {boolean} passed
 * @property {Fault | null} fault the first that was found
 * @property {string} verdict one line
 * @property {number} images that were answered
 * @property {boolean | null} preprocessing_equal the pixels are those of the exporting machine
 * @property {number | null} labels_equal images whose best class is that of the exporting machine
 * @property {number | null} sqnr_file dB, against this file's own answers there; 200 for equal bits, -200 where one is not finite
 * @property {number | null} sqnr_float32 dB, against those of float32 there
 * @property {number | null} minimum dB, for `sqnr_file`
 * @property {number | null} latency_ms median of one image, the first left out
 */
/**
 * Of the faults that Python names, those that can be seen here: this API does not say where nodes ran, and in which kernels.
 * @typedef {typeof FAULTS[number]} Fault
 */

export const FAULTS = /** @type {const} */ ([
  "not opened", "no self-test", "labels", "preprocessing", "channels", "pixels cast to 0 and 1", "saturating kernels", "weights",
  "low precision", "wrong numbers",
]);
const MAX_BYTES = 200_000;
const MAX_IMAGES = 16;
const MAX_COLUMNS = 2000; // of an output
const BEST = 3; // classes of an image in `top`
const BLOCKS = 8; // means are of this many by as many
const FIELDS = ["columns", "cpu", "images", "kernels", "latency_ms", "means", "outputs", "pixels", "runtime", "top", "version"];

/**
 * Lowest SQNR in dB by what computes, as runtime/self_test/thresholds.py has it. Measured in wasm on a ViT-B: float32 120.7,
 * float16 69.8, INT8 35.7 dB, where its own rounding to INT8 leaves 29.7.
 */
export const MIN_SQNR = { "another CPU": 90, float32: 60, "16-bit floats": 30 };
const ROUNDING = 10; // dB: below it is another cause than few bits
const EQUAL = 200;
const EXPLAINS = 20; // dB between answers and those that a fault would give

/** @param {string} what @returns {never} */
const refuse = (what) => {
  throw new ModelError(`its self-test ${what}; export it again`);
};

/**
 * Read the JSON document of a self-test.
 * @param {string} text
 * @param {import("./metadata.mjs").Metadata} metadata of the same file
 * @returns {SelfTest}
 * @throws {ModelError} when it is not one of this file
 */
export function parseSelfTest(text, { labels, embedding }) {
  if (new TextEncoder().encode(text).length > MAX_BYTES) refuse(`has more than ${MAX_BYTES} bytes`);
  let document;
  try {
    document = parseJson(text);
  } catch (error) {
    refuse(`is not JSON (${/** @type {Error} */ (error).message})`);
  }
  if (!isObject(document)) return refuse("is not a JSON object");
  if (document.version !== 1) refuse(`must have version 1, found ${listed([JSON.stringify(document.version) ?? "none"])}`);
  const keys = Object.keys(document);
  const wrong = [...keys.filter((key) => !FIELDS.includes(key)), ...FIELDS.filter((key) => !keys.includes(key))];
  if (wrong.length) refuse(`has unknown fields, or lacks some: ${listed(wrong)}`);
  const { images, pixels, means, columns, outputs, top } = document;
  if (!Array.isArray(images) || !images.length || images.length > MAX_IMAGES) return refuse(`must have 1 to ${MAX_IMAGES} images`);
  for (const [name, rows] of Object.entries({ pixels, means, top }))
    if (!Array.isArray(rows) || rows.length !== images.length) refuse(`must have as many ${name} as images`);
  if (!pixels.every((/** @type {unknown} */ digest) => typeof digest === "string" && /^[0-9a-f]{64}$/.test(digest)))
    refuse("has pixels that are no SHA-256");
  const read = images.map((image, at) => readImage(image, means[at]));
  const features = Object.entries({ logits: labels.length, embedding: embedding ?? 0 }).filter(([, count]) => count);
  if (columns !== null && !isRising(columns, labels.length)) refuse("has columns that are no classes");
  if (!isObject(outputs) || Object.keys(outputs).sort().join() !== features.map(([name]) => name).sort().join())
    return refuse(`must have the outputs ${features.map(([name]) => name).join(", ")}`);
  const answers = Object.fromEntries(
    features.map(([name, count]) => [name, readAnswers(outputs[name], images.length, name === "logits" ? (columns?.length ?? count) : Math.min(count, MAX_COLUMNS))]),
  );
  const { kernels, cpu, latency_ms, runtime } = document; // of the exporting machine; not used here
  if (![kernels, cpu, latency_ms].every(isObject) || typeof runtime !== "string") refuse("says nothing of the exporting machine");
  if (!top.every((/** @type {unknown} */ best) => isTop(best, labels.length))) refuse("has best classes that are none");
  return { images: read.map(([image]) => image), pixels, means: read.map(([, mean]) => mean), columns, outputs: answers, top };
}

/** @param {unknown} image @param {unknown} mean @returns {[SelfTest["images"][number], Uint8Array | null]} */
function readImage(image, mean) {
  if (!isObject(image)) return refuse("has an image that is no JSON object");
  const names = Object.keys(image).sort().join();
  if (names === "jpeg") {
    const means = bytesOf(mean);
    return means.length === 3 * BLOCKS ** 2 ? [{ jpeg: bytesOf(image.jpeg) }, means] : refuse("has means of another size");
  }
  const { made, size } = image;
  const isWhole = (/** @type {unknown} */ value, /** @type {number} */ least, /** @type {number} */ most) =>
    Number.isInteger(value) && Number(value) >= least && Number(value) <= most;
  if (names !== "made,size" || mean !== null || !isWhole(made, 0, 2 ** 32 - 1)) return refuse("has an image of no known form");
  if (!Array.isArray(size) || size.length !== 2 || !size.every((edge) => isWhole(edge, 1, MOST_EDGE)))
    return refuse(`has an image whose edges are not 1 to ${MOST_EDGE}`);
  return [{ made, size: [size[0], size[1]] }, null];
}

/** @param {unknown} answers @param {number} images @param {number} columns @returns {Answers} */
function readAnswers(answers, images, columns) {
  if (!isObject(answers) || Object.keys(answers).sort().join() !== "file,float32") return refuse("has answers of no known form");
  const [file, float32] = [answers.file, answers.float32].map((each) => {
    const view = new DataView(bytesOf(each).buffer);
    if (columns > MAX_COLUMNS || view.byteLength !== 4 * images * columns) return refuse(`must have ${columns} answers of an output by image`);
    const values = Float32Array.from({ length: images * columns }, (_, at) => view.getFloat32(4 * at, true));
    return values.every(Number.isFinite) ? values : refuse("has answers that are not finite");
  });
  return { file, float32 };
}

/** @param {unknown} text base64 @returns {Uint8Array} */
function bytesOf(text) {
  if (typeof text !== "string" || text.length % 4 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return refuse("has bytes that are not base64");
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** @param {unknown} columns @param {number} size */
const isRising = (columns, size) =>
  Array.isArray(columns) && columns.length > 0 &&
  columns.every((each, at) => Number.isInteger(each) && each > (at ? columns[at - 1] : -1) && each < size);

/** @param {unknown} best @param {number} classes */
const isTop = (best, classes) =>
  Array.isArray(best) && best.length === Math.min(BEST, classes) &&
  best.every((pair) => Array.isArray(pair) && pair.length === 2 && Number.isInteger(pair[0]) && pair[0] >= 0 && pair[0] < classes && typeof pair[1] === "string");

/** @typedef {import("./classifier.mjs").Classifier} Classifier */
/**
 * How an image file is decoded here.
 * @typedef {(file: Uint8Array, spec: import("./spec.mjs").Spec) => import("./preprocess.mjs").Pixels | Promise<import("./preprocess.mjs").Pixels>} Decode
 */

/**
 * Let a device answer the images of a self-test, and compare.
 * @param {Classifier} model
 * @param {SelfTest} selfTest
 * @param {object} options
 * @param {number} [options.images]
 * @param {() => Promise<Classifier>} [options.openExact]
 * @param {Decode} [options.decode]
 * @returns {Promise<DeviceCheck>}
 */
export async function checkAnswers(model, selfTest, { images = Infinity, openExact, decode }) {
  const { variant, preprocess: spec } = model.metadata;
  const count = Math.min(images, selfTest.images.length);
  const pixels = [];
  for (const image of selfTest.images.slice(0, count)) {
    if ("jpeg" in image && !decode) throw new ModelError("its self-test has photos; open it with vit-edge/node or vit-edge/web");
    const decoded = "jpeg" in image ? await /** @type {Decode} */ (decode)(image.jpeg, spec) : withAlpha(makeImage(image.made, ...image.size), image.size);
    pixels.push(preprocess(decoded, spec));
  }
  const equal = [];
  for (const [at, each] of pixels.entries()) equal.push(await isSame(each, selfTest, at, spec.size));
  const milliseconds = [];
  const answers = [];
  for (const each of pixels) {
    const began = performance.now();
    answers.push(await model.run(each));
    milliseconds.push(performance.now() - began);
  }
  const sqnr = measure(selfTest, answers, "file");
  const minimum = minSqnr(model.device, variant, selfTest, count);
  const labels = answers.filter(({ logits }, at) => !logits || indexOfMax(logits) === selfTest.top[at][0][0]).length;
  const found =
    findFault(model, selfTest, equal) ?? (sqnr >= minimum && labels === count ? null : await explain(model, selfTest, pixels, sqnr, minimum, openExact));
  const [fault, words] = found ?? [null, `${labels} of ${count} labels equal, ${sqnr.toFixed(1)} dB (minimum: ${minimum.toFixed(1)} dB)`];
  return {
    device: model.device, variant, passed: fault === null, fault, verdict: fault === null ? `passed: ${words}` : `${fault}: ${words}`,
    images: count, preprocessing_equal: equal.every(Boolean), labels_equal: labels, sqnr_file: sqnr,
    sqnr_float32: measure(selfTest, answers, "float32"), minimum, latency_ms: median(count > 1 ? milliseconds.slice(1) : milliseconds), // the first pays for compilation
  };
}

/** The check of a device that answered nothing. @param {string} device @param {Fault} fault @param {string} words @returns {DeviceCheck} */
export const failedCheck = (device, fault, words) => ({
  device, variant: null, passed: false, fault, verdict: `${fault}: ${words}`, images: 0, preprocessing_equal: null,
  labels_equal: null, sqnr_file: null, sqnr_float32: null, minimum: null, latency_ms: null,
});

/** @param {Uint8Array} rgb @param {[number, number]} size @returns {import("./preprocess.mjs").Pixels} */
function withAlpha(rgb, [height, width]) {
  const data = new Uint8Array(4 * width * height).fill(255);
  for (let from = 0, to = 0; to < data.length; from += 3, to += 4) data.set(rgb.subarray(from, from + 3), to);
  return { width, height, data };
}

/** Whether pixels are those of the exporting machine; of a JPEG, whose decoder is another, means within two levels. @param {Uint8Array} pixels @param {SelfTest} selfTest @param {number} at @param {[number, number]} size */
async function isSame(pixels, { pixels: digests, means }, at, size) {
  if ((await digitsOf(pixels)) === digests[at]) return true;
  const expected = means[at];
  return expected !== null && blockMeans(pixels, size).every((mean, index) => Math.abs(mean - expected[index]) <= 2);
}

/** Means of 8 x 8 blocks, row by row; block i begins at i / 8 of an edge, and has a pixel at least. @param {Uint8Array} pixels @param {[number, number]} size */
function blockMeans(pixels, [height, width]) {
  /** @param {number} edge */
  const cut = (edge) => Array.from({ length: BLOCKS }, (_, at) => [Math.floor((at * edge) / BLOCKS), Math.floor(((at + 1) * edge) / BLOCKS)]);
  return cut(height).flatMap(([top, bottom]) => cut(width).flatMap(([left, right]) => {
    const sums = [0, 0, 0];
    const area = [Math.max(bottom, top + 1), Math.max(right, left + 1)];
    for (let y = top; y < area[0]; y++)
      for (let x = left; x < area[1]; x++) for (let channel = 0; channel < 3; channel++) sums[channel] += pixels[3 * (y * width + x) + channel];
    return sums.map((sum) => sum / ((area[0] - top) * (area[1] - left)));
  }));
}

/**
 * SQNR in dB of answers to the first images, the lowest of all outputs.
 * @param {SelfTest} selfTest @param {Record<string, Float32Array>[]} answers @param {"file" | "float32"} which
 */
function measure({ outputs, columns, images }, answers, which) {
  const every = Object.entries(outputs).map(([name, recorded]) => {
    const kept = recorded[which].length / images.length;
    const found = answers.flatMap((answer) =>
      name === "logits" && columns ? columns.map((column) => answer[name][column]) : [...answer[name].subarray(0, kept)],
    );
    return sqnr(recorded[which].subarray(0, kept * answers.length), found);
  });
  return Math.min(...every);
}

/** @param {ArrayLike<number>} expected @param {ArrayLike<number>} found in dB */
function sqnr(expected, found) {
  let [signal, noise] = [0, 0];
  for (let at = 0; at < expected.length; at++) {
    signal += expected[at] ** 2;
    noise += (expected[at] - found[at]) ** 2;
  }
  if (!Number.isFinite(noise)) return -EQUAL;
  return noise ? Math.min(EQUAL, 10 * Math.log10(Math.max(signal, 1e-30) / noise)) : EQUAL;
}

/** @param {string} device @param {string} variant @param {SelfTest} selfTest @param {number} count of images */
function minSqnr(device, variant, selfTest, count) {
  const least = MIN_SQNR[device !== "webgpu" ? "another CPU" : variant === "float16" ? "16-bit floats" : "float32"];
  if (variant === "float32") return least;
  if (variant === "float16") return Math.min(least, MIN_SQNR["16-bit floats"]); // a CPU may compute in float32 between layers
  const quantization = Object.values(selfTest.outputs).map(({ file, float32 }) => {
    const answered = (file.length / selfTest.images.length) * count;
    return sqnr(float32.subarray(0, answered), file.subarray(0, answered));
  });
  return Math.min(least, ...quantization);
}

/** @param {number[]} values */
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

/** @param {Float32Array} values */
const indexOfMax = (values) => values.reduce((best, value, at) => (value > values[best] ? at : best), 0);

/** The faults that no number is needed for. @param {Classifier} model @param {SelfTest} selfTest @param {boolean[]} equal @returns {[Fault, string] | null} */
function findFault({ metadata: { labels } }, { top }, equal) {
  for (const [index, label] of top.flat())
    if (labels[index] !== label)
      return ["labels", `class ${index} is ${listed([labels[index] ?? "without a label"])}, in the self-test ${listed([label])}: the labels are those of another file; export it again`];
  const other = equal.filter((each) => !each).length;
  return other ? ["preprocessing", `${other} of ${equal.length} images have other pixels than at the export; update this package, or export it again`] : null;
}

/**
 * Name the cause of answers that are too far away.
 * @param {Classifier} model @param {SelfTest} selfTest @param {Uint8Array[]} pixels @param {number} found dB @param {number} minimum dB
 * @param {(() => Promise<Classifier>) | undefined} openExact
 * @returns {Promise<[Fault, string]>}
 */
async function explain(model, selfTest, pixels, found, minimum, openExact) {
  const words = `${found.toFixed(1)} dB on ${model.device}, expected ${minimum.toFixed(1)} dB or more`;
  /** @param {Classifier} on @param {(pixels: Uint8Array) => Uint8Array} change */
  const ask = async (on, change) => {
    const answers = [];
    for (const each of pixels) answers.push(await on.run(change(each)));
    return answers;
  };
  const swap = (/** @type {Uint8Array} */ each) => each.map((_, at) => each[at - (at % 3) + 2 - (at % 3)]);
  const swapped = measure(selfTest, await ask(model, swap), "file");
  if (swapped >= Math.max(Math.min(EXPLAINS, minimum), found + 6)) return ["channels", `${words}; with red and blue swapped ${swapped.toFixed(1)} dB`];
  const [whole, clipped] = [await ask(model, (each) => each), await ask(model, (each) => each.map((value) => Math.min(value, 1)))];
  const names = Object.keys(selfTest.outputs);
  if (names.every((name) => whole.every((answer, at) => sqnr(answer[name], clipped[at][name]) > MIN_SQNR.float32)))
    return ["pixels cast to 0 and 1", `${words}; the same answers to pixels of 0 and 1`];
  const exact = model.device === "wasm" ? model : await openExact?.(); // WebAssembly does not saturate
  if (!exact) return [found >= ROUNDING ? "low precision" : "wrong numbers", words];
  const there = exact === model ? found : measure(selfTest, await ask(exact, (each) => each), "file");
  if (exact !== model) await exact.release();
  if (there < minSqnr(exact.device, model.metadata.variant, selfTest, pixels.length))
    return ["weights", `${words}; exact kernels of the CPU give ${there.toFixed(1)} dB: a weight has changed; export it again`];
  const right = `${words}; exact kernels of the CPU are right`;
  if (model.device === "cpu") return ["saturating kernels", right];
  return [found >= ROUNDING ? "low precision" : "wrong numbers", right];
}
