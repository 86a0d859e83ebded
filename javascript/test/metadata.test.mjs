import assert from "node:assert/strict";
import { test } from "node:test";
import { ModelError, readMetadata } from "../index.mjs";
import { DOCUMENT, field, model, modelWith, SPEC, varint } from "./helpers.mjs";

const refused = (bytes, message) =>
  assert.throws(() => readMetadata(bytes), (error) => error instanceof ModelError && message.test(error.message), String(message));

test("the document of a model", () => {
  assert.deepEqual(readMetadata(model()), DOCUMENT);
  const full = { ...DOCUMENT, target: "full-range", exact_on: ["x86-vnni", "arm64", "wasm"] };
  assert.deepEqual(readMetadata(model(full)), full);
});

test("what is no model of vit-edge says so", () => {
  refused(new Uint8Array(), /not an ONNX model/);
  refused(Buffer.from("not a model, but text"), /not an ONNX model/);
  refused(model().subarray(0, 200), /cut short/);
  refused(modelWith(["other", "1"]), /not made by vit-edge/);
  refused(modelWith(["vit_edge", "{}"], ["vit_edge", "{}"]), /two metadata entries/);
  refused(modelWith(["vit_edge", "{"]), /not JSON/);
  refused(modelWith(["vit_edge", "[]"]), /not a JSON object/);
  refused(Uint8Array.from([8, 10]), /no version, graph or operator set/);
  refused(Uint8Array.from([112, 1, 8, 10]), /field 14 of type 0 in message model/);
  refused("model.onnx", /bytes of an .onnx file/);
});

for (const [change, message] of [
  [{ version: 3 }, /newer vit-edge/],
  [{ version: true }, /version must be 2/],
  [{ version: 1 }, /older vit-edge/],
  [{ target: "full-range" }, /exact_on must be x86-vnni, arm64, wasm/],
  [{ exact_on: "x86" }, /exact_on must be/],
  [{ extra: 1 }, /unknown fields: extra/],
  [{ ["__proto__"]: 1 }, /unknown fields: __proto__/],
  [{ labels: [] }, /labels must be/],
  [{ labels: ["a", 1] }, /labels must be/],
  [{ labels: ["half \ud800 a pair"] }, /labels must be/],
  [{ variant: "int4" }, /variant must be one of float32/],
  [{ target: "vnni" }, /target vnni is called full-range now/],
  [{ target: "avx2" }, /target avx2 is called any-cpu now/],
  [{ thresholds: [0.5, 0.5] }, /thresholds must be null, or one number from 0 to 1 per label/],
  [{ thresholds: [0.5, 0.5, 1.5] }, /thresholds must be/],
  [{ thresholds: [0.5, 0.5, true] }, /thresholds must be/],
  [{ thresholds: "abc" }, /thresholds must be/],
  [{ thresholds: [0.5, 0.5, 0.5], temperature: 2 }, /with temperature 1/],
  [{ target: "toString" }, /target must be one of/],
  [{ producer: null }, /producer/],
  [{ source: [] }, /source must be/],
  [{ measured: null }, /measured must be/],
  [{ preprocess: [] }, /preprocess must be/],
  [{ preprocess: { ...SPEC, size: [224] } }, /size must be/],
  [{ preprocess: { ...SPEC, size: [224, 1e9] } }, /size must be/],
  [{ preprocess: { ...SPEC, decode: null } }, /decode must be/],
  [{ preprocess: { ...SPEC, exif: "yes" } }, /exif must be/],
  [{ preprocess: { ...SPEC, resize: "crop", resize_to: 16 } }, /resize_to must be 32/],
  [{ preprocess: { ...SPEC, resize_to: 40 } }, /resize_to has a meaning/],
  [{ preprocess: { ...SPEC, mean: 0 } }, /unknown preprocessing mean/],
])
  test(`refused: ${JSON.stringify(change).slice(0, 60)}`, () => refused(model({ ...DOCUMENT, ...change }), message));

for (const [value, message] of [
  ["1e999", /larger than a float64/],
  ['{"a": [-1e400]}', /larger than a float64/],
  ["1" + "0".repeat(400), /larger than a float64/],
  ['{"a": 1, "b": {}, "a" : 2}', /two fields "a"/],
  ['[[{"\\u0061": [{}], "a": 2}]]', /two fields "a"/],
])
  test(`no number and no name that readers take in two ways: ${value.slice(0, 30)}`, () => {
    const text = JSON.stringify({ ...DOCUMENT, source: { deep: "?" } }).replace('"?"', value);
    refused(modelWith(["vit_edge", text]), message);
    const right = { ...DOCUMENT, source: { text: value, twice: [{ a: 1 }, { a: 1 }], "": { a: { a: [] } }, small: 1e-300 } };
    assert.deepEqual(readMetadata(model(right)), right);
  });

