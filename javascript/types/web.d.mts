import { Classifier } from "./classifier.mjs";
export * from "./index.mjs";
/**
 * Open a model with onnxruntime-web. WebAssembly does not saturate: no CPU needs other kernels.
 * @param {Uint8Array} model the bytes of the .onnx file
 * @param {object} options
 * @param {import("./classifier.mjs").Runtime} options.runtime the module onnxruntime-web, its `env.wasm` set
 * @param {number} [options.top] candidates of a prediction
 * @param {string} [options.sha256] the digest that the model must have, where you know it
 * @returns {Promise<Classifier>}
 * @throws {import("./errors.mjs").ModelError} when it is no model of vit-edge
 */
export declare function openClassifier(model: Uint8Array, { runtime, top, sha256 }: {
    runtime: import("./classifier.mjs").Runtime;
    top?: number;
    sha256?: string;
}): Promise<Classifier>;
/**
 * Decode an image file as Python does: upright by its EXIF orientation, colors as they are in the file (no color
 * management), alpha not premultiplied; a large JPEG reduced as the model's specification allows.
 * @param {Blob} file
 * @param {import("./spec.mjs").Spec} spec the `preprocess` of the model's metadata
 * @returns {Promise<import("./preprocess.mjs").Pixels>}
 * @throws {ImageError} when the browser cannot decode it, or it has too many pixels
 */
export declare function decodeImage(file: Blob, spec: import("./spec.mjs").Spec): Promise<import("./preprocess.mjs").Pixels>;
/**
 * Read the pixels of a bitmap, a frame of a camera for example, and close it.
 * @param {ImageBitmap} bitmap
 * @param {import("./spec.mjs").Spec} spec
 * @param {object} [options]
 * @param {boolean} [options.photo] opaque, and may be reduced as a large JPEG may
 * @returns {import("./preprocess.mjs").Pixels}
 * @throws {ImageError} when it has too many pixels
 */
export declare function readBitmap(bitmap: ImageBitmap, spec: import("./spec.mjs").Spec, { photo }?: {
    photo?: boolean;
}): import("./preprocess.mjs").Pixels;
