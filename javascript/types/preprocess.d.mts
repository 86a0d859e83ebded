export type Pixels = {
    width: number;
    height: number;
    data: Uint8Array | Uint8ClampedArray;
};
export type Pass = {
    first: Int32Array;
    count: Int32Array;
    taps: Int32Array;
    stride: number;
};
/**
 * An image in memory: RGBA, row by row, upright, not premultiplied. ImageData is one.
 * @typedef {{width: number, height: number, data: Uint8Array | Uint8ClampedArray}} Pixels
 */
/** @typedef {{first: Int32Array, count: Int32Array, taps: Int32Array, stride: number}} Pass */
export declare const MAX_PIXELS = 89478485;
export declare const DEEP_COLOR = "it has 16 bits per color; the model's white_level is for gray images; convert it to gray, or to 8 bits";
/**
 * Bits per channel of a PNG, and whether it is in color: its header says so. 8 bits for any other file.
 * @param {Uint8Array} file its first 32 bytes at least
 */
export declare function pngDepth(file: Uint8Array): {
    bits: number;
    color: boolean;
};
/**
 * Turn an image into what the model takes.
 * @param {Pixels} image
 * @param {import("./spec.mjs").Spec} spec the `preprocess` of the model's metadata
 * @returns {Uint8Array} height * width * 3 bytes, RGB
 * @throws {ImageError} when there are no such pixels, or resizing them takes more memory than MAX_PIXELS
 * @throws {import("./errors.mjs").ModelError} when `spec` describes no possible preprocessing
 */
export declare function preprocess(image: Pixels, spec: import("./spec.mjs").Spec): Uint8Array;
/**
 * Reduce a large image by 2, 4 or 8 where `decode: "draft"` allows it, as Python's JPEG decoder does: each pixel is the
 * mean of a block. For images that were decoded from JPEG; others are reduced by `preprocess` alone, as in Python.
 * @param {Pixels} image opaque
 * @param {import("./spec.mjs").Spec} spec
 * @returns {Pixels}
 */
export declare function reduced(image: Pixels, spec: import("./spec.mjs").Spec): Pixels;
/**
 * Write the means of blocks of `factor` x `factor` pixels; blocks at the right and the bottom may be smaller.
 * @param {Pixels} image opaque
 * @param {number} factor
 * @param {Uint8Array | Uint8ClampedArray} out RGBA
 */
export declare function reduceRows({ width, height, data }: Pixels, factor: number, out: Uint8Array | Uint8ClampedArray): void;
