// Outline of an .onnx file, read from its bytes without a protobuf library, as runtime/model_file/onnx_file.py reads it.
// ONNX Runtime's parser is lenient: it drops the upper bits of long tags, merges a message that is given twice, takes the
// last of two values, and steps over what it does not know. What it sees must be what is seen here, so only the one form in
// which protobuf writes a message is accepted, with the fields that an exported model can have.

import { ModelError } from "./errors.mjs";
import { listed } from "./spec.mjs";

/**
 * The facts that decide whether a file is a model file of vit-edge and safe to open.
 * @typedef {object} Outline
 * @property {number} irVersion
 * @property {Map<string, number>} opsets
 * @property {Map<string, string>} metadata
 * @property {Set<string>} domains that nodes name; "" is ai.onnx, which need not be named
 * @property {boolean} externalData some tensor's values are in another file
 * @property {boolean} subgraphs a node carries a graph (If, Loop, Scan), or the model describes its training
 * @property {boolean} functions the model defines operators of its own
 */

/**
 * By message, the fields that an exported model can have: the numbers of onnx.proto, and what each holds, with * where it
 * is repeated. Packed arrays and what is never looked into are bytes.
 * @type {Record<string, string>}
 */
const MESSAGES = {
  model: "1 int, 2 text, 3 text, 4 text, 5 int, 6 text, 7 graph, 8 opset*, 14 property*, 20 subgraph*, 25 function*",
  opset: "1 text, 2 int",
  property: "1 text, 2 text",
  graph: "1 node*, 2 text, 5 tensor*, 10 text, 11 value*, 12 value*, 13 value*, 15 sparse tensor*, 16 entry*",
  node: "1 text*, 2 text*, 3 text, 4 text, 5 attribute*, 6 text, 7 domain, 9 entry*",
  attribute:
    "1 text, 2 float, 3 int, 4 bytes, 5 tensor, 6 subgraph, 7 float*, 8 int*, 9 bytes*, 10 tensor*, 11 subgraph*, " +
    "13 text, 20 int, 22 sparse tensor, 23 sparse tensor*",
  tensor:
    "1 int*, 2 int, 4 bytes, 5 bytes, 6 bytes*, 7 bytes, 8 text, 9 bytes, 10 bytes, 11 bytes, 12 text, 13 place*, " +
    "14 int, 16 entry*",
  "sparse tensor": "1 tensor, 2 tensor, 3 int*",
  place: "1 text, 2 text",
  entry: "1 text, 2 text",
  value: "1 text, 2 type, 3 text, 4 entry*",
  type: "1 tensor type, 6 text",
  "tensor type": "1 int, 2 shape",
  shape: "1 dimension*",
  dimension: "1 int, 2 text, 3 text",
};
const [VARINT, BYTES, FIXED32] = [0, 2, 5];

/** By message and tag, as it stands in front of a field: what the field holds, and if it is repeated. */
const FIELDS = new Map(
  Object.entries(MESSAGES).map(([message, fields]) => {
    const byTag = fields.split(", ").map((each) => {
      const [, number, kind, star] = /** @type {string[]} */ (/^(\d+) ([a-z ]+)(\*?)$/.exec(each));
      const wire = kind === "int" ? VARINT : kind === "float" ? FIXED32 : BYTES;
      return /** @type {[number, {kind: string, repeated: boolean}]} */ ([8 * Number(number) + wire, { kind, repeated: star === "*" }]);
    });
    return [message, new Map(byTag)];
  }),
);

/** @param {string} what @returns {never} */
function refuse(what) {
  throw new ModelError(`not an ONNX model, or a damaged one: ${what}; export it again, or copy it again`);
}

/**
 * Read the outline of a serialized ModelProto.
 * @param {Uint8Array} model
 * @returns {Outline}
 * @throws {ModelError} when the bytes are not one, or one in another form than protobuf writes
 */
