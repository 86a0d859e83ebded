// Images that look like photos to a model: a landscape, shaded and patterned shapes, and grain. Integers of 32 bits alone, so
// that every language makes the same bytes: runtime/self_test/made_images.py is the same recipe line by line.

import { ModelError } from "./errors.mjs";
import { isWhole } from "./spec.mjs";

/** @typedef {{seed: number, height: number, width: number, bits: number}} Frame bits of the longer edge */

/** Pixels of an edge; bounds the time for a size that an untrusted file asks for. */
export const MOST_EDGE = 1024;
const SHAPES = [3, 8, 24, 60]; // by the last bits of the seed
const RADIUS = 96; // of every shape, in units of its own coordinates

/**
 * Make an image: RGB, row by row, the same bytes on every machine.
 * @param {number} seed 0 to 2^32 - 1
 * @param {number} height 1 to MOST_EDGE
 * @param {number} width the same
 * @returns {Uint8Array}
 * @throws {ModelError} for arguments outside these limits
 */
export function makeImage(seed, height, width) {
  if (!(isWhole(seed, 0, 2 ** 32 - 1) && [height, width].every((edge) => isWhole(edge, 1, MOST_EDGE))))
    throw new ModelError(`expected a seed from 0 to 4294967295 and edges from 1 to ${MOST_EDGE}, found ${seed}, ${height} and ${width}`);
  const bits = 32 - Math.clz32(Math.max(height, width));
  const frame = { seed, height, width, bits };
  const image = paintLandscape(frame);
  const count = SHAPES[seed & 3];
  for (let index = 0; index < count; index++) paintShape(image, frame, index, Math.floor((index * 4) / count));
  const grain = sumOctaves(frame, 9, Math.max(bits - 3, 0), Math.max(bits - 2, 1));
  const fine = makeNoise(frame, 10, 0);
  return new Uint8Array(image.map((value, at) => {
    const pixel = Math.floor(at / 3);
    return clip(value + (((grain[pixel] - 128) * 40) >> 6) + (((fine[pixel] >> 8) - 128) >> 4), 0, 255);
  }));
}

/** @param {number} value @param {number} least @param {number} most */
const clip = (value, least, most) => Math.min(Math.max(value, least), most);

/** Hash 32 bits to 32 bits (lowbias32 of Chris Wellons). @param {number} bits */
function mix(bits) {
  bits = Math.imul(bits ^ (bits >>> 16), 0x7feb352d);
  bits = Math.imul(bits ^ (bits >>> 15), 0x846ca68b);
  return bits ^ (bits >>> 16);
}

/** 8 random bits for a place. @param {number} seed @param {number} layer @param {number} a @param {number} b */
const draw = (seed, layer, a, b) =>
  mix(mix(mix(Math.imul(seed, 0x9e3779b1) + layer) + Math.imul(a, 0x85ebca77)) + Math.imul(b, 0xc2b2ae3d)) >>> 24;

/** Smooth noise of cells of 2^cell pixels, 0 to 65,280. @param {Frame} frame @param {number} layer @param {number} cell */
function makeNoise({ seed, height, width }, layer, cell) {
  const across = (width >> cell) + 2;
  const corners = Uint8Array.from({ length: ((height >> cell) + 2) * across }, (_, at) =>
    draw(seed, layer * 64 + cell, Math.floor(at / across), at % across),
  );
  const noise = new Int32Array(height * width);
  for (let y = 0, at = 0; y < height; y++) {
    const down = place(y, cell);
    for (let x = 0; x < width; x++, at++) {
      const right = place(x, cell);
      const corner = (y >> cell) * across + (x >> cell);
      const top = corners[corner] * (256 - right) + corners[corner + 1] * right;
      const bottom = corners[corner + across] * (256 - right) + corners[corner + across + 1] * right;
      noise[at] = (top * (256 - down) + bottom * down) >> 8;
    }
  }
  return noise;
}

