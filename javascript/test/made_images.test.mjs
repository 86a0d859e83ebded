import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { ModelError } from "../errors.mjs";
import { makeImage } from "../made_images.mjs";

const table = JSON.parse(readFileSync(new URL("../../tests/runtime/self_test/made_images.json", import.meta.url), "utf-8"));

test("made images have the bytes that Python makes", () => {
  assert.ok(table.length >= 16);
  for (const { seed, height, width, sha256 } of table) {
    const image = makeImage(seed, height, width);
    assert.equal(image.length, height * width * 3);
    assert.equal(createHash("sha256").update(image).digest("hex"), sha256, `${seed}, ${height} x ${width}`);
  }
});

test("arguments beyond the limits are refused", () => {
  for (const wrong of [[-1, 8, 8], [2 ** 32, 8, 8], [0, 0, 8], [0, 8, 1025], [0.5, 8, 8], [0, "8", 8]])
    assert.throws(() => makeImage(...wrong), ModelError);
});
