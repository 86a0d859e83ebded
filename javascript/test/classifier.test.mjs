import assert from "node:assert/strict";
import { test } from "node:test";
import { createHash } from "node:crypto";
import { Classifier, ImageError, ModelError } from "../index.mjs";
import { DOCUMENT, imageOf, model } from "./helpers.mjs";

/** An ONNX Runtime whose model always gives these logits. */
const runtimeOf = (logits) => ({
  Tensor: class {},
  InferenceSession: {
    create: async () => ({
      inputNames: ["pixels"], outputNames: ["logits"], release: async () => {},
      run: async () => ({ logits: { data: Float32Array.from(logits) } }),
    }),
  },
});
const classify = async (logits, changes = {}) =>
  (await Classifier.open(model({ ...DOCUMENT, ...changes }), { runtime: runtimeOf(logits), top: 2 })).classify(imageOf(8, 8));

const pixels = (...shape) => ({ name: "pixels", isTensor: true, type: "uint8", shape });
const logits = (...shape) => ({ name: "logits", isTensor: true, type: "float32", shape });

test("a file for an NPU takes one image at a time, and says once that it is slow here", async (context) => {
  const warn = context.mock.method(console, "warn", () => {});
  const fixed = { ...runtimeOf([1, 2, 3]) };
  const create = fixed.InferenceSession.create;
  fixed.InferenceSession = { create: async (...given) => ({ ...(await create(...given)), inputMetadata: [pixels(1, 32, 32, 3)], outputMetadata: [logits(1, 3)] }) };
  for (let times = 0; times < 2; times++)
    await Classifier.open(model({ ...DOCUMENT, target: "npu", variant: "int8", exact_on: ["x86-vnni", "arm64", "wasm"], measured: { drift: { sqnr: 42.5 } } }), { runtime: fixed });
  assert.equal(warn.mock.callCount(), 1);
  assert.match(warn.mock.calls[0].arguments[0], /for an NPU.*42\.5 dB/);
});

for (const [input, output, message] of [
  [pixels(1, 32, 32, 3), logits("batch", 3), /the batch of its input pixels is fixed to 1, expected one that is free/],
  [pixels(4, 32, 32, 3), logits(4, 3), /the batch of its input pixels is fixed to 4/],
  [pixels("batch", 32, 32, 3), logits(2, 3), /the batch of its output logits is fixed to 2/],
  [pixels("batch", 24, 32, 3), logits("batch", 3), /expected pixels to be uint8 \[batch, 32, 32, 3\], found uint8 \[batch, 24, 32, 3\]/],
  [{ ...pixels("batch", 32, 32, 3), type: "float32" }, logits("batch", 3), /expected pixels to be uint8/],
  [pixels("batch", 32, 32, 3), logits("batch", 4), /expected logits to be float32 \[batch, 3\], found float32 \[batch, 4\]/],
  [pixels("batch", 32, 32, 3), logits("batch", 3), null],
  [pixels("", 32, 32, 3), logits("", 3), null],
])
  test(`a graph with ${input.type} ${input.shape} and ${output.shape}, opened as its metadata says`, async () => {
    const runtime = runtimeOf([1, 2, 3]);
    const create = async () => ({ ...(await runtimeOf([1, 2, 3]).InferenceSession.create()), inputMetadata: [input], outputMetadata: [output] });
    const opened = Classifier.open(model(), { runtime: { ...runtime, InferenceSession: { create } } });
    if (message === null) assert.ok(await opened);
    else await assert.rejects(opened, message);
  });

test("the best classes, with their scores", async () => {
  const { label, index, top } = await classify([0, Math.log(2), 0]);
  assert.deepEqual([label, index, top.length], ["green", 1, 2]);
  assert.ok(Math.abs(top[0].score - 0.5) < 1e-6 && top[1].index === 0); // of equals the first
  const hotter = await classify([0, Math.log(4), 0], { temperature: 2 });
  assert.ok(Math.abs(hotter.score - 0.5) < 1e-6);
});

test("several labels per image: those that reach their thresholds", async () => {
  const { label, index, score, top, labels } = await classify([3, 1, 2], { thresholds: [0.99, 0.5, 0.5] });
  assert.deepEqual(labels.map((each) => each.label), ["blue", "green"]);
  assert.deepEqual([label, index, score], ["blue", 2, labels[0].score]);
  assert.ok(Math.abs(score - 1 / (1 + Math.exp(-2))) < 1e-12);
  assert.deepEqual(top.map((each) => each.label), ["red", "blue"]); // by score, whatever their thresholds
  const none = await classify([3, 1, 2], { thresholds: [1, 1, 1] });
  assert.deepEqual([none.label, none.index, none.labels, none.score], [null, null, [], none.top[0].score]);
  const far = await classify([0, 3e38, -3e38], { thresholds: [0.5, 1, 0] });
  assert.deepEqual(far.labels.map((each) => each.score), [1, 0.5, 0]);
  assert.equal((await classify([1, 2, 3])).labels, null);
});

for (const wrong of [NaN, Infinity, -Infinity])
  test(`a logit of ${wrong} is no answer, as in Python`, async () => {
    for (const at of [0, 1, 2])
      await assert.rejects(classify([1, 2, 3].map((logit, index) => (index === at ? wrong : logit))), (error) => {
        assert.ok(error instanceof ImageError);
        assert.equal(error.message, "the model's answer to it is not finite");
        return true;
      });
  });

test("a model of the known digest opens, and no other", async () => {
  const bytes = model();
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  const open = (options) => Classifier.open(bytes, { runtime: runtimeOf([1, 2, 3]), ...options });
  for (const same of [sha256, ` ${sha256.toUpperCase()}\n`]) await open({ sha256: same });
  for (const other of ["0".repeat(64), "", sha256.slice(1), null, 1])
    await assert.rejects(open({ sha256: other }), (error) => {
      assert.ok(error instanceof ModelError);
      assert.match(error.message, /its SHA-256 is not the expected one/);
      assert.ok(!error.message.includes(sha256)); // found digests are not told
      return true;
    });
});