test("a field of the document twice", () => {
  const text = JSON.stringify(DOCUMENT);
  refused(modelWith(["vit_edge", `{"labels": ["x"], ${text.slice(1)}`]), /two fields "labels"/);
  const spec = JSON.stringify(SPEC);
  refused(modelWith(["vit_edge", text.replace(spec, `{"exif": false, ${spec.slice(1)}`)]), /two fields "exif"/);
});

test("each missing field is named", () => {
  for (const name of Object.keys(DOCUMENT)) {
    const { [name]: _, ...rest } = DOCUMENT;
    refused(model(rest), name === "version" ? /version must be/ : new RegExp(`lacks ${name}`));
  }
  for (const name of Object.keys(SPEC)) {
    const { [name]: _, ...rest } = SPEC;
    refused(model({ ...DOCUMENT, preprocess: rest }), new RegExp(`lacks ${name}`));
  }
});

// A model whose graph is these bytes, and after it what is given besides.
const withGraph = (graph, ...more) => {
  const rest = [...model()];
  assert.deepEqual(rest.splice(2, 2), [58, 0]); // the empty graph
  return Uint8Array.from([8, 10, ...field(7, graph), ...rest.slice(2), ...more.flat()]);
};
const text = (value) => [...Buffer.from(value)];
const node = (...fields) => field(1, fields.flat());
const LOOP = node(field(5, field(6, [])));
const OTHER_DOMAIN = node(field(7, text("com.microsoft")));
const place = (key, value) => field(13, [...field(1, text(key)), ...field(2, text(value))]);
const OUTSIDE = field(5, [...place("location", "other.bin"), 112, 1]);

test("operators of ai.onnx open", () => {
  assert.deepEqual(readMetadata(withGraph([...node(field(4, text("Cast"))), ...node(field(7, text("ai.onnx")))])), DOCUMENT);
});

for (const [what, graph, message] of [
  ["a subgraph", LOOP, /functions or subgraphs/],
  ["several subgraphs", node(field(5, field(11, []))), /functions or subgraphs/],
  ["another domain", OTHER_DOMAIN, /not standard, of com\.microsoft/],
  ["weights in another file", OUTSIDE, /weights are in another file/],
  ["a constant in another file", node(field(5, field(5, OUTSIDE.slice(2)))), /weights are in another file/],
]) {
  test(`refused: ${what}`, () => refused(withGraph(graph), message));
  test(`refused: ${what}, hidden behind a tag above 32 bits`, () => {
    const hidden = [...varint(7 * 8 + 2 + 2 ** 32), ...varint(graph.length), ...graph];
    refused(withGraph([], hidden), /field 536870919 of type 2 in message model/);
  });
  test(`refused: ${what}, in a second graph that is merged`, () => refused(withGraph([], field(7, graph)), /field 7 twice/));
}

for (const [what, bytes, message] of [
  ["a function", withGraph([], field(25, [])), /functions or subgraphs/],
  ["training", withGraph([], field(20, [])), /functions or subgraphs/],
  ["a group", withGraph([], [...varint(999 * 8 + 3), ...varint(999 * 8 + 4)]), /field 999 of type 3/],
  ["an unknown field", withGraph([], field(999, [])), /field 999/],
  ["a long tag", withGraph([], [0xf2, 0x80, 0x80, 0x80, 0x80, 0x00, 0]), /longer than it need be/],
  ["a long length", withGraph([], [114, 0x80, 0x00]), /longer than it need be/],
  ["65 bits", withGraph([], [40, ...Array(9).fill(0xff), 0x02]), /more than 64 bits/],
  ["a version below zero", withGraph([], [40, 1, ...field(8, [16, ...Array(9).fill(0xff), 0x01])]), /below zero/],
  ["two domains of a node", withGraph(node(field(7, text("a")), field(7, []))), /field 7 twice in message node/],
  ["a tensor in a file and not", withGraph(field(5, [112, 1])), /in another file, and are not/],
  ["two operator sets of a domain", withGraph([], field(8, [...field(1, text("ai.onnx")), 16, 20])), /two opsets/],
])
  test(`refused: ${what}`, () => refused(bytes, message));
