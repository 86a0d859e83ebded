// What a model expects of an image, as its metadata says it: checked, and turned into numbers.

import { ModelError } from "./errors.mjs";

/**
 * The field `preprocess` of the metadata.
 * @typedef {object} Spec
 * @property {[number, number]} size [height, width] that the model takes
 * @property {"stretch" | "crop"} resize straight to `size`, or cover it and cut out the center
 * @property {number | [number, number] | null} resize_to before the center is cut: the shorter edge ("crop" only), or
 *   [height, width] that is covered ("crop") or stretched to; null: `size`
 * @property {"nearest" | "box" | "bilinear" | "hamming" | "bicubic" | "lanczos"} interpolation
 * @property {boolean} exif turn the image the way its EXIF orientation says
 * @property {number} [white_level] the value of a 16-bit gray pixel that is white, 1 to 65534; absent: 65535
 * @property {"full" | "draft"} decode "draft": large JPEGs may be read at 1/2, 1/4 or 1/8
 */

const MAX_EDGE = 4096; // of the model's input: a file that asks for more is wrong or hostile
const DRAFT_FACTOR = 2; // a JPEG is never reduced below this many times the size that the resize needs
/** @type {Record<string, string[]>} */
const CHOICES = {
  resize: ["stretch", "crop"],
  interpolation: ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"],
  decode: ["full", "draft"],
};
const FIELDS = ["decode", "exif", "interpolation", "resize", "resize_to", "size"];
const OPTIONAL = ["white_level"];
export const WHITE_16 = 65535;

/** @param {unknown} value @returns {value is Record<string, any>} */
export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** Some names for a message, which may come from the file. @param {string[]} names */
export const listed = (names) => names.slice(0, 8).join(", ").replace(/[^\p{L}\p{N}\p{P}\p{S} ]/gu, "?").slice(0, 200);

/** @param {unknown} value @param {number} least @param {number} most @returns {value is number} */
export const isWhole = (value, least, most) => Number.isInteger(value) && Number(value) >= least && Number(value) <= most;

/** @param {unknown} value @returns {value is number} */
const isEdge = (value) => isWhole(value, 1, MAX_EDGE);

/**
 * Check a specification from outside.
 * @param {unknown} spec
 * @returns {Spec}
 * @throws {ModelError} when it describes no possible preprocessing
 */
export function checkSpec(spec) {
  if (!isObject(spec)) throw new ModelError("preprocess must be a JSON object");
  const keys = Object.keys(spec);
  const unknown = keys.filter((key) => !FIELDS.includes(key) && !OPTIONAL.includes(key));
  if (unknown.length) throw new ModelError(`unknown preprocessing ${listed(unknown)}; known: ${[...FIELDS, ...OPTIONAL].join(", ")}`);
  const missing = FIELDS.filter((field) => !keys.includes(field));
  if (missing.length) throw new ModelError(`preprocessing lacks ${missing.join(", ")}`);
  const { size, resize, resize_to, exif } = spec;
  if (!Array.isArray(size) || size.length !== 2 || !size.every(isEdge))
    throw new ModelError(`size must be [height, width], each 1 to ${MAX_EDGE}`);
  for (const [name, choices] of Object.entries(CHOICES))
    if (!choices.includes(spec[name])) throw new ModelError(`${name} must be one of ${choices.join(", ")}`);
  if (typeof exif !== "boolean") throw new ModelError("exif must be true or false");
  const { white_level = WHITE_16 } = spec;
  if (!Number.isInteger(white_level) || white_level < 1 || white_level > WHITE_16)
    throw new ModelError(`white_level must be 1 to ${WHITE_16}`);
  if (Array.isArray(resize_to)) {
    if (resize_to.length !== 2 || !resize_to.every((edge, axis) => isEdge(edge) && edge >= size[axis]))
      throw new ModelError(`resize_to must be [height, width], at least ${size.join(", ")}`);
    return /** @type {Spec} */ (/** @type {unknown} */ (spec));
  }
  if (resize_to !== null && resize !== "crop") throw new ModelError('resize_to has a meaning for resize="crop" only');
  if (resize_to !== null && !(isEdge(resize_to) && resize_to >= Math.max(...size)))
    throw new ModelError(`resize_to must be ${Math.max(...size)} to ${MAX_EDGE}`);
  return /** @type {Spec} */ (/** @type {unknown} */ (spec));
}

/**
 * The part of an image that the model sees: left, top, right, bottom in pixels.
 * @param {number} width of the image
 * @param {number} height
 * @param {Spec} spec
 * @returns {[number, number, number, number]}
 */
export function boxOf(width, height, { size: [rows, columns], resize, resize_to }) {
  if (resize === "stretch" && !Array.isArray(resize_to)) return [0, 0, width, height];
  const short = Math.min(width, height);
  const [down, across] = Array.isArray(resize_to) ? resize_to : [rows, columns];
  const cover = Math.max(across / width, down / height);
  let scaled = [Math.max(across, even(width * cover)), Math.max(down, even(height * cover))];
  if (resize === "stretch") scaled = [across, down];
  else if (typeof resize_to === "number")
    scaled = [Math.trunc((resize_to * width) / short), Math.trunc((resize_to * height) / short)];
  const [left, top] = [even((scaled[0] - columns) / 2), even((scaled[1] - rows) / 2)];
  const [x, y] = [width / scaled[0], height / scaled[1]];
  return [left * x, top * y, Math.min((left + columns) * x, width), Math.min((top + rows) * y, height)];
}

/**
 * By how much a JPEG may be reduced before it is resized: 1, 2, 4 or 8.
 * @param {number} width of the image
 * @param {number} height
 * @param {Spec} spec
 */
export function reduction(width, height, { decode, size, resize_to }) {
  if (decode !== "draft") return 1;
  const edge = DRAFT_FACTOR * Math.max(...size, ...(Array.isArray(resize_to) ? resize_to : [resize_to ?? 0]));
  const most = Math.min(Math.floor(width / edge), Math.floor(height / edge));
  return most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

/** Rounds halves to even, as Python does. @param {number} value at least 0 */
function even(value) {
  const rounded = Math.round(value);
  return value % 1 === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
