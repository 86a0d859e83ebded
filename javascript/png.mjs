// Whether a PNG takes no more memory than its size tells, before pngjs decodes it in Node. Untrusted bytes.

import { inflateSync } from "node:zlib";
import { ImageError } from "./errors.mjs";
import { MAX_PIXELS } from "./preprocess.mjs";
import { WHITE_16 } from "./spec.mjs";

/**
 * @param {Buffer} file
 * @param {number} whiteLevel of the specification
 * @throws {ImageError} for too many pixels; for a second header, which pngjs would follow; for interlaced pixels that inflate
 *   to more than the image holds; for a number of significant bits that `whiteLevel` contradicts
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
  if (file[28] === 1) inflateSync(Buffer.concat(pixels), { maxOutputLength: most });
}
