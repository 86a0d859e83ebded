import assert from "node:assert/strict";
import { test } from "node:test";
import { ImageError, ModelError, preprocess, reduced } from "../index.mjs";
import { GOLDEN, imageOf, SPEC } from "./helpers.mjs";

for (const { image, alpha, pixels, ...fields } of GOLDEN)
  test(`golden bytes: ${image.join("x")} ${fields.resize} ${fields.interpolation}${alpha ? " alpha" : ""}`, () => {
    const found = preprocess(imageOf(...image, alpha), { exif: true, decode: "full", ...fields });
    assert.equal(Buffer.from(found).toString("hex"), pixels);
  });

test("an image that is no image of RGBA is refused", () => {
  for (const [image, message] of [
    [{ width: 0, height: 3, data: new Uint8Array() }, /no pixels/],
    [{ width: 2, height: 2, data: new Uint8Array(12) }, /expected 16 bytes/],
    [{ width: 2, height: 2, data: Array(16).fill(0) }, /expected 16 bytes/],
    [{ width: 10_000, height: 10_000, data: new Uint8Array(4) }, /more than the limit/],
    [undefined, /no pixels/],
  ])
    assert.throws(() => preprocess(image, SPEC), (error) => error instanceof ImageError && message.test(error.message));
});

test("rows that would take gigabytes are refused, and a cut that sees few rows is not", () => {
  const narrow = { width: 1, height: 1_000_000, data: new Uint8Array(4_000_000).fill(255) };
  assert.throws(() => preprocess(narrow, { ...SPEC, size: [224, 224] }), /224 x 1000000 pixels/);
  const seen = preprocess(narrow, { ...SPEC, size: [224, 224], resize: "crop", resize_to: 256 });
  assert.ok(seen.every((value) => value === 255));
});

test("a wrong specification is the model's fault", () => {
  for (const change of [{ size: [0, 1] }, { interpolation: "cubic" }, { exif: 1 }, { resize_to: 64 }, { more: 1 }])
    assert.throws(() => preprocess(imageOf(4, 4), { ...SPEC, ...change }), ModelError);
});

test("a large image is reduced to means of blocks, never below twice the size", () => {
  const spec = { ...SPEC, size: [8, 8] };
  assert.equal(reduced(imageOf(31, 40), spec).width, 40);
  assert.deepEqual([reduced(imageOf(33, 70), spec).width, reduced(imageOf(33, 70), spec).height], [35, 17]);
  assert.equal(reduced(imageOf(64, 70), spec).width, 18);
  assert.equal(reduced(imageOf(640, 640), spec).width, 80);
  assert.equal(reduced(imageOf(640, 640), { ...spec, decode: "full" }).width, 640);
  const image = imageOf(33, 70);
  const { data } = reduced(image, spec);
  const mean = (x, y, columns, rows, channel) => {
    let sum = 0;
    for (let v = y; v < y + rows; v++) for (let u = x; u < x + columns; u++) sum += image.data[4 * (v * 70 + u) + channel];
    return Math.floor(sum / (columns * rows) + 0.5);
  };
  for (const channel of [0, 1, 2]) {
    assert.equal(data[4 * (3 * 35 + 5) + channel], mean(10, 6, 2, 2, channel));
    assert.equal(data[4 * (16 * 35 + 34) + channel], mean(68, 32, 2, 1, channel)); // the last row has half a block
  }
  assert.ok(data.every((value, at) => at % 4 !== 3 || value === 255));
});
