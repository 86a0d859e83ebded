// Whether a device computes a model file right: it answers the images of the file's self-test, and the answers are compared with
// those of the exporting machine. Thresholds and names of faults are those of runtime/self_test.

import { digitsOf } from "./digest.mjs";
import { ModelError } from "./errors.mjs";
import { makeImage } from "./made_images.mjs";
import { preprocess } from "./preprocess.mjs";
import { listed } from "./spec.mjs";

/**
 * What a self-test found on a device; the names are those of Python's `vit-edge check --json`.
 * @typedef {object} DeviceCheck
 * @property {string} device "cpu" (Node), "wasm" or "webgpu"
 * @property {string | null} variant of the model file; like all below null where no image was answered
 * @property {boolean} passed
 * @property {Fault | null} fault the first that was found
 * @property {string} verdict one line
 * @property {number} images that were answered
 * @property {boolean | null} preprocessing_equal the pixels are those of the exporting machine
 * @property {number | null} labels_equal images whose best class is that of the exporting machine
 * @property {number | null} sqnr_file dB against this file's own answers there; 200: the same bits, -200: one is not finite
 * @property {number | null} sqnr_float32 dB against those of float32 there
 * @property {number | null} minimum dB, for `sqnr_file`
 * @property {number | null} latency_ms median of one image, the first left out
 */
/** @typedef {typeof FAULTS[number]} Fault */
/** @typedef {import("./classifier.mjs").Classifier} Classifier */
/**
 * @typedef {object} Options
 * @property {number} [images] of the self-test that are answered, the first ones; all without it
 * @property {() => Promise<Classifier>} [openExact] opens the same file on a device that is known to be exact, to tell a fault of
 *   the file from one of the device
 */
/** @typedef {import("./self_test.mjs").SelfTest} SelfTest */
/** @typedef {import("./preprocess.mjs").Pixels} Pixels */
/** @typedef {Record<string, Float32Array>} Outputs of one image, by name */
/** @typedef {(file: Uint8Array, spec: import("./spec.mjs").Spec) => Pixels | Promise<Pixels>} Decode how a JPEG is decoded here */

/** Of the faults that Python names, those that can be seen here: this API does not say where nodes ran, and in which kernels. */
export const FAULTS = /** @type {const} */ ([
  "not opened", "no self-test", "labels", "preprocessing", "channels", "pixels cast to 0 and 1", "saturating kernels", "weights",
  "low precision", "wrong numbers",
]);
/**
 * Lowest SQNR in dB by what computes. Measured in wasm on a ViT-B: float32 120.7, float16 69.8, INT8 35.7 dB, where its own
 * rounding to INT8 leaves 29.7.
 */
export const MIN_SQNR = { "another CPU": 90, float32: 60, "16-bit floats": 25 };
const REDRAWN = 3; // dB below the noise of quantization, where that is drawn anew
const ROUNDING = 10; // dB: below it is another cause than few bits
const EQUAL = 200;
const EXPLAINS = 20; // dB between answers and those that a fault would give
const BLOCKS = 8; // the means of a JPEG are of this many by as many
const LEVELS = 2; // by which another decoder may change such a mean

/**
 * Let a device answer the images of a self-test, and compare.
 * @param {Classifier} model @param {SelfTest} selfTest @param {Options & {decode?: Decode}} options
 * @returns {Promise<DeviceCheck>}
 */
