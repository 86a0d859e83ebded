// The JSON document that a vit-edge model carries: the value of its ONNX metadata entry "vit_edge".
// ONNX Runtime's JavaScript API does not give it, so it is read from the protobuf (`onnx.mjs`).
// The file is untrusted: every field is checked.

import { isIntactNow } from "./digest.mjs";
import { ModelError } from "./errors.mjs";
import { summarize } from "./onnx.mjs";
import { checkSpec, isObject, listed } from "./spec.mjs";
import { parseObject } from "./strict_json.mjs";

/**
 * What a model file says about itself.
 * @typedef {object} Metadata
 * @property {2} version of this document
 * @property {"float32" | "float16" | "int8"} variant
 * @property {import("./spec.mjs").Spec} preprocess what the model expects of an image
 * @property {string[]} labels by class index; not necessarily unique
 * @property {"any-cpu" | "full-range" | "npu"} target the form of INT8 weights
 * @property {string[]} exact_on the kinds of CPU on which default session options are exact; see `cpu.mjs`
 * @property {Record<string, unknown>} source where the model came from
 * @property {Record<string, unknown>} measured at export
 * @property {number} temperature what logits are divided by before softmax
 * @property {number[]} [thresholds] one per label, 0 to 1, of a model with several labels per image: scores are sigmoids of the
 *   logits, and an image has each label whose score reaches its threshold; absent: one label per image, by softmax
 * @property {number | null} embedding features of a second output `embedding`, null without one
 * @property {string} producer "vit-edge" and its version
 * @property {"sha256" | null} [digest] "sha256": the file ends with a digest, which is checked; null or absent: it has none
 */

const VERSION = 2;
const VARIANTS = ["float32", "float16", "int8"];
const MAX_CHARACTERS = 2 ** 24;
const FIELDS = [
  "embedding", "exact_on", "labels", "measured", "preprocess", "producer", "source", "target", "temperature", "variant",
  "version",
];
const OPTIONAL = ["digest", "thresholds"];
/** What is said of a file that is not the one that was written. */
export const DAMAGED =
  "its bytes are not those that were written (it ends with another SHA-256): it was damaged or changed; copy it again, or export it again";

/** By target: where default session options are exact, as runtime/model_file/targets.py has it. @type {Record<string, string[]>} */
const EXACT_ON = { "any-cpu": ["x86-vnni", "x86", "arm64", "wasm"], "full-range": ["x86-vnni", "arm64", "wasm"], npu: ["x86-vnni", "arm64", "wasm"] };
/** @type {Record<string, string>} */
const RENAMED = { any: "any-cpu", avx2: "any-cpu", vnni: "full-range", arm64: "full-range" };

/**
 * Read what a model file says about itself, once its digest has shown that it is whole.
 * @param {Uint8Array} model the bytes of an .onnx file
 * @returns {Metadata}
 * @throws {ModelError} when the bytes are no model of vit-edge, or a damaged one
 */
export function readMetadata(model) {
  const { metadata } = readEntries(model);
  if (metadata.digest && !isIntactNow(model)) throw new ModelError(DAMAGED);
  return metadata;
}

/**
 * The same without the digest, for whoever checks it in another way, and the text of the self-test: `self_test.mjs` reads it.
 * @param {Uint8Array} model
 * @returns {{metadata: Metadata, selfTest: string | undefined}}
 * @throws {ModelError}
 */
export function readEntries(model) {
  if (!(model instanceof Uint8Array)) throw new ModelError("expected the bytes of an .onnx file (Uint8Array)");
  const { metadata, domains, functions, subgraphs, externalData } = summarize(model);
  const text = metadata.get("vit_edge");
  if (text === undefined)
    throw new ModelError("an ONNX model, but not made by vit-edge (no metadata); make it with python -m export");
  const others = [...domains].filter((domain) => domain !== "").sort();
  if (others.length)
    throw new ModelError(`it uses operators that are not standard, of ${listed(others)}; export it again`);
  if (functions || subgraphs)
    throw new ModelError("it holds functions or subgraphs, which no exported model has; export it again");
  if (externalData)
    throw new ModelError("its weights are in another file, which JavaScript does not read; use an INT8 or float16 file");
  return { metadata: checkMetadata(text), selfTest: metadata.get("vit_edge_self_test") };
}

