// From the pixels of an image to the pixels that the model takes: byte for byte what runtime/images/preprocess.py gives.
// Filters are as wide as the image shrinks, which an HTML canvas does NOT do. Columns first, 8 bits, then rows.

import { ImageError } from "./errors.mjs";
import { boxOf, checkSpec, reduction } from "./spec.mjs";

/**
 * An image in memory: RGBA, row by row, upright, not premultiplied. ImageData is one.
 * @typedef {{width: number, height: number, data: Uint8Array | Uint8ClampedArray}} Pixels
 */
/** @typedef {{first: Int32Array, count: Int32Array, taps: Int32Array, stride: number}} Pass */

export const MAX_PIXELS = 89_478_485; // as in Python
export const DEEP_COLOR =
  "it has 16 bits per color; the model's white_level is for gray images; convert it to gray, or to 8 bits";
const LARGE = 2 ** 24; // pixels: what is smaller is resized whatever the limit
const BITS = 22; // of a weight, below the point
const HALF = 1 << (BITS - 1);

/**
 * Bits per channel of a PNG, and whether it is in color: its header says so. 8 bits for any other file.
 * @param {Uint8Array} file its first 32 bytes at least
 */
export function pngDepth(file) {
  const isPng = file.length > 25 && file[0] === 0x89 && file[1] === 0x50;
  return { bits: isPng ? file[24] : 8, color: isPng && (file[25] & 2) !== 0 };
}

/** @param {number} x */
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
/** @param {number} x */
const cubic = (x) => {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0;
};
/** Half the width of each filter, and the filter. @type {Record<string, [number, (x: number) => number]>} */
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/**
 * Turn an image into what the model takes.
 * @param {Pixels} image
 * @param {import("./spec.mjs").Spec} spec the `preprocess` of the model's metadata
 * @returns {Uint8Array} height * width * 3 bytes, RGB
 * @throws {ImageError} when there are no such pixels, or resizing them takes more memory than MAX_PIXELS
 * @throws {import("./errors.mjs").ModelError} when `spec` describes no possible preprocessing
 */
export function preprocess(image, spec) {
  const { size, interpolation } = checkSpec(spec);
  const { width, height } = checkPixels(image);
  const [rows, columns] = size;
  const [left, top, right, bottom] = boxOf(width, height, spec).map(Math.fround);
  const across = pass(width, columns, left, right, interpolation);
  const skipped = columns === width && left === 0 && right === width;
  const [first, last] = skipped ? [0, height] : rowsSeen(height, rows, top, bottom, interpolation);
  if ((columns + 2) * (last - first) > 1.25 * Math.max(MAX_PIXELS, LARGE) && interpolation !== "nearest")
    throw new ImageError(`resizing it takes ${columns} x ${last - first} pixels, too many rows (limit: ${MAX_PIXELS})`);
  const down = pass(last - first, rows, top - first, bottom - first, interpolation);
  if (interpolation === "nearest") return picked(image, across, down);
  return acrossRows(acrossColumns(image, first, last, across), columns, down);
}

/**
 * Reduce a large image by 2, 4 or 8 where `decode: "draft"` allows it, as Python's JPEG decoder does: each pixel is the
 * mean of a block. For images that were decoded from JPEG; others are reduced by `preprocess` alone, as in Python.
 * @param {Pixels} image opaque
 * @param {import("./spec.mjs").Spec} spec
 * @returns {Pixels}
 */
export function reduced(image, spec) {
  const { width, height } = checkPixels(image);
  const factor = reduction(width, height, checkSpec(spec));
  if (factor === 1) return image;
  const small = { width: Math.ceil(width / factor), height: Math.ceil(height / factor) };
  const data = new Uint8Array(4 * small.width * small.height);
  reduceRows(image, factor, data);
  return { ...small, data };
}

/**
 * Write the means of blocks of `factor` x `factor` pixels; blocks at the right and the bottom may be smaller.
 * @param {Pixels} image opaque
 * @param {number} factor
 * @param {Uint8Array | Uint8ClampedArray} out RGBA
 */
export function reduceRows({ width, height, data }, factor, out) {
  const columns = Math.ceil(width / factor);
  const sums = new Uint32Array(3 * columns);
  for (let row = 0, y = 0; y < height; row++) {
    sums.fill(0);
    const end = Math.min(y + factor, height);
    const deep = end - y;
    for (; y < end; y++)
      for (let column = 0, x = 0, at = 4 * y * width; column < columns; column++) {
        let red = 0;
        let green = 0;
        let blue = 0;
        for (const stop = Math.min(x + factor, width); x < stop; x++, at += 4) {
          red += data[at];
          green += data[at + 1];
          blue += data[at + 2];
        }
        sums[3 * column] += red;
        sums[3 * column + 1] += green;
        sums[3 * column + 2] += blue;
      }
    for (let column = 0, at = 4 * row * columns; column < columns; column++, at += 4) {
      const count = deep * Math.min(factor, width - column * factor);
      for (let channel = 0; channel < 3; channel++)
        out[at + channel] = Math.floor((sums[3 * column + channel] + count / 2) / count);
      out[at + 3] = 255;
    }
  }
}

/** @param {Pixels} image @returns {Pixels} */
function checkPixels(image) {
  const { width, height, data } = image ?? {};
  if (!Number.isInteger(width) || !Number.isInteger(height) || width < 1 || height < 1)
    throw new ImageError(`it has no pixels (${width} x ${height})`);
  if (width * height > MAX_PIXELS)
    throw new ImageError(`it has ${width} x ${height} pixels, more than the limit of ${MAX_PIXELS}`);
  if (!(data instanceof Uint8Array || data instanceof Uint8ClampedArray) || data.length !== 4 * width * height)
    throw new ImageError(`expected ${4 * width * height} bytes of RGBA for ${width} x ${height} pixels`);
  return image;
}