export async function checkAnswers(model, selfTest, { images = Infinity, openExact, decode }) {
  const { device, metadata: { variant, preprocess: spec } } = model;
  /** @type {Uint8Array[]} */
  const pixels = [];
  for (const image of selfTest.images.slice(0, images)) pixels.push(preprocess(await readImage(image, spec, decode), spec));
  const same = await Promise.all(pixels.map((each, at) => isSame(each, selfTest, at, spec.size)));
  const { answers, milliseconds } = await ask(model, pixels);
  const [found, minimum] = [measure(selfTest, answers, "file"), minSqnr(device, variant, selfTest)];
  const count = pixels.length;
  const best = answers.map(({ logits }) => logits.reduce((most, value, at) => (value > logits[most] ? at : most), 0));
  const labels = best.filter((index, at) => index === selfTest.top[at][0][0]).length;
  const words = `${labels} of ${count} labels equal, ${found.toFixed(1)} dB on ${device} (minimum: ${minimum.toFixed(1)} dB)`;
  const [fault, cause] =
    findFault(model, selfTest, same) ??
    (found >= minimum && labels === count ? [null] : await explain(model, selfTest, pixels, answers, openExact));
  const warm = milliseconds.slice(count > 1 ? 1 : 0).sort((a, b) => a - b); // the first pays for compilation
  return {
    device, variant, passed: fault === null, fault, verdict: `${fault ?? "passed"}: ${words}${cause ? `; ${cause}` : ""}`,
    images: count, preprocessing_equal: same.every(Boolean), labels_equal: labels, sqnr_file: found,
    sqnr_float32: measure(selfTest, answers, "float32"), minimum, latency_ms: warm[warm.length >> 1],
  };
}

/**
 * The check of a device that answered nothing.
 * @param {string} device @param {Fault} fault @param {string} words @returns {DeviceCheck}
 */
export const failedCheck = (device, fault, words) => ({
  device, variant: null, passed: false, fault, verdict: `${fault}: ${words}`, images: 0, preprocessing_equal: null,
  labels_equal: null, sqnr_file: null, sqnr_float32: null, minimum: null, latency_ms: null,
});

/** The answers to images, and the time of each. @param {Classifier} model @param {Uint8Array[]} pixels */
async function ask(model, pixels) {
  const [answers, milliseconds] = [/** @type {Outputs[]} */ ([]), /** @type {number[]} */ ([])];
  for (const each of pixels) {
    const began = performance.now();
    answers.push(await model.run(each));
    milliseconds.push(performance.now() - began);
  }
  return { answers, milliseconds };
}

/** @param {SelfTest["images"][number]} image @param {import("./spec.mjs").Spec} spec @param {Decode | undefined} decode */
async function readImage(image, spec, decode) {
  if ("jpeg" in image) {
    if (!decode) throw new ModelError("its self-test has photos; open it with vit-edge/node or vit-edge/web");
    return decode(image.jpeg, spec);
  }
  const [height, width] = image.size;
  const rgb = makeImage(image.made, height, width);
  const data = new Uint8Array(4 * width * height).map((_, at) => (at % 4 === 3 ? 255 : rgb[at - (at >> 2)]));
  return { width, height, data };
}

/**
 * Whether pixels are those of the exporting machine, or a JPEG's have the same means.
 * @param {Uint8Array} pixels @param {SelfTest} selfTest @param {number} at @param {[number, number]} size
 */
async function isSame(pixels, { pixels: digests, means }, at, size) {
  if ((await digitsOf(pixels)) === digests[at]) return true;
  const found = blockMeans(pixels, size);
  return means[at]?.every((mean, index) => Math.abs(mean - found[index]) <= LEVELS) ?? false;
}

/**
 * Means of blocks, row by row; block i begins at i / 8 of an edge, and has a pixel at least.
 * @param {Uint8Array} pixels @param {[number, number]} size
 */
function blockMeans(pixels, [height, width]) {
  return Array.from({ length: BLOCKS * BLOCKS * 3 }, (_, at) => {
    const [row, column, channel] = [Math.floor(at / 3 / BLOCKS), Math.floor(at / 3) % BLOCKS, at % 3];
    const [top, bottom, left, right] = [[row, height], [column, width]].flatMap(([block, edge]) => {
      const from = Math.floor((block * edge) / BLOCKS);
      return [from, Math.max(Math.floor(((block + 1) * edge) / BLOCKS), from + 1)];
    });
    let sum = 0;
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) sum += pixels[3 * (y * width + x) + channel];
    return sum / ((bottom - top) * (right - left));
  });
}

