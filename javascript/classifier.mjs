// A model and its labels, for whichever ONNX Runtime is given: onnxruntime-node, onnxruntime-web.

import { checkAnswers, failedCheck } from "./check.mjs";
import { digitsOf, isIntact } from "./digest.mjs";
import { ImageError, ModelError } from "./errors.mjs";
import { DAMAGED, readEntries } from "./metadata.mjs";
import { preprocess } from "./preprocess.mjs";
import { parseSelfTest } from "./self_test.mjs";
import { listed } from "./spec.mjs";

// onnxruntime-node sends telemetry from its first session on, unless this is 1 before it. What a user has set stays.
const { process } = globalThis;
if (process?.versions?.node && !process.env.ORT_DISABLE_TELEMETRY) {
  process.env.ORT_DISABLE_TELEMETRY = "1";
  if (process.getBuiltinModule?.("node:worker_threads").isMainThread === false)
    process.emitWarning(
      "a worker cannot turn the telemetry of onnxruntime-node off: set ORT_DISABLE_TELEMETRY=1 before Node starts, " +
        "or import vit-edge in the main thread before the worker starts",
    );
}

/** @typedef {{label: string, index: number, score: number}} Candidate score: 0 to 1 */
/**
 * @typedef {object} Prediction
 * @property {string | null} label of the best class; null where no label reaches its threshold
 * @property {number | null} index of the best class, into `metadata.labels`
 * @property {number} score 0 to 1
 * @property {Candidate[]} top best first
 * @property {Candidate[] | null} labels of a model with several labels per image: those whose score reaches its threshold,
 *   best first; the first is `label`. Without any, `score` is the highest of all. null: the model gives one label per image
 * @property {Float32Array} logits one per class
 * @property {{preprocess: number, model: number}} milliseconds
 */
/**
 * The part of an ONNX Runtime module that is used.
 * @typedef {object} Runtime
 * @property {{create: (model: any, options?: any) => Promise<any>}} InferenceSession
 * @property {new (type: any, data: any, dims: number[]) => any} Tensor
 */

/** @typedef {{runtime: Runtime, top: number, device: string, decode?: import("./check.mjs").Decode, selfTest?: string}} Opened */

export class Classifier {
  #session;
  #opened;

  /** Use `Classifier.open`. @param {any} session @param {import("./metadata.mjs").Metadata} metadata @param {Opened} opened */
  constructor(session, metadata, opened) {
    this.#session = session;
    this.#opened = opened;
    /** What the model file says about itself. @readonly */
    this.metadata = metadata;
    /** "cpu" (onnxruntime-node), "wasm" or "webgpu". @readonly */
    this.device = opened.device;
  }

  /**
   * Open a model for inference.
   * @param {Uint8Array} model the bytes of an .onnx file that `python -m export` wrote
   * @param {object} options
   * @param {Runtime} options.runtime the module onnxruntime-node or onnxruntime-web
   * @param {number} [options.top] candidates of a prediction
   * @param {string} [options.sha256] the digest that the model must have, where you know it; the only protection from malice
   * @param {(metadata: import("./metadata.mjs").Metadata) => object} [options.session] ONNX Runtime's session options for it
   * @param {string} [options.device] what those options choose, for the thresholds of `check`
   * @param {import("./check.mjs").Decode} [options.decode] of photos in a self-test
   * @returns {Promise<Classifier>}
   * @throws {ModelError} when the bytes are no model of vit-edge, or not the one asked for, or ONNX Runtime does not accept them
   */
  static async open(model, { runtime, top = 5, sha256, session: optionsFor = () => ({}), device = "cpu", decode }) {
    if (sha256 !== undefined) await checkDigest(model, sha256);
    const { metadata, selfTest } = readEntries(model);
    if (!metadata.labels.length) throw new ModelError("it has no classes, only an embedding; expected a model that classifies");
    const intact = metadata.digest ? isIntact(model) : Promise.resolve(true); // beside ONNX Runtime's own work
    intact.catch(() => {}); // an error of ONNX Runtime comes first
    let session;
    try {
      session = await runtime.InferenceSession.create(model, optionsFor(metadata));
    } catch (error) {
      throw new ModelError(`ONNX Runtime does not accept it (${reason(error)}); export it again`);
    }
    try {
      checkSignature(session, metadata);
      if (!(await intact)) throw new ModelError(DAMAGED);
    } catch (error) {
      await session.release();
      throw error;
    }
    if (metadata.target === "npu") warnOfNpuFile(metadata);
    return new Classifier(session, metadata, { runtime, top, device, decode, selfTest });
  }

