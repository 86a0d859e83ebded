// Whether a PNG holds the pixels that its size tells, no more and no fewer, before pngjs decodes it in Node. Untrusted bytes.

import { inflateSync } from "node:zlib";
import { ImageError } from "./errors.mjs";
import { MAX_PIXELS } from "./preprocess.mjs";
import { WHITE_16 } from "./spec.mjs";

const SAMPLES = [1, 0, 3, 1, 2, 0, 4]; // per pixel, by color type
const PLAIN = [[0, 0, 1, 1]];
// First row and column of each pass of an interlaced file, and the steps between them.
const PASSES = [[0, 0, 8, 8], [0, 4, 8, 8], [4, 0, 8, 4], [0, 2, 4, 4], [2, 0, 4, 2], [0, 1, 2, 2], [1, 0, 2, 1]];

/**
 * @param {Buffer} file
 * @param {number} whiteLevel of the specification
 * @throws {ImageError} for too many pixels; for a second header, which pngjs would follow; for pixels that end early, or
 *   inflate to more than the image holds; for a number of significant bits that `whiteLevel` contradicts
 */
export function checkPng(file, whiteLevel) {
  if (file.length < 33 || file.toString("latin1", 12, 16) !== "IHDR") throw new ImageError("its header is damaged");
  const [width, height] = [file.readUInt32BE(16), file.readUInt32BE(20)];
  if (width * height > MAX_PIXELS)
    throw new ImageError(`it has ${width} x ${height} pixels, more than the limit of ${MAX_PIXELS}`);
  const pixels = [];
  for (let at = 33; at + 8 <= file.length; ) {
    const length = file.readUInt32BE(at);
    const name = file.toString("latin1", at + 4, at + 8);
    if (name === "IHDR") throw new ImageError("its header is damaged: it has two");
    if (name === "IDAT") pixels.push(file.subarray(at + 8, at + 8 + length));
    if (name === "sBIT" && file[24] === 16 && file[at + 8] < 16 && whiteLevel !== WHITE_16)
      throw new ImageError(`it states ${file[at + 8]} significant bits, which PNG scales to 16, against white_level`);
    at += 12 + length;
  }
  const most = 8 * width * height + 16 * (width + height) + 64; // of 16-bit RGBA, with a byte per row of each pass
  const held = inflateSync(Buffer.concat(pixels), { maxOutputLength: most }).length;
  const bits = file[24] * (SAMPLES[file[25]] ?? 0);
  let expected = 0;
  for (const [top, left, down, right] of file[28] ? PASSES : PLAIN) {
    const [columns, rows] = [Math.ceil((width - left) / right), Math.ceil((height - top) / down)];
    if (columns > 0 && rows > 0) expected += rows * (1 + Math.ceil((columns * bits) / 8));
  }
  if (held < expected) throw new ImageError("its pixels end early: rows are missing");
}
