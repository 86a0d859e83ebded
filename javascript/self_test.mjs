// The self-test that a model file carries: images by recipe or as JPEG, and what the exporting machine answered to them. The
// document is described in docs/reference/model-file.md. It is untrusted: every field is checked. `check.mjs` uses it.

import { ModelError } from "./errors.mjs";
import { MOST_EDGE } from "./made_images.mjs";
import { readEntries } from "./metadata.mjs";
import { isObject, listed } from "./spec.mjs";
import { parseJson } from "./strict_json.mjs";

/**
 * What this package uses of a self-test.
 * @typedef {object} SelfTest
 * @property {({made: number, size: [number, number]} | {jpeg: Uint8Array})[]} images before preprocessing
 * @property {string[]} pixels SHA-256 of the pixels after it, by image
 * @property {(Uint8Array | null)[]} means of 8 x 8 blocks of these pixels, RGB; of JPEGs only, which decoders read differently
 * @property {number[] | null} columns of the logits that are kept; null: all
 * @property {Record<string, Answers>} outputs by name: logits, embedding
 * @property {[number, string][][]} top by image: the best classes and their labels, best first
 */
/** @typedef {{file: Float32Array, float32: Float32Array}} Answers of this file and of the float32 file, [images, columns] */
/** @typedef {import("./metadata.mjs").Metadata} Metadata */

const MAX_BYTES = 200_000;
const MAX_IMAGES = 16;
const MAX_COLUMNS = 2000; // of an output
const MEANS = 8 * 8 * 3;
const BEST = 3; // classes of an image in `top`
const FIELDS = "columns cpu images kernels latency_ms means outputs pixels runtime top version";

/**
 * Read the self-test in a model file, without the file's digest.
 * @param {Uint8Array} model the bytes of an .onnx file
 * @returns {SelfTest | null} null where it carries none
 * @throws {ModelError} when the bytes are no model of vit-edge, or its self-test is none
 */
export function readSelfTest(model) {
  const { metadata, selfTest } = readEntries(model);
  return selfTest === undefined ? null : parseSelfTest(selfTest, metadata);
}

/**
 * Read the JSON document of a self-test.
 * @param {string} text
 * @param {Metadata} metadata of the same file
 * @returns {SelfTest}
 * @throws {ModelError} when it is not one of this file
 */
export function parseSelfTest(text, { labels, embedding }) {
  expect(new TextEncoder().encode(text).length <= MAX_BYTES, `has more than ${MAX_BYTES} bytes`);
  const document = parse(text);
  expect(isObject(document), "is not a JSON object");
  expect(document.version === 1, `must have version 1, found ${listed([JSON.stringify(document.version) ?? "none"])}`);
  expect(keysOf(document) === FIELDS, `must have the fields ${FIELDS}, found ${listed([keysOf(document)])}`);
  const { images, pixels, means, columns, outputs, top, kernels, cpu, latency_ms, runtime } = document;
  expect(Array.isArray(images) && isWhole(images.length, 1, MAX_IMAGES), `must have 1 to ${MAX_IMAGES} images`);
  for (const [name, rows] of Object.entries({ pixels, means, top }))
    expect(Array.isArray(rows) && rows.length === images.length, `must have as many ${name} as images`);
  for (const each of pixels) expect(typeof each === "string" && /^[0-9a-f]{64}$/.test(each), "has pixels that are no SHA-256");
  for (const each of top) expect(isTop(each, labels.length), "has best classes that are none");
  expect(columns === null || isRising(columns, labels.length), "has columns that are no classes");
  const kept = columns?.length ?? labels.length;
  /** Fewest and most columns of each output of the model. */
  const widths = Object.entries({ embedding: [1, Math.min(embedding ?? 0, MAX_COLUMNS)], logits: [kept, kept] }).filter(
    ([, [, most]]) => most,
  );
  const names = widths.map(([name]) => name);
  expect(isObject(outputs) && keysOf(outputs) === names.join(" "), `must have the outputs ${names.join(", ")}`);
  expect([kernels, cpu, latency_ms].every(isObject) && typeof runtime === "string", "says nothing of the exporting machine");
  return {
    images: images.map(readImage), pixels, columns, top,
    means: means.map((/** @type {unknown} */ each, /** @type {number} */ at) => readMeans(each, images[at])),
    outputs: Object.fromEntries(widths.map(([name, width]) => [name, readAnswers(outputs[name], images.length, width)])),
  };
}

