import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { Classifier, ImageError, ModelError, preprocess } from "../index.mjs";
import { makeImage } from "../made_images.mjs";
import { parseSelfTest } from "../self_test.mjs";
import { DOCUMENT, imageOf, modelWith } from "./helpers.mjs";

const LABELS = ["red", "green", "blue"];
const SIZE = [50, 41];
const rgba = (rgb, [height, width]) => {
  const data = new Uint8Array(4 * height * width).fill(255);
  for (let at = 0; at < height * width; at++) data.set(rgb.subarray(3 * at, 3 * at + 3), 4 * at);
  return { width, height, data };
};
const SEEDS = [1, 2, 3];
const PIXELS = SEEDS.map((seed) => preprocess(rgba(makeImage(seed, ...SIZE), SIZE), DOCUMENT.preprocess));

/** A linear model: the answers of a device that is right. */
const answer = (pixels) => LABELS.map((_, index) => pixels.reduce((sum, value, at) => sum + value * Math.sin(at * (index + 1) + index) * 1e-2, 0));
const base64 = (values) => Buffer.from(Float32Array.from(values).buffer).toString("base64");
const digest = (bytes) => createHash("sha256").update(bytes).digest("hex");
const topOf = (logits, labels = LABELS) => [...logits.keys()].sort((a, b) => logits[b] - logits[a]).map((index) => [index, labels[index]]);

function documentOf(change = (answers) => answers) {
  const answers = PIXELS.map(answer);
  return {
    version: 1, images: SEEDS.map((made) => ({ made, size: SIZE })), pixels: PIXELS.map(digest), means: SEEDS.map(() => null), columns: null,
    outputs: { logits: { file: base64(answers.flat()), float32: base64(change(answers.flat())) } },
    top: answers.map((logits) => topOf(logits)), kernels: { Gemm: 1 }, cpu: { kind: "x86", name: "some CPU" }, runtime: "onnxruntime 1.30.0",
    latency_ms: { file: 1, float32: 2 },
  };
}

/** A classifier whose device computes `run` from the pixels. */
function open(run, { document = documentOf(), device = "wasm", metadata = {}, decode } = {}) {
  const session = {
    inputNames: ["pixels"], outputNames: ["logits"], release: async () => {},
    run: async ({ pixels }) => ({ logits: { data: Float32Array.from(run(pixels.data)) } }),
  };
  const Tensor = class { constructor(_, data) { this.data = data; } };
  const entries = [["vit_edge", JSON.stringify({ ...DOCUMENT, ...metadata })]];
  if (document) entries.push(["vit_edge_self_test", typeof document === "string" ? document : JSON.stringify(document)]);
  return Classifier.open(modelWith(...entries), { runtime: { InferenceSession: { create: async () => session }, Tensor }, device, decode });
}
/** Noise of so many dB below the answers. */
const noisy = (decibels) => (pixels) => {
  const logits = answer(pixels);
  const size = Math.sqrt(logits.reduce((sum, value) => sum + value ** 2, 0) / logits.length) * 10 ** (-decibels / 20);
  return logits.map((value, index) => value + size * (index % 2 ? 1 : -1));
};
const swapped = (pixels) => pixels.map((_, at) => pixels[at - (at % 3) + 2 - (at % 3)]);

test("a device that is right", async () => {
  const check = await (await open(answer)).check();
  assert.equal(check.verdict, "passed: 3 of 3 labels equal, 200.0 dB on wasm (minimum: 90.0 dB)");
  assert.deepEqual(
    [check.passed, check.fault, check.images, check.preprocessing_equal, check.labels_equal, check.sqnr_file, check.variant],
    [true, null, 3, true, 3, 200, "float32"],
  );
  assert.ok(check.latency_ms >= 0);
  assert.equal((await (await open(answer)).check({ images: 2 })).images, 2);
});

