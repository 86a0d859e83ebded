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

test("the best classes, with their scores", async () => {
  const { label, index, top } = await classify([0, Math.log(2), 0]);
  assert.deepEqual([label, index, top.length], ["green", 1, 2]);
  assert.ok(Math.abs(top[0].score - 0.5) < 1e-6 && top[1].index === 0); // of equals the first
  const hotter = await classify([0, Math.log(4), 0], { temperature: 2 });
  assert.ok(Math.abs(hotter.score - 0.5) < 1e-6);
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
