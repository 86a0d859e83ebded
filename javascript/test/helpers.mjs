// Images by formula (those of tests/runtime/make_golden.py), and models in a few lines of protobuf.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

export const GOLDEN = JSON.parse(readFileSync(new URL("../../tests/runtime/golden.json", import.meta.url), "utf-8"));

/** An RGBA image with smooth parts and hard edges. */
export function imageOf(height, width, alpha = false) {
  const data = new Uint8Array(4 * width * height);
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++, at += 4) {
      for (let channel = 0; channel < 3; channel++) {
        const smooth = (4 * x + 3 * y + 60 * channel) % 256;
        data[at + channel] = (Math.floor(x / 8) + Math.floor(y / 8)) % 2 ? smooth : 255 - smooth;
      }
      data[at + 3] = alpha ? (7 * x + 13 * y) % 256 : 255;
    }
  return { width, height, data };
}

export const SPEC = {
  size: [32, 32], resize: "stretch", resize_to: null, interpolation: "bilinear", exif: true, decode: "draft",
};
export const DOCUMENT = {
  version: 2, exact_on: ["x86-vnni", "x86", "arm64", "wasm"], variant: "float32", preprocess: SPEC, labels: ["red", "green", "blue"], target: "any-cpu", source: {},
  measured: {}, temperature: 1, embedding: null, producer: "vit-edge",
};

export const varint = (value) => (value < 128 ? [value] : [(value % 128) | 128, ...varint(Math.floor(value / 128))]);
export const field = (number, bytes) => [...varint(8 * number + 2), ...varint(bytes.length), ...bytes];
const entry = (key, value) => field(14, [...field(1, Buffer.from(key)), ...field(2, Buffer.from(value))]);

/** The bytes of a ModelProto without nodes that carries these metadata entries. */
export function modelWith(...entries) {
  const outline = [8, 10, ...field(7, []), ...field(8, [16, 20])];
  return Uint8Array.from([...outline, ...entries.flatMap(([key, value]) => entry(key, value))]);
}
export const model = (document = DOCUMENT) => modelWith(["other", "1"], ["vit_edge", JSON.stringify(document)]);

/** The same, with the digest at its end that the document promises. */
export function whole(document = DOCUMENT) {
  const bytes = model({ ...document, digest: "sha256" });
  return Uint8Array.from([...bytes, ...entry("vit_edge_sha256", createHash("sha256").update(bytes).digest("hex"))]);
}

/** A generator of random numbers that repeats for a seed (mulberry32). */
export function random(seed) {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}
