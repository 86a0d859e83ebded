// What a JPEG states before its pixels: how many scans it has, and what its colors are. Untrusted bytes.

import { ImageError } from "./errors.mjs";

const MAX_SCANS = 100; // as in Python: honest files have 10 to 20
const SOI = 0xd8;
const EOI = 0xd9;
const SOS = 0xda;
const DQT = 0xdb;

/**
 * Check a JPEG before it is decoded.
 * @param {Uint8Array} file
 * @returns {{ rgb: boolean, lateTables: boolean }} whether its three colors are RGB and not YCbCr, by libjpeg's rules; and
 *   whether it changes quantization between scans
 * @throws {ImageError} for more scans than a photo has, each of which takes as long as the whole; for samples that are not
 *   of 8 bits; for CMYK without Adobe's marker, which may be stored inverted or not
 */
export function checkJpeg(file) {
  let scans = 0;
  let jfif = false;
  let lateTables = false;
  let adobe = -1; // the transform that its marker states
  /** @type {number[]} */
  let ids = [];
  for (const { marker, at, length } of segments(file)) {
    if (marker === SOS && ++scans > MAX_SCANS)
      throw new ImageError(`it has more than ${MAX_SCANS} scans (usual: 10 to 20); save it again as JPEG`);
    if (marker === DQT && scans) lateTables = true;
    if (scans) continue; // libjpeg decides on colors at the first scan
    if (marker === 0xe0 && text(file, at, 4) === "JFIF") jfif = true;
    if (marker === 0xee && length >= 12 && text(file, at, 5) === "Adobe") adobe = file[at + 11];
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      if (file[at] !== 8) throw new ImageError(`it has ${file[at]} bits per color; convert it to 8`);
      ids = Array.from({ length: file[at + 5] }, (_, component) => file[at + 6 + 3 * component]);
    }
  }
  if (ids.length === 4 && adobe < 0)
    throw new ImageError("it is CMYK without Adobe's marker, so it may be a negative; convert it to RGB");
  const rgb = ids.length === 3 && !jfif && (adobe < 0 ? String.fromCharCode(...ids) === "RGB" : adobe === 0);
  return { rgb, lateTables };
}

/**
 * The segments up to the end of the image: their marker, where their content begins, and its length.
 * @param {Uint8Array} file
 */
function* segments(file) {
  let at = 2;
  while (at + 3 < file.length) {
    const marker = file[at + 1];
    if (file[at] !== 0xff || marker === 0 || marker === 0xff || (marker >= 0xd0 && marker < SOI)) {
      const next = file.indexOf(0xff, at + 1); // pixels of a scan, with stuffed bytes and restarts, or fill bytes
      if (next < 0) return;
      at = next;
      continue;
    }
    if (marker === EOI) return;
    if (marker === 1 || marker === SOI) {
      at += 2;
      continue;
    }
    const length = (file[at + 2] << 8) | file[at + 3];
    if (length < 2) return;
    yield { marker, at: at + 4, length: length - 2 };
    at += 2 + length;
  }
}

/** @param {Uint8Array} file @param {number} at @param {number} length */
const text = (file, at, length) => String.fromCharCode(...file.subarray(at, at + length));