const WRONG = (pixels) => answer(pixels).map((value) => -value);
for (const [fault, run, options, exact] of [
  ["channels", (pixels) => answer(swapped(pixels)), { device: "webgpu" }],
  ["pixels cast to 0 and 1", (pixels) => answer(pixels.map((value) => Math.min(value, 1))), { device: "webgpu" }],
  ["low precision", noisy(40), { device: "webgpu" }, answer],
  ["low precision", noisy(40), { device: "webgpu" }],
  ["wrong numbers", WRONG, { device: "webgpu" }, answer],
  ["wrong numbers", (pixels) => answer(pixels).map(() => NaN), { device: "webgpu" }, answer],
  ["weights", noisy(40), { device: "webgpu" }, noisy(40)],
  ["weights", noisy(40), { device: "wasm" }],
  ["weights", WRONG, { device: "cpu" }, WRONG],
  ["saturating kernels", WRONG, { device: "cpu" }, answer],
])
  test(`a device with the fault "${fault}", ${JSON.stringify(options)}${exact ? ", beside an exact one" : ""}`, async () => {
    let released = 0;
    const openExact = async () => {
      const other = await open(exact, { device: "wasm" });
      other.release = async () => void released++;
      return other;
    };
    const check = await (await open(run, options)).check(exact && { openExact });
    assert.deepEqual([check.passed, check.fault], [false, fault], check.verdict);
    assert.ok(check.verdict.startsWith(`${fault}: `));
    assert.equal(released, exact ? 1 : 0);
  });

test("the thresholds by device and variant", async () => {
  for (const [device, variant, minimum] of [
    ["wasm", "float32", 90], ["cpu", "float32", 90], ["webgpu", "float32", 60], ["webgpu", "float16", 25], ["wasm", "float16", 25],
  ])
    assert.equal((await (await open(answer, { device, metadata: { variant } })).check()).minimum, minimum);
  const loud = documentOf((values) => values.map((value, at) => value * (at % 2 ? 1.01 : 0.99))); // 40 dB of quantization
  for (const [decibels, passed] of [[38, true], [36, false]]) {
    const check = await (await open(noisy(decibels), { document: loud, metadata: { variant: "int8" } })).check();
    assert.ok(Math.abs(check.minimum - 37) < 0.2 && check.passed === passed, check.verdict);
  }
});

test("labels of another file, and other preprocessing, are found before any number", async () => {
  const labels = await (await open(answer, { metadata: { labels: ["green", "red", "blue"] } })).check();
  assert.equal(labels.fault, "labels");
  assert.match(labels.verdict, /is (green|red), in the self-test (green|red): labels of another file/);
  const other = await (await open(answer, { metadata: { preprocess: { ...DOCUMENT.preprocess, interpolation: "bicubic" } } })).check();
  assert.deepEqual([other.fault, other.preprocessing_equal], ["preprocessing", false]);
});

test("a device that cannot run it, and a file without a self-test", async () => {
  const broken = await (await open(() => { throw new Error("no f16"); })).check();
  assert.deepEqual([broken.fault, broken.verdict], ["not opened", "not opened: no f16"]);
  const none = await (await open(answer, { document: null })).check();
  assert.deepEqual([none.passed, none.fault], [false, "no self-test"]);
});

/** A document whose one image is a JPEG that `decode` gives other pixels for, `by` levels away. */
async function checkPhoto(by) {
  const image = imageOf(64, 48);
  const pixels = preprocess(image, DOCUMENT.preprocess);
  const means = Array.from({ length: 8 * 8 * 3 }, (_, block) => {
    const [channel, column, row] = [block % 3, Math.floor(block / 3) % 8, Math.floor(block / 24)];
    let sum = 0;
    for (let y = 0; y < 4; y++) for (let x = 0; x < 4; x++) sum += pixels[3 * ((4 * row + y) * 32 + 4 * column + x) + channel];
    return Math.round(sum / 16);
  });
  const document = {
    ...documentOf(), images: [{ jpeg: Buffer.from("photo").toString("base64") }], pixels: [digest(pixels)],
    means: [Buffer.from(means).toString("base64")], top: [topOf(answer(pixels))],
    outputs: { logits: { file: base64(answer(pixels)), float32: base64(answer(pixels)) } },
  };
  const decode = (file) => {
    if (Buffer.from(file).toString() !== "photo") throw new ImageError("another photo");
    return { ...image, data: image.data.map((value, at) => (at % 4 === 3 ? 255 : Math.min(255, value + by))) };
  };
  return (await open(() => answer(pixels), { document, decode })).check();
}