export function summarize(model) {
  /** @type {Outline} */
  const found = {
    irVersion: 0, opsets: new Map(), metadata: new Map(), domains: new Set(), externalData: false, subgraphs: false,
    functions: false,
  };
  let graphs = 0;
  for (const [number, kind, value] of read("model", model)) {
    if (number === 1) found.irVersion = version(value);
    else if (kind === "opset") {
      const opset = new Map([...read(kind, value)].map(([field, , inner]) => [field, inner]));
      add(found.opsets, domainOf(opset.get(1)), version(opset.get(2) ?? 0), "opsets");
    } else if (kind === "property") add(found.metadata, ...pair(kind, value), "metadata entries");
    else {
      if (kind === "graph") graphs++;
      lookInto(kind, value, found);
    }
  }
  if (!found.irVersion || !graphs || !found.opsets.size) refuse("it has no version, graph or operator set");
  return found;
}

/** Note the facts in a field of this kind, and in all that it holds. @param {string} kind @param {any} value @param {Outline} found */
function lookInto(kind, value, found) {
  if (kind === "subgraph") found.subgraphs = true;
  else if (kind === "function") found.functions = true;
  else if (kind === "tensor") lookIntoTensor(value, found);
  else if (FIELDS.has(kind)) {
    let domain;
    for (const [, inner, each] of read(kind, value)) {
      if (inner === "domain") domain = each;
      else lookInto(inner, each, found);
    }
    if (kind === "node") found.domains.add(domainOf(domain));
  }
}

/** @param {Uint8Array} message @param {Outline} found */
function lookIntoTensor(message, found) {
  const places = new Map();
  let outside = 0;
  for (const [number, kind, value] of read("tensor", message)) {
    if (kind === "place") add(places, ...pair(kind, value), "places of one tensor");
    else if (number === 14) outside = value;
    else lookInto(kind, value, found);
  }
  if (![0, 1].includes(outside) || (outside === 1) !== Boolean(places.get("location")))
    refuse("a tensor whose values are in another file, and are not");
  if (outside) found.externalData = true;
}

/**
 * The fields of one message, in order: number, what it holds, and an integer or the bytes of it.
 * @param {string} kind
 * @param {Uint8Array} message
 * @returns {Generator<[number, string, any]>}
 */
function* read(kind, message) {
  const fields = /** @type {Map<number, {kind: string, repeated: boolean}>} */ (FIELDS.get(kind));
  const seen = new Set();
  let at = 0;
  /** A number of 64 bits at most, in as few bytes as it needs; above 2^53 it is rounded. */
  const varint = () => {
    for (let value = 0, count = 0; count < 10; count++) {
      if (at >= message.length) refuse("it is cut short");
      const byte = message[at++];
      value += (byte & 0x7f) * 2 ** (7 * count);
      if (byte >= 0x80) continue;
      if ((byte === 0 && count) || (count === 9 && byte > 1)) break;
      return value;
    }
    return refuse("a number of more than 64 bits, or longer than it need be");
  };
  while (at < message.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    const field = fields.get(tag);
    if (field === undefined) return refuse(`field ${number} of type ${tag % 8} in message ${kind}, which no exported model has`);
    if (!field.repeated && seen.has(tag)) refuse(`field ${number} twice in message ${kind}, which holds it once`);
    seen.add(tag);
    if (field.kind === "int") {
      yield [number, field.kind, varint()];
      continue;
    }
    const size = field.kind === "float" ? 4 : varint();
    if (size > message.length - at) refuse("it is cut short");
    yield [number, field.kind, message.subarray(at, at + size)];
    at += size;
  }
}

/** @param {Map<string, any>} entries @param {string} key @param {unknown} value @param {string} what */
function add(entries, key, value, what) {
  if (entries.has(key)) throw new ModelError(`two ${what} are called ${listed([JSON.stringify(key)])}; export the model again`);
  entries.set(key, value);
}

/** The key and the value of a StringStringEntryProto. @param {string} kind @param {Uint8Array} message @returns {[string, string]} */
function pair(kind, message) {
  const entry = new Map([...read(kind, message)].map(([number, , value]) => [number, value]));
  return [text(entry.get(1)), text(entry.get(2))];
}

/** @param {Uint8Array | undefined} value */
function domainOf(value) {
  const name = text(value);
  return name === "ai.onnx" ? "" : name;
}

/** @param {number} value */
function version(value) {
  return value < 2 ** 63 ? value : refuse("a version below zero");
}

/** @param {Uint8Array | undefined} value */
function text(value) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(value);
  } catch {
    return refuse("text that is not UTF-8");
  }
}
