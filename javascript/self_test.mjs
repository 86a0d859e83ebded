// The self-test that a model file carries: images by recipe or as JPEG, and what the exporting machine answered to them. The
// document is described in docs/reference/model-file.md. It is untrusted: every field is checked. `check.mjs` uses it.

import { ModelError } from "./errors.mjs";
import { MOST_EDGE } from "./made_images.mjs";
import { readEntries } from "./metadata.mjs";
import { isObject, isWhole, listed } from "./spec.mjs";
import { parseObject } from "./strict_json.mjs";

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
 * @param {import("./metadata.mjs").Metadata} metadata of the same file
 * @returns {SelfTest}
 * @throws {ModelError} when it is not one of this file
 */
export function parseSelfTest(text, { labels, embedding }) {
  expect(new TextEncoder().encode(text).length <= MAX_BYTES, `has more than ${MAX_BYTES} bytes`);
  const document = parseObject(text, "self-test");
  expect(document.version === 1, `must have version 1, found ${listed([JSON.stringify(document.version) ?? "none"])}`);
  expect(keysOf(document) === FIELDS, `must have the fields ${FIELDS}, found ${listed([keysOf(document)])}`);
  const { images, pixels, means, columns, outputs, top, kernels, cpu, latency_ms, runtime } = document;
  expect(isList(images, 1, MAX_IMAGES), `must have 1 to ${MAX_IMAGES} images`);
  for (const [name, rows] of Object.entries({ pixels, means, top }))
    expect(isList(rows, images.length), `must have as many ${name} as images`);
  for (const each of pixels) expect(typeof each === "string" && /^[0-9a-f]{64}$/.test(each), "has pixels that are no SHA-256");
  for (const each of top) expect(isTop(each, labels.length), "has best classes that are none");
  expect(columns === null || isRising(columns, labels.length), "has columns that are no classes");
  const kept = columns?.length ?? labels.length;
  /** Fewest and most columns of each output of the model. */
  const widths = Object.entries({ embedding: [1, Math.min(embedding ?? 0, MAX_COLUMNS)], logits: [kept, kept] })
    .filter(([, [, most]]) => most);
  const names = widths.map(([name]) => name);
  expect(hasKeys(outputs, names.join(" ")), `must have the outputs ${names.join(", ")}`);
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

/** @param {object} document */
const keysOf = (document) => Object.keys(document).sort().join(" ");

/** @param {unknown} value @param {string} keys @returns {value is Record<string, any>} */
const hasKeys = (value, keys) => isObject(value) && keysOf(value) === keys;

/** @param {unknown} value @param {number} least @param {number} [most] entries @returns {value is any[]} */
const isList = (value, least, most = least) => Array.isArray(value) && isWhole(value.length, least, most);

/** @param {unknown} columns @param {number} classes */
const isRising = (columns, classes) =>
  isList(columns, 1, MAX_COLUMNS) && columns.every((each, at) => isWhole(each, at ? columns[at - 1] + 1 : 0, classes - 1));

/** @param {unknown} best @param {number} classes */
const isTop = (best, classes) =>
  isList(best, Math.min(BEST, classes)) &&
  best.every((pair) => isList(pair, 2) && isWhole(pair[0], 0, classes - 1) && typeof pair[1] === "string");

/** @param {unknown} image @returns {SelfTest["images"][number]} */
function readImage(image) {
  if (hasKeys(image, "jpeg")) return { jpeg: bytesOf(image.jpeg) };
  expect(hasKeys(image, "made size"), "has an image of no known form");
  const { made, size } = image;
  expect(isWhole(made, 0, 2 ** 32 - 1), "has an image without a seed");
  const isSize = isList(size, 2) && size.every((edge) => isWhole(edge, 1, MOST_EDGE));
  expect(isSize, `has an image whose edges are not 1 to ${MOST_EDGE}`);
  return { made, size: [size[0], size[1]] };
}

/** @param {unknown} means @param {object} image */
function readMeans(means, image) {
  const bytes = means === null ? null : bytesOf(means);
  expect("jpeg" in image ? bytes?.length === MEANS : bytes === null, "must have means of JPEGs, and of no other image");
  return bytes;
}

/**
 * The width comes from the length: the exporting machine keeps fewer columns of an embedding where 200 kB do not suffice.
 * @param {unknown} answers @param {number} images @param {number[]} width fewest and most columns @returns {Answers}
 */
function readAnswers(answers, images, [least, most]) {
  expect(hasKeys(answers, "file float32"), "has answers of no known form");
  const bytes = [answers.file, answers.float32].map(bytesOf);
  const [count, other] = bytes.map(({ length }) => length / 4);
  const expected = `${images} rows of ${least === most ? "" : `${least} to `}${most} answers`;
  expect(count === other && isWhole(count / images, least, most), `must have ${expected}, found ${count} answers`);
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