/**
 * The rows that the second pass sees, or all, where those are a quarter or more (as runtime/images/resize.py has it: where the
 * first row lies decides in the last digit how rows are weighed).
 * @param {number} height @param {number} rows @param {number} top @param {number} bottom @param {string} name
 */
function rowsSeen(height, rows, top, bottom, name) {
  const reach = Math.ceil((FILTERS[name]?.[0] ?? 0) * Math.max((bottom - top) / rows, 1)) + 1;
  const first = Math.max(0, Math.floor(top) - reach);
  const last = Math.min(height, Math.ceil(bottom) + reach);
  return name === "nearest" || 4 * (last - first) >= height ? [0, height] : [first, last];
}

/**
 * For each of `after` samples: the first input sample it sees, how many, and the weight of each in units of 2^-22.
 * @param {number} before @param {number} after @param {number} from @param {number} to @param {string} name
 * @returns {Pass}
 */
function pass(before, after, from, to, name) {
  const scale = Math.fround(to - from) / after;
  const [support, filter] = FILTERS[name] ?? [0.5, () => 1];
  const stretch = Math.max(scale, 1);
  const stride = Math.ceil(support * stretch) * 2 + 1;
  const [first, count] = [new Int32Array(after), new Int32Array(after)];
  const taps = new Int32Array(after * stride);
  const values = new Float64Array(stride);
  for (let index = 0, position = from + scale * 0.5; index < after; index++, position += scale) {
    if (name === "nearest") {
      first[index] = Math.trunc(position);
      continue;
    }
    const center = from + (index + 0.5) * scale;
    const start = Math.max(Math.trunc(center - support * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(center + support * stretch + 0.5), before);
    let sum = 0;
    for (let at = start; at < end; at++) {
      values[at - start] = filter((at - center + 0.5) * (1 / stretch));
      sum += values[at - start];
    }
    for (let i = 0; i < end - start; i++) {
      const value = (sum === 0 ? values[i] : values[i] / sum) * (1 << BITS);
      taps[index * stride + i] = Math.trunc(value + (value < 0 ? -0.5 : 0.5));
    }
    first[index] = start;
    count[index] = end - start;
  }
  return { first, count, taps, stride };
}

/** @param {number} sum */
const byte = (sum) => {
  const value = sum >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
};

/**
 * Write one row as RGB over white. 255 is odd, so that no mean lies half way between two levels.
 * @param {Pixels} image @param {number} y @param {Uint8Array} line
 */
function overWhite({ width, data }, y, line) {
  for (let x = 0, from = 4 * y * width, to = 0; x < width; x++, from += 4, to += 3) {
    const alpha = data[from + 3];
    line[to] = data[from];
    line[to + 1] = data[from + 1];
    line[to + 2] = data[from + 2];
    if (alpha === 255) continue;
    for (let at = to; at < to + 3; at++) line[at] = Math.round((line[at] * alpha + 255 * (255 - alpha)) / 255);
  }
}

/**
 * The first pass: rows `first` to `last` with as many columns as the model takes, RGB.
 * @param {Pixels} image @param {number} first @param {number} last @param {Pass} columns
 */
function acrossColumns(image, first, last, { first: starts, count, taps, stride }) {
  const after = starts.length;
  const between = new Uint8Array((last - first) * after * 3);
  const line = new Uint8Array(3 * image.width);
  for (let y = first, to = 0; y < last; y++) {
    overWhite(image, y, line);
    for (let x = 0; x < after; x++, to += 3) {
      let red = HALF;
      let green = HALF;
      let blue = HALF;
      for (let tap = x * stride, at = 3 * starts[x], end = tap + count[x]; tap < end; tap++, at += 3) {
        const weight = taps[tap];
        red = (red + Math.imul(weight, line[at])) | 0;
        green = (green + Math.imul(weight, line[at + 1])) | 0;
        blue = (blue + Math.imul(weight, line[at + 2])) | 0;
      }
      between[to] = byte(red);
      between[to + 1] = byte(green);
      between[to + 2] = byte(blue);
    }
  }
  return between;
}

/**
 * The second pass.
 * @param {Uint8Array} between RGB @param {number} columns @param {Pass} rows
 */
function acrossRows(between, columns, { first, count, taps, stride }) {
  const pixels = new Uint8Array(first.length * columns * 3);
  const sums = new Int32Array(columns * 3);
  for (let y = 0; y < first.length; y++) {
    sums.fill(HALF);
    for (let i = 0; i < count[y]; i++) {
      const weight = taps[y * stride + i];
      const from = (first[y] + i) * columns * 3;
      for (let at = 0; at < sums.length; at++) sums[at] += Math.imul(weight, between[from + at]);
    }
    for (let at = 0; at < sums.length; at++) pixels[y * sums.length + at] = byte(sums[at]);
  }
  return pixels;
}

/** "nearest": copies samples. @param {Pixels} image @param {Pass} columns @param {Pass} rows */
function picked(image, columns, rows) {
  const pixels = new Uint8Array(rows.first.length * columns.first.length * 3);
  const line = new Uint8Array(3 * image.width);
  let to = 0;
  for (const y of rows.first) {
    overWhite(image, y, line);
    for (const x of columns.first) for (let channel = 0; channel < 3; channel++) pixels[to++] = line[3 * x + channel];
  }
  return pixels;
}