/**
 * Check the JSON document itself.
 * @param {string} text
 * @returns {Metadata}
 * @throws {ModelError}
 */
export function checkMetadata(text) {
  if (text.length > MAX_CHARACTERS) throw new ModelError(`its metadata has more than ${MAX_CHARACTERS} characters`);
  const document = parseObject(text, "metadata");
  const { version } = document;
  if (Number.isInteger(version) && version > VERSION)
    throw new ModelError(`a newer vit-edge wrote it (metadata version ${version}); update this package`);
  if (version === 1) throw new ModelError("an older vit-edge wrote it (metadata version 1); export it again");
  if (version !== VERSION) throw new ModelError(`metadata version must be ${VERSION}, found ${JSON.stringify(version)}`);
  const keys = Object.keys(document);
  const unknown = keys.filter((key) => !FIELDS.includes(key) && !OPTIONAL.includes(key));
  if (unknown.length) throw new ModelError(`its metadata has unknown fields: ${listed(unknown)}`);
  const missing = FIELDS.filter((field) => !keys.includes(field));
  if (missing.length) throw new ModelError(`its metadata lacks ${listed(missing)}`);
  oneOf("variant", document.variant, VARIANTS);
  if (Object.hasOwn(RENAMED, document.target))
    throw new ModelError(`target ${document.target} is called ${RENAMED[document.target]} now; export the model again`);
  oneOf("target", document.target, Object.keys(EXACT_ON));
  if (JSON.stringify(document.exact_on) !== JSON.stringify(EXACT_ON[document.target]))
    throw new ModelError(`exact_on must be ${EXACT_ON[document.target].join(", ")} for ${document.target}`);
  const { embedding, temperature } = document;
  if (embedding !== null && !(Number.isInteger(embedding) && embedding > 0))
    throw new ModelError(`embedding must be null or 1 and more, found ${listed([JSON.stringify(embedding)])}`);
  if (!Array.isArray(document.labels) || !document.labels.every(isText) || !(document.labels.length || embedding))
    throw new ModelError("labels must be a list of at least one name, all of them text; only an embedding has none");
  if (typeof temperature !== "number" || !(temperature >= 0.01 && temperature <= 100))
    throw new ModelError(`temperature must be 0.01 to 100, found ${listed([JSON.stringify(temperature)])}`);
  const { thresholds = null, labels } = document;
  const isShare = (/** @type {unknown} */ each) => typeof each === "number" && each >= 0 && each <= 1;
  const perLabel = Array.isArray(thresholds) && thresholds.length === labels.length && labels.length > 0 && thresholds.every(isShare);
  if (thresholds !== null && !(perLabel && temperature === 1))
    throw new ModelError("thresholds must be null, or one number from 0 to 1 per label, with temperature 1");
  if (!["sha256", null].includes(document.digest ?? null))
    throw new ModelError(`digest must be sha256 or null, found ${listed([JSON.stringify(document.digest)])}`);
  if (!isText(document.producer)) throw new ModelError("producer must be text");
  for (const name of ["source", "measured"])
    if (!isObject(document[name])) throw new ModelError(`${name} must be a JSON object`);
  checkSpec(document.preprocess);
  return /** @type {Metadata} */ (/** @type {unknown} */ (document));
}

/** @param {string} name @param {unknown} found @param {string[]} choices */
function oneOf(name, found, choices) {
  if (typeof found !== "string" || !choices.includes(found))
    throw new ModelError(`${name} must be one of ${choices.join(", ")}, found ${listed([JSON.stringify(found)])}`);
}

/** Text that can be written as UTF-8: JSON can say half a surrogate pair. @param {unknown} value */
function isText(value) {
  return typeof value === "string" && !/\p{Surrogate}/u.test(value);
}