test("a photo that another decoder reads a little differently", async () => {
  assert.equal((await checkPhoto(0)).passed, true);
  assert.equal((await checkPhoto(1)).passed, true);
  assert.equal((await checkPhoto(8)).fault, "preprocessing");
});

const parse = (change) => {
  const document = documentOf();
  const changed = change(document) ?? document;
  return parseSelfTest(typeof changed === "string" ? changed : JSON.stringify(changed), DOCUMENT);
};

for (const [what, change, message] of [
  ["not JSON", () => "{", /is not JSON/],
  ["another value", () => "[]", /is not a JSON object/],
  ["a newer version", (it) => void (it.version = 2), /must have version 1, found 2/],
  ["an unknown field", (it) => void (it.more = 1), /must have the fields .*, found .* more/],
  ["a missing field", (it) => void delete it.cpu, /must have the fields columns cpu/],
  ["no images", (it) => void (it.images = []), /must have 1 to 16 images/],
  ["fewer digests than images", (it) => void it.pixels.pop(), /as many pixels as images/],
  ["a digest that is none", (it) => void (it.pixels[0] = "A".repeat(64)), /no SHA-256/],
  ["a large image", (it) => void (it.images[0].size = [1e5, 1e5]), /edges are not 1 to 1024/],
  ["an image of both kinds", (it) => void (it.images[0].jpeg = "AAAA"), /an image of no known form/],
  ["means of a made image", (it) => void (it.means[0] = "AAAA"), /means of JPEGs, and of no other/],
  ["a JPEG without means", (it) => void (it.images[0] = { jpeg: "AAAA" }), /means of JPEGs/],
  ["means of another size", (it) => { it.images[0] = { jpeg: "AAAA" }; it.means[0] = "AAAA"; }, /means of JPEGs/],
  ["text that is not base64", (it) => void (it.outputs.logits.file = "AAA!"), /not base64/],
  ["fewer answers", (it) => void (it.outputs.logits.file = base64([1])), /must have 3 rows of 3 answers, found 1 answers/],
  ["answers that are not finite", (it) => void (it.outputs.logits.float32 = base64(new Array(9).fill(NaN))), /not finite/],
  ["another output", (it) => void (it.outputs.embedding = it.outputs.logits), /must have the outputs logits/],
  ["columns beyond the classes", (it) => void (it.columns = [0, 3]), /columns that are no classes/],
  ["columns that do not rise", (it) => void (it.columns = [1, 1]), /columns that are no classes/],
  ["fewer best classes", (it) => void it.top[0].pop(), /best classes that are none/],
  ["a class that is none", (it) => void (it.top[0][0][0] = 3), /best classes that are none/],
  ["no CPU", (it) => void (it.cpu = null), /says nothing of the exporting machine/],
  ["more than 200 kB", (it) => void (it.runtime = "x".repeat(2e5)), /more than 200000 bytes/],
  ["a field twice", (it) => JSON.stringify(it).replace('"cpu":', '"runtime":"","cpu":'), /two fields "runtime"/],
])
  test(`a self-test with ${what} is refused`, () => {
    assert.throws(() => parse(change), (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      return true;
    });
  });

test("an embedding of which fewer columns are kept", () => {
  const rows = new Array(SEEDS.length * 2).fill(1);
  const document = documentOf();
  const read = (file, float32 = file) => {
    document.outputs.embedding = { file: base64(file), float32: base64(float32) };
    return parseSelfTest(JSON.stringify(document), { ...DOCUMENT, embedding: 3 }).outputs.embedding;
  };
  assert.equal(read(rows).float32.length, rows.length);
  for (const wrong of [[[1]], [rows, [...rows, ...rows]], [new Array(SEEDS.length * 4).fill(1)]])
    assert.throws(() => read(...wrong), /must have 3 rows of 1 to 3 answers/);
});

test("columns choose the logits that are compared", async () => {
  const document = documentOf();
  const answers = PIXELS.map((pixels) => [0, 2].map((column) => answer(pixels)[column]));
  Object.assign(document, { columns: [0, 2], outputs: { logits: { file: base64(answers.flat()), float32: base64(answers.flat()) } } });
  const check = await (await open((pixels) => answer(pixels).map((value, at) => (at === 1 ? value + 1e-9 : value)), { document })).check();
  assert.ok(check.passed && check.sqnr_file === 200, check.verdict);
});