/** The place of a pixel within its cell, 0 to 255, on a smooth step. @param {number} pixel @param {number} cell */
function place(pixel, cell) {
  const linear = ((pixel & ((1 << cell) - 1)) << 8) >> cell;
  return (linear * linear * (768 - 2 * linear)) >> 16;
}

/**
 * Noise of `count` cells from large to small, each with half the amplitude: 0 to 255.
 * @param {Frame} frame @param {number} layer @param {number} first @param {number} count
 */
function sumOctaves(frame, layer, first, count) {
  const total = new Int32Array(frame.height * frame.width);
  for (let octave = 0; octave < count; octave++) {
    const noise = makeNoise(frame, layer, Math.max(first - octave, 0));
    for (let at = 0; at < total.length; at++) total[at] += noise[at] << (count - 1 - octave);
  }
  return total.map((value) => value >> (count + 8));
}

/** A color: a luminance, and less chroma. @param {number} seed @param {number} index */
function drawColor(seed, index) {
  const luminance = 40 + ((draw(seed, 7, index, 9) * 3) >> 2);
  return [10, 11, 12].map((what) => luminance + ((draw(seed, 7, index, what) - 128) >> (1 + ((seed >>> 2) & 1))));
}

/** A bright sky, and ground below a line of hills. @param {Frame} frame */
function paintLandscape(frame) {
  const { seed, height, width, bits } = frame;
  const clouds = sumOctaves(frame, 0, bits - 2, 5);
  const hills = sumOctaves({ ...frame, height: 1 }, 5, bits - 2, 5);
  const horizon = (height * (64 + (draw(seed, 7, 902, 0) >> 1))) >> 8;
  const [sky, ground] = [drawColor(seed, 900), drawColor(seed, 901)];
  const image = new Int32Array(height * width * 3);
  for (let at = 0; at < image.length; at++) {
    const [pixel, y] = [Math.floor(at / 3), Math.floor(at / 3 / width)];
    const [cloud, down] = [clouds[pixel] - 128, y * Math.floor(65536 / height)];
    const below = y >= horizon + (((hills[pixel % width] - 128) * height) >> 9);
    image[at] = below ? ground[at % 3] + cloud - ((down * 3) >> 12) : sky[at % 3] + (cloud >> 1) + (down >> 10);
  }
  return image;
}

/**
 * Paint an ellipse, a rectangle or a rhombus, in place; each octave is half as large.
 * @param {Int32Array} image @param {Frame} frame @param {number} index @param {number} octave
 */
function paintShape(image, { seed, height, width }, index, octave) {
  const color = drawColor(seed, index);
  const [left, top, large, turnA, turnB, narrow, form, slope, filling] = Array.from({ length: 9 }, (_, what) =>
    draw(seed, 7, index, what),
  );
  const size = Math.max(((Math.max(height, width) >> 2) * (128 + large)) >> (8 + octave), 1);
  const [scale, a, b] = [Math.floor(4096 / size), turnA - 128, turnB - 128];
  const [kind, pattern] = [form >> 5, filling >> 5];
  for (let pixel = 0; pixel < height * width; pixel++) {
    const x = (pixel % width) - ((left * width) >> 8);
    const y = Math.floor(pixel / width) - ((top * height) >> 8);
    const u = clip(((a * x + b * y) * scale) >> 12, -1023, 1023);
    const v = clip(((((a * y - b * x) * scale) >> 12) * (64 + (narrow >> 1))) >> 6, -1023, 1023);
    const square = u * u + v * v;
    const [wide, high] = [Math.abs(u), Math.abs(v)];
    if (kind < 4 ? square >= RADIUS * RADIUS : (kind < 6 ? Math.max(wide, high) : wide + high) >= RADIUS) continue;
    let light = kind < 2 ? 32 - (square >> 7) : (u * (slope - 128)) >> 8;
    if (pattern < 3) // stripes, a chessboard, or rings
      light += (((pattern === 0 ? u >> 4 : pattern === 1 ? (u >> 5) ^ (v >> 5) : square >> 11) & 1) << 6) - 32;
    for (let channel = 0; channel < 3; channel++) image[3 * pixel + channel] = color[channel] + light;
  }
}
