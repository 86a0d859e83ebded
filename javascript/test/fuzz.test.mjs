// Random damage: every input gives an answer or one of the documented errors. ROUNDS=100000 node --test test/fuzz.test.mjs
// makes more of it. A failure prints the seed and the bytes.

import assert from "node:assert/strict";
import { test } from "node:test";
import jpeg from "jpeg-js";
import { PNG } from "pngjs";
import { ImageError, ModelError, preprocess, readMetadata, readOrientation } from "../index.mjs";
import { decodeImage } from "../node.mjs";
import { DOCUMENT, imageOf, model, modelWith, random, SPEC } from "./helpers.mjs";

const ROUNDS = Number(process.env.ROUNDS ?? 3000);
const SEED = Number(process.env.SEED ?? 1);

/** Change, cut, repeat or insert a few bytes. */
function damage(bytes, draw) {
  let changed = Uint8Array.from(bytes);
  for (let i = draw(6); i >= 0 && changed.length; i--) {
    const at = draw(changed.length);
    const length = draw(Math.min(20, changed.length - at) + 1);
    const kind = draw(4);
    if (kind === 0) changed[at] = draw(256);
    else if (kind === 1) changed[at] ^= 1 << draw(8);
    else if (kind === 2) changed = Uint8Array.from([...changed.subarray(0, at), ...changed.subarray(at + length)]);
    else changed = Uint8Array.from([...changed.subarray(0, at), ...changed.subarray(at, at + length), ...changed.subarray(at)]);
  }
  return changed;
}

function check(work, kinds, input) {
  try {
    return work();
  } catch (error) {
    assert.ok(kinds.some((kind) => error instanceof kind), `${error.stack}\n${input}`);
    assert.ok(error.message.length < 700 && !error.message.includes("\n"), error.message);
    return null;
  }
}

test("damaged model files", () => {
  const draw = random(SEED);
  let refused = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const bytes = damage(model(), draw);
    refused += check(() => readMetadata(bytes), [ModelError], Buffer.from(bytes).toString("hex")) === null;
  }
  assert.ok(refused > ROUNDS / 4 && refused < ROUNDS, `${refused} of ${ROUNDS} were refused`);
});

test("documents with other values in their places", () => {
  const draw = random(SEED);
  const odd = [null, true, 0, -1, 1.5, 1e308, "", "int8", "\ud800", [], [[]], [1, 2], {}, { size: 1 }, [224, 224], "__proto__"];
  for (let round = 0; round < ROUNDS; round++) {
    const document = structuredClone(DOCUMENT);
    const inner = draw(2) ? document.preprocess : document;
    const keys = Object.keys(inner);
    inner[draw(5) ? keys[draw(keys.length)] : "more"] = odd[draw(odd.length)];
    const text = JSON.stringify(document);
    const metadata = check(() => readMetadata(modelWith(["vit_edge", text])), [ModelError], text);
    if (metadata !== null && Math.max(...metadata.preprocess.size) < 512)
      assert.equal(preprocess(imageOf(7, 9), metadata.preprocess).length, 3 * metadata.preprocess.size[0] * metadata.preprocess.size[1]);
  }
});

test("images and specifications of any shape", () => {
  const draw = random(SEED);
  const pick = (...choices) => choices[draw(choices.length)];
  for (let round = 0; round < ROUNDS / 10; round++) {
    const spec = {
      size: [1 + draw(40), 1 + draw(40)], resize: pick("stretch", "crop"), resize_to: pick(null, null, 40 + draw(20)),
      interpolation: pick("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"), exif: true, decode: "full",
    };
    const image = imageOf(1 + draw(pick(3, 90, 900)), 1 + draw(pick(3, 90, 900)), draw(2) === 0);
    if (draw(20) === 0) image.data = image.data.subarray(draw(4) + 1);
    const input = JSON.stringify([image.width, image.height, spec]);
    const found = check(() => preprocess(image, spec), [ImageError, ModelError], input);
    if (found !== null) assert.equal(found.length, 3 * spec.size[0] * spec.size[1], input);
  }
});

test("a flat image stays flat, whatever the shapes", () => {
  const draw = random(SEED);
  for (let round = 0; round < ROUNDS / 10; round++) {
    const [width, height] = [1 + draw(300), 1 + draw(300)];
    const data = new Uint8Array(4 * width * height).fill(200).map((value, at) => (at % 4 === 3 ? 255 : value));
    const interpolation = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"][draw(6)];
    const spec = { ...SPEC, size: [1 + draw(50), 1 + draw(50)], interpolation, resize: draw(2) ? "crop" : "stretch" };
    const pixels = preprocess({ width, height, data }, spec);
    assert.ok(pixels.every((value) => value === 200), JSON.stringify([width, height, spec]));
  }
});

test("damaged image files", () => {
  const draw = random(SEED);
  const image = imageOf(24, 30);
  const files = [jpeg.encode(image, 80).data, PNG.sync.write(Object.assign(new PNG({ width: 30, height: 24 }), { data: Buffer.from(image.data) }))];
  let refused = 0;
  for (let round = 0; round < ROUNDS / 3; round++) {
    const bytes = damage(files[round % 2], draw);
    const input = Buffer.from(bytes).toString("hex");
    assert.ok([1, 2, 3, 4, 5, 6, 7, 8].includes(readOrientation(bytes)), input);
    const decoded = check(() => decodeImage(bytes, { ...SPEC, size: [8, 8] }), [ImageError], input);
    if (decoded === null) refused++;
    else check(() => preprocess(decoded, { ...SPEC, size: [8, 8] }), [ImageError], input);
  }
  assert.ok(refused > ROUNDS / 10, `${refused} were refused`);
});