/**
 * SQNR in dB of answers to the first images, the lowest of all outputs.
 * @param {SelfTest} selfTest @param {Outputs[]} answers @param {"file" | "float32"} which
 */
function measure({ outputs, columns, images }, answers, which) {
  const every = Object.entries(outputs).map(([name, { [which]: recorded }]) => {
    const width = recorded.length / images.length;
    const found = answers.flatMap(({ [name]: row }) =>
      name === "logits" && columns ? columns.map((column) => row[column]) : [...row.subarray(0, width)],
    );
    return sqnr(recorded.subarray(0, found.length), found);
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

/**
 * The lowest SQNR that passes: a float that rounds differently in its last bit can end in another step of INT8.
 * @param {string} device @param {string} variant @param {Pick<SelfTest, "outputs">} selfTest
 */
export function minSqnr(device, variant, { outputs }) {
  const least = MIN_SQNR[device === "webgpu" ? "float32" : "another CPU"];
  if (variant === "float16") return MIN_SQNR["16-bit floats"]; // a CPU may compute in float32 between layers, or in 16 bits
  if (variant === "float32") return least;
  return Math.min(least, ...Object.values(outputs).map(({ file, float32 }) => sqnr(float32, file) - REDRAWN));
}

/**
 * The faults that no number is needed for.
 * @param {Classifier} model @param {SelfTest} selfTest @param {boolean[]} same @returns {[Fault, string] | null}
 */
function findFault({ metadata: { labels } }, { top }, same) {
  const wrong = top.flat().find(([index, label]) => labels[index] !== label);
  if (wrong) {
    const [here, there] = [labels[wrong[0]], wrong[1]].map((label) => listed([label]));
    return ["labels", `class ${wrong[0]} is ${here}, in the self-test ${there}: labels of another file; export it again`];
  }
  const other = same.filter((each) => !each).length;
  if (!other) return null;
  const words = `${other} of ${same.length} images have other pixels than at the export`;
  return ["preprocessing", `${words}; update this package, or export it again`];
}

/**
 * Name the cause of answers that are too far away.
 * @param {Classifier} model @param {SelfTest} selfTest @param {Uint8Array[]} pixels @param {Outputs[]} answers
 * @param {Options["openExact"]} openExact
 * @returns {Promise<[Fault, string?]>}
 */
async function explain(model, selfTest, pixels, answers, openExact) {
  const found = measure(selfTest, answers, "file");
  const reordered = pixels.map((image) => image.map((_, at) => image[at - (at % 3) + 2 - (at % 3)]));
  const swapped = measure(selfTest, (await ask(model, reordered)).answers, "file");
  if (swapped >= Math.max(EXPLAINS, found + 6)) return ["channels", `with red and blue swapped ${swapped.toFixed(1)} dB`];
  const clipped = await ask(model, pixels.map((image) => image.map((value) => Math.min(value, 1))));
  const isBlind = Object.keys(selfTest.outputs).every((name) =>
    answers.every((answer, at) => sqnr(answer[name], clipped.answers[at][name]) > MIN_SQNR.float32),
  );
  if (isBlind) return ["pixels cast to 0 and 1", "the same answers to pixels of 0 and 1"];
  const few = found >= ROUNDING ? "low precision" : "wrong numbers";
  const exact = model.device === "wasm" ? model : await openExact?.(); // WebAssembly does not saturate
  if (!exact) return [few];
  const there = exact === model ? found : measure(selfTest, (await ask(exact, pixels)).answers, "file");
  if (exact !== model) await exact.release();
  const words = `exact kernels of the CPU give ${there.toFixed(1)} dB`;
  if (there < minSqnr(exact.device, model.metadata.variant, selfTest))
    return ["weights", `${words}: a weight has changed; export it again`];
  return [model.device === "cpu" ? "saturating kernels" : few, words];
}
