// Classify images in a browser, with onnxruntime-web, best in a worker. Nothing leaves the device.

import { failedCheck } from "./check.mjs";
import { Classifier, reason } from "./classifier.mjs";
import { DeviceError, ImageError } from "./errors.mjs";
import { checkJpeg } from "./jpeg.mjs";
import { readEntries } from "./metadata.mjs";
import { DEEP_COLOR, MAX_PIXELS, pngDepth, reduceRows } from "./preprocess.mjs";
import { listed, reduction, WHITE_16 } from "./spec.mjs";

export * from "./index.mjs";

const STRIP = 2 ** 20; // pixels read at a time: phones limit a canvas to 16 megapixels, and memory sooner

/**
 * Look for a GPU: why there is none (`missing`), whether its shaders compute in float16 (the feature `shader-f16`), and whether
 * the CPU computes them (`software`), which WebAssembly does faster.
 * @returns {Promise<{missing: string | null, float16: boolean, software: boolean}>}
 */
export async function findGpu() {
  // @ts-ignore: TypeScript's library for pages may not know navigator.gpu
  const { gpu } = navigator;
  const adapter = await gpu?.requestAdapter();
  if (adapter)
    return { missing: null, float16: adapter.features.has("shader-f16"), software: adapter.info?.isFallbackAdapter === true };
  const missing = gpu ? "this browser has WebGPU, but no GPU for it" : "this browser has no WebGPU, or the page did not come over https";
  return { missing, float16: false, software: false };
}

/**
 * Open a model with onnxruntime-web. WebAssembly does not saturate: no CPU needs other kernels.
 * @param {Uint8Array} model the bytes of the .onnx file
 * @param {object} options
 * @param {import("./classifier.mjs").Runtime} options.runtime the module onnxruntime-web/wasm, or onnxruntime-web/webgpu for
 *   a GPU, its `env.wasm` set
 * @param {"wasm" | "webgpu"} [options.device] never another one in its place
 * @param {number} [options.top] candidates of a prediction
 * @param {string} [options.sha256] the digest that the model must have, where you know it
 * @returns {Promise<Classifier>}
 * @throws {import("./errors.mjs").ModelError} when it is no model of vit-edge
 * @throws {DeviceError} when there is no such device, or it cannot run this file
 */
export async function openClassifier(model, { runtime, device = "wasm", top, sha256 }) {
  if (!["wasm", "webgpu"].includes(device))
    throw new DeviceError(`expected the device wasm or webgpu, found ${listed([String(device)])}`);
  if (device === "webgpu") {
    const { variant } = readEntries(model).metadata;
    const { missing, float16 } = await findGpu();
    if (missing) throw new DeviceError(`${missing}; use the device wasm`);
    if (variant === "float16" && !float16)
      throw new DeviceError("its GPU computes no float16 (the feature shader-f16 is missing); use the float32 file");
  }
  const classifier = await Classifier.open(model, {
    runtime, top, sha256, device, decode: (file, spec) => decodeImage(new Blob([/** @type {BlobPart} */ (file)]), spec),
    session: () => ({ executionProviders: [device], logSeverityLevel: 3 }),
  });
  // JSEP, the WebGPU of onnxruntime-web before the native one, alone publishes its adapter. It reads uint8 wrong (-0.2 dB for
  // the digits, without an error).
  if (device === "wasm" || /** @type {any} */ (runtime).env?.webgpu?.adapter === undefined) return classifier;
  await classifier.release();
  throw new DeviceError(
    "expected the module onnxruntime-web/webgpu, found one with the older WebGPU, which computes these files wrong; import that one",
  );
}

/**
 * Check with the self-test in a model file whether a device computes it right.
 * @param {Uint8Array} model the bytes of the .onnx file
 * @param {Parameters<typeof openClassifier>[1]} options as for `openClassifier`
 * @returns {Promise<import("./check.mjs").DeviceCheck>} `passed`, `fault` and `verdict` say the rest
 * @throws {import("./errors.mjs").ModelError} when it is no model of vit-edge
 */
export async function checkModel(model, options) {
  let classifier;
  try {
    classifier = await openClassifier(model, options);
    return await classifier.check({ openExact: () => openClassifier(model, { ...options, device: "wasm" }) });
  } catch (error) {
    if (error instanceof DeviceError) return failedCheck(options.device ?? "wasm", "not opened", error.message);
    throw error;
  } finally {
    await classifier?.release();
  }
}

/**
 * Decode an image file as Python does: upright by its EXIF orientation, colors as they are in the file (no color
 * management), alpha not premultiplied; a large JPEG reduced as the model's specification allows.
 * @param {Blob} file
 * @param {import("./spec.mjs").Spec} spec the `preprocess` of the model's metadata
 * @returns {Promise<import("./preprocess.mjs").Pixels>}
 * @throws {ImageError} when the browser cannot decode it, or it has too many pixels
 */
export async function decodeImage(file, spec) {
  const start = new Uint8Array(await file.slice(0, 32).arrayBuffer());
  if (!file.size) throw new ImageError("it is empty (zero bytes)");
  const { bits, color } = pngDepth(start);
  if (bits === 16 && (spec.white_level ?? WHITE_16) !== WHITE_16)
    throw new ImageError(color ? DEEP_COLOR : "it has 16 bits, of which a browser reads the upper 8; convert it to 8 bits");
  const photo = start[0] === 0xff && start[1] === 0xd8;
  if (photo) checkJpeg(new Uint8Array(await file.arrayBuffer()));
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
      imageOrientation: /** @type {any} */ (spec.exif ? "from-image" : "none"),
    });
  } catch (error) {
    throw new ImageError(`this browser cannot decode it: ${reason(error)}`);
  }
  return readBitmap(bitmap, spec, { photo });
}

/**
 * Read the pixels of a bitmap, a frame of a camera for example, and close it.
 * @param {ImageBitmap} bitmap
 * @param {import("./spec.mjs").Spec} spec
 * @param {object} [options]
 * @param {boolean} [options.photo] opaque, and may be reduced as a large JPEG may
 * @returns {import("./preprocess.mjs").Pixels}
 * @throws {ImageError} when it has too many pixels
 */
export function readBitmap(bitmap, spec, { photo = true } = {}) {
  const { width, height } = bitmap;
  try {
    if (width * height > MAX_PIXELS)
      throw new ImageError(`it has ${width} x ${height} pixels, more than the limit of ${MAX_PIXELS}`);
    const factor = photo ? reduction(width, height, spec) : 1;
    const small = { width: Math.ceil(width / factor), height: Math.ceil(height / factor) };
    const data = new Uint8ClampedArray(4 * small.width * small.height);
    const rows = Math.min(height, factor * Math.max(1, Math.floor(STRIP / width / factor)));
    const context = new OffscreenCanvas(width, rows).getContext("2d", { willReadFrequently: true });
    if (context === null) throw new ImageError(`this browser has no canvas of ${width} x ${rows} pixels`);
    for (let y = 0; y < height; y += rows) {
      const strip = Math.min(rows, height - y);
      context.clearRect(0, 0, width, strip);
      context.drawImage(bitmap, 0, y, width, strip, 0, 0, width, strip);
      const pixels = context.getImageData(0, 0, width, strip);
      if (factor === 1) data.set(pixels.data, 4 * y * width);
      else reduceRows(pixels, factor, data.subarray(4 * (y / factor) * small.width));
    }
    return { ...small, data };
  } finally {
    bitmap.close();
  }
}
