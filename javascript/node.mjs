// Classify image files in Node, with onnxruntime-node.

import { availableParallelism } from "node:os";
import jpeg from "jpeg-js";
import { PNG } from "pngjs";
import { Classifier, reason } from "./classifier.mjs";
import { needsExactKernels } from "./cpu.mjs";
import { ImageError, ModelError } from "./errors.mjs";
import { readRegular } from "./files.mjs";
import { checkJpeg } from "./jpeg.mjs";
import { readOrientation, upright } from "./orientation.mjs";
import { checkPng } from "./png.mjs";
import { DEEP_COLOR, MAX_PIXELS, pngDepth, reduced } from "./preprocess.mjs";
import { WHITE_16 } from "./spec.mjs";

export { needsExactKernels } from "./cpu.mjs";
export * from "./index.mjs";

/**
 * Open a model with onnxruntime-node.
 * @param {string | Uint8Array} model a path, or the bytes of the .onnx file
 * @param {object} [options]
 * @param {number} [options.threads] CPU threads of one prediction; without it, the cores that there are
 * @param {number} [options.top] candidates of a prediction
 * @param {string} [options.sha256] the digest that the model must have, where you know it
 * @param {boolean} [options.exact] exact kernels for INT8, instead of asking the CPU whether it needs them
 * @returns {Promise<Classifier>}
 * @throws {ModelError} when it is no model of vit-edge
 */
export async function openClassifier(model, { threads, top, sha256, exact } = {}) {
  const runtime = await import("onnxruntime-node"); // classifier.mjs has set ORT_DISABLE_TELEMETRY by now
  let bytes;
  try {
    bytes = typeof model === "string" ? new Uint8Array(await readRegular(model)) : model;
  } catch (error) {
    throw new ModelError(`it cannot be read: ${reason(error)}`);
  }
  const session = (/** @type {import("./metadata.mjs").Metadata} */ { exact_on, target }) => sessionOptions(exact_on, { threads, exact, npu: target === "npu" });
  return Classifier.open(bytes, { runtime, top, sha256, session, decode: decodeImage });
}

/**
 * Check with the self-test in a model file whether this machine computes it right.
 * @param {string | Uint8Array} model a path, or the bytes of the .onnx file
 * @param {Parameters<typeof openClassifier>[1]} [options]
 * @returns {Promise<import("./check.mjs").DeviceCheck>} `passed`, `fault` and `verdict` say the rest
 * @throws {ModelError} when it is no model of vit-edge
 */
export async function checkModel(model, options) {
  const classifier = await openClassifier(model, options);
  try {
    return await classifier.check({ openExact: () => openClassifier(model, { ...options, exact: true }) });
  } finally {
    await classifier.release();
  }
}

/**
 * Session options for onnxruntime-node, exact kernels where this CPU needs them.
 * @param {string[]} exactOn `exact_on` of the model's metadata
 * @param {object} [options]
 * @param {number} [options.threads]
 * @param {boolean} [options.exact] instead of asking the CPU
 * @param {boolean} [options.npu] for a file whose target is "npu": ONNX Runtime would round its activations to 8 bits
 */
export function sessionOptions(exactOn, { threads = availableParallelism(), exact = needsExactKernels(exactOn), npu = false } = {}) {
  const session = { intra_op: { allow_spinning: "0" }, ...(exact ? { x64quantprecision: "1" } : {}), ...(npu ? { qdq_matmulnbits_accuracy_level: "1" } : {}) };
  return { intraOpNumThreads: threads, interOpNumThreads: 1, logSeverityLevel: /** @type {const} */ (3), extra: { session } };
}

/**
 * Decode a JPEG or a PNG, turn it upright and reduce it as the model's specification allows.
 * @param {Uint8Array} file
 * @param {import("./spec.mjs").Spec} spec the `preprocess` of the model's metadata
 * @returns {import("./preprocess.mjs").Pixels}
 * @throws {ImageError} when it is neither, or damaged, or has too many pixels
 */
export function decodeImage(file, spec) {
  const isPng = file[0] === 0x89 && file[1] === 0x50;
  if (!isPng && !(file[0] === 0xff && file[1] === 0xd8))
    throw new ImageError(file.length ? "it is neither a JPEG nor a PNG; convert it" : "it is empty (zero bytes)");
  let image;
  try {
    image = isPng ? decodePng(file, spec) : decodeJpeg(file);
  } catch (error) {
    if (error instanceof ImageError) throw error;
    throw new ImageError(`it cannot be decoded: ${reason(error)}`);
  }
  const seen = isPng ? image : reduced(image, spec);
  return spec.exif ? upright(seen, readOrientation(file)) : seen;
}

/** @param {Uint8Array} file */
function decodeJpeg(file) {
  const { rgb, lateTables } = checkJpeg(file);
  if (lateTables) throw new ImageError("it changes quantization between scans, which jpeg-js does not follow; save it again");
  const limits = { maxResolutionInMP: MAX_PIXELS / 1e6, maxMemoryUsageInMB: 2048 };
  const colors = rgb ? { colorTransform: false } : {}; // jpeg-js takes any three colors for YCbCr
  return jpeg.decode(file, { useTArray: true, formatAsRGBA: true, tolerantDecoding: false, ...colors, ...limits });
}

/** @param {Uint8Array} file @param {import("./spec.mjs").Spec} spec */
function decodePng(file, { white_level = WHITE_16 }) {
  const bytes = Buffer.from(file.buffer, file.byteOffset, file.byteLength);
  checkPng(bytes, white_level);
  const depth = pngDepth(file);
  if (white_level === WHITE_16 || depth.bits < 16) return PNG.sync.read(bytes);
  if (depth.color) throw new ImageError(DEEP_COLOR);
  const { data, ...size } = PNG.sync.read(bytes, { skipRescale: true });
  const scaled = (/** @type {number} */ value) => Math.floor((255 * Math.min(value, white_level) + (white_level >> 1)) / white_level);
  return { ...size, data: Uint8Array.from(data, (value, at) => (at % 4 === 3 ? Math.round(value / 257) : scaled(value))) };
}