  /**
   * Classify an image that is decoded, upright and, where it is a large JPEG, `reduced`.
   * @param {import("./preprocess.mjs").Pixels} image
   * @returns {Promise<Prediction>}
   * @throws {ImageError} when there are no such pixels
   * @throws {ModelError} when the model's logits do not fit its labels
   */
  async classify(image) {
    const { preprocess: spec, labels } = this.metadata;
    const began = performance.now();
    const bytes = preprocess(image, spec);
    const prepared = performance.now();
    const { logits } = await this.run(bytes);
    const milliseconds = { preprocess: prepared - began, model: performance.now() - prepared };
    if (logits.length !== labels.length)
      throw new ModelError(`expected ${labels.length} logits, one per label, found ${logits.length}; export it again`);
    return { ...predict(logits, this.metadata, this.#opened.top), logits, milliseconds };
  }

  /**
   * Run the model on pixels.
   * @param {Uint8Array} pixels what `preprocess` returns for one image
   * @returns {Promise<Record<string, Float32Array>>} its outputs by name: logits, and embedding where it has one
   */
  async run(pixels) {
    const tensor = new this.#opened.runtime.Tensor("uint8", pixels, [1, ...this.metadata.preprocess.size, 3]);
    const outputs = await this.#session.run({ pixels: tensor });
    return Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, Float32Array.from(data)]));
  }

  /**
   * Compare what this device answers with what the exporting machine answered: the self-test in the file.
   * @param {import("./check.mjs").Options} [options]
   * @returns {Promise<import("./check.mjs").DeviceCheck>}
   * @throws {ModelError} when the self-test is none
   */
  async check(options) {
    const { selfTest, decode } = this.#opened;
    if (selfTest === undefined) return failedCheck(this.device, "no self-test", "the file carries none; export it again");
    const known = parseSelfTest(selfTest, this.metadata);
    try {
      return await checkAnswers(this, known, { ...options, decode });
    } catch (error) {
      if (error instanceof ModelError) throw error;
      return failedCheck(this.device, error instanceof ImageError ? "preprocessing" : "not opened", reason(error));
    }
  }

  /** Give the model's memory back. */
  async release() {
    await this.#session.release();
  }
}

/** Sentences that were said already. @type {Set<string>} */
const said = new Set();

/**
 * Say once that a file for an NPU is slow on a CPU, and how far it is from float32 there.
 * @param {import("./metadata.mjs").Metadata} metadata
 */
function warnOfNpuFile({ measured }) {
  const sqnr = /** @type {any} */ (measured).drift?.sqnr;
  const found = typeof sqnr === "number" ? `${sqnr.toFixed(1)} dB` : "not measured";
  const sentence = `vit-edge: this model is for an NPU, and slower here than float32; its distance from float32 on the CPU of the export: ${found}`;
  if (!said.has(sentence)) console.warn(sentence);
  said.add(sentence);
}

/**
 * @param {Uint8Array} model
 * @param {string} expected
 */
async function checkDigest(model, expected) {
  if ((await digitsOf(model)) !== String(expected).trim().toLowerCase())
    throw new ModelError(`its SHA-256 is not the expected one, ${listed([String(expected)])}; do not use this file`);
}

/**
 * Check that inputs and outputs of the graph are those of its metadata.
 * @param {any} session
 * @param {import("./metadata.mjs").Metadata} metadata
 * @throws {ModelError} when they are not
 */
function checkSignature({ inputNames, outputNames, inputMetadata, outputMetadata }, { preprocess: { size }, labels, embedding, target }) {
  /** @type {[string, readonly string[], readonly any[] | undefined, [string, string, number[]][]][]} */
  const sides = [
    ["input", inputNames, inputMetadata, [["pixels", "uint8", [...size, 3]]]],
    ["output", outputNames, outputMetadata, [["logits", "float32", [labels.length]]]],
  ];
  if (embedding !== null) sides[1][3].push(["embedding", "float32", [embedding]]);
  for (const [side, names, described, expected] of sides) {
    const wanted = expected.map(([name]) => name).join(", ");
    if (names.join(", ") !== wanted)
      throw new ModelError(`expected the ${side}s ${wanted}, found ${listed([...names])}; export it again`);
    for (const [index, [name, type, rest]] of expected.entries()) {
      if (described === undefined) continue; // the runtime does not say
      const { type: found, shape } = described[index];
      if (found !== type || shape.slice(1).join() !== rest.join())
        throw new ModelError(`expected ${name} to be ${type} [batch, ${rest.join(", ")}], found ${found} [${listed([shape.join(", ")])}]; export it again`);
      if (typeof shape[0] === "number" && !(target === "npu" && shape[0] === 1))
        throw new ModelError(`the batch of its ${side} ${name} is fixed to ${shape[0]}, expected one that is free; export it again`);
    }
  }
}

/**
 * @param {Float32Array} logits
 * @param {import("./metadata.mjs").Metadata} metadata
 * @param {number} count of the candidates in `top`
 * @returns {Omit<Prediction, "logits" | "milliseconds">}
 */
function predict(logits, { labels, temperature, thresholds }, count) {
  if (!logits.every(Number.isFinite)) throw new ImageError("the model's answer to it is not finite");
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  const scores = thresholds ? Array.from(logits, (value) => 1 / (1 + Math.exp(-value))) : softmax(logits, temperature);
  const ranked = order.map((index) => ({ label: labels[index], index, score: scores[index] }));
  const top = ranked.slice(0, Math.max(1, count));
  if (!thresholds) return { ...top[0], top, labels: null };
  const reached = ranked.filter(({ index, score }) => score >= thresholds[index]);
  return { ...(reached[0] ?? { label: null, index: null, score: top[0].score }), top, labels: reached };
}

/** @param {Float32Array} logits @param {number} temperature what they are divided by */
function softmax(logits, temperature) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(logits, (value) => Math.exp((value - most) / temperature));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** @param {unknown} error what a library threw: one line of it */
export const reason = (error) => String(error instanceof Error ? error.message : error).replace(/\s+/g, " ").replace(/[. ]+$/, "").slice(0, 300);