/** @param {unknown} holds @param {string} what @returns {asserts holds} */
function expect(holds, what) {
  if (!holds) throw new ModelError(`its self-test ${what}; export it again`);
}

/** @param {string} text */
function parse(text) {
  try {
    return parseJson(text);
  } catch (error) {
    throw new ModelError(`its self-test is not JSON (${/** @type {Error} */ (error).message}); export it again`);
  }
}

/** @param {object} document */
const keysOf = (document) => Object.keys(document).sort().join(" ");

/** @param {unknown} value @param {number} least @param {number} most */
const isWhole = (value, least, most) => Number.isInteger(value) && Number(value) >= least && Number(value) <= most;

/** @param {unknown} image @returns {SelfTest["images"][number]} */
function readImage(image) {
  expect(isObject(image) && ["jpeg", "made size"].includes(keysOf(image)), "has an image of no known form");
  const { made, size, jpeg } = image;
  if (jpeg !== undefined) return { jpeg: bytesOf(jpeg) };
  expect(isWhole(made, 0, 2 ** 32 - 1), "has an image without a seed");
  const isSize = Array.isArray(size) && size.length === 2 && size.every((edge) => isWhole(edge, 1, MOST_EDGE));
  expect(isSize, `has an image whose edges are not 1 to ${MOST_EDGE}`);
  return { made, size: [size[0], size[1]] };
}

/** @param {unknown} means @param {object} image */
function readMeans(means, image) {
  const bytes = means === null ? null : bytesOf(means);
  expect("jpeg" in image ? bytes?.length === MEANS : bytes === null, "must have means of JPEGs, and of no other image");
  return bytes;
}

/** The width comes from the length: the exporting machine keeps fewer columns of an embedding where 200 kB do not suffice.
 * @param {unknown} answers @param {number} images @param {number[]} width fewest and most columns @returns {Answers} */
function readAnswers(answers, images, [least, most]) {
  expect(isObject(answers) && keysOf(answers) === "file float32", "has answers of no known form");
  const bytes = [answers.file, answers.float32].map(bytesOf);
  const [count, other] = bytes.map(({ length }) => length / 4);
  const isWide = count === other && isWhole(count / images, least, most);
  expect(isWide, `must have ${images} rows of ${[...new Set([least, most])].join(" to ")} answers, found ${count} answers`);
  const [file, float32] = bytes.map(({ buffer }) => {
    const view = new DataView(buffer);
    return Float32Array.from({ length: count }, (_, at) => view.getFloat32(4 * at, true));
  });
  expect([...file, ...float32].every(Number.isFinite), "has answers that are not finite");
  return { file, float32 };
}

/** @param {unknown} text */
function bytesOf(text) {
  const isBase64 = typeof text === "string" && text.length % 4 === 0 && /^[A-Za-z0-9+/]+={0,2}$/.test(text);
  expect(isBase64, "has bytes that are not base64");
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** @param {unknown} columns @param {number} size */
const isRising = (columns, size) =>
  Array.isArray(columns) && isWhole(columns.length, 1, MAX_COLUMNS) &&
  columns.every((each, at) => isWhole(each, at ? columns[at - 1] + 1 : 0, size - 1));

/** @param {unknown} best @param {number} classes */
const isTop = (best, classes) =>
  Array.isArray(best) && best.length === Math.min(BEST, classes) &&
  best.every((pair) => Array.isArray(pair) && pair.length === 2 && isWhole(pair[0], 0, classes - 1) && typeof pair[1] === "string");
