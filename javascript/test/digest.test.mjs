import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { sha256 } from "../digest.mjs";
import { Classifier, ModelError, readMetadata } from "../index.mjs";
import { DOCUMENT, model, random, whole } from "./helpers.mjs";

/** An ONNX Runtime that opens everything: what is refused is refused by this package. */
let released = 0;
const runtime = {
  Tensor: class {},
  InferenceSession: { create: async () => ({ inputNames: ["pixels"], outputNames: ["logits"], release: async () => released++ }) },
};
const open = (bytes) => Classifier.open(bytes, { runtime });
const opens = (bytes) =>
  open(bytes).then(
    () => true,
    (error) => (assert.ok(error instanceof ModelError, error.stack), false),
  );

test("SHA-256 in plain JavaScript is that of Node", () => {
  const draw = random(1);
  for (let length = 0; length < 260; length++) {
    const bytes = Uint8Array.from({ length }, () => draw(256));
    assert.equal(Buffer.from(sha256(bytes)).toString("hex"), createHash("sha256").update(bytes).digest("hex"));
  }
});

test("a flipped bit never opens: 1,000 anywhere, and each of the last entry", async () => {
  const bytes = whole();
  assert.ok(await opens(bytes));
  const draw = random(2);
  const places = Array.from({ length: 1000 }, () => draw(8 * bytes.length));
  for (let place = 8 * (bytes.length - 85); place < 8 * bytes.length; place++) places.push(place);
  for (const place of places) {
    const changed = Uint8Array.from(bytes);
    changed[place >> 3] ^= 1 << (place & 7);
    assert.equal(await opens(changed), false, `bit ${place}`);
    assert.throws(() => readMetadata(changed), ModelError, `bit ${place}`);
  }
});

test("cut short, longer, with another end", async () => {
  const bytes = whole();
  for (const changed of [
    bytes.subarray(0, -1), bytes.subarray(0, -85), Uint8Array.from([...bytes, 0x32, 1, 65]), Uint8Array.from([0x12, 1, 65, ...bytes]),
    Uint8Array.from([...bytes, ...bytes.subarray(-85)]),
  ])
    assert.equal(await opens(changed), false);
});

test("the reason, once ONNX Runtime has had its say, and nothing is kept", async () => {
  const changed = Uint8Array.from([0x12, 1, 65, ...whole()]);
  const before = released;
  await assert.rejects(open(changed), /bytes are not those that were written \(it ends with another SHA-256\)/);
  assert.equal(released, before + 1);
  const refusing = { ...runtime, InferenceSession: { create: async () => Promise.reject(new Error("no such operator")) } };
  await assert.rejects(Classifier.open(changed, { runtime: refusing }), /does not accept it \(no such operator\)/);
});

test("a file without a digest opens and says so, whole ones without the engine's own SHA-256 too", async () => {
  assert.equal((await open(model())).metadata.digest, undefined);
  assert.equal((await open(whole())).metadata.digest, "sha256");
  assert.equal(readMetadata(whole()).digest, "sha256");
  const shared = new Uint8Array(new SharedArrayBuffer(whole().length));
  shared.set(whole());
  assert.ok(await opens(shared));
  const own = Object.getOwnPropertyDescriptor(globalThis, "crypto");
  Object.defineProperty(globalThis, "crypto", { value: {}, configurable: true }); // as on a page over plain http
  try {
    assert.ok(await opens(whole()));
    assert.equal(await opens(Uint8Array.from([0x12, 1, 65, ...whole()])), false);
  } finally {
    Object.defineProperty(globalThis, "crypto", own);
  }
  assert.throws(() => readMetadata(model({ ...DOCUMENT, digest: "md5" })), /digest must be sha256 or null/);
  assert.throws(() => readMetadata(model({ ...DOCUMENT, digest: "sha256" })), /not those that were written/);
});
