// Forms of JPEG and PNG that a decoder mistakes, and files that take more time or memory than their size tells.

import assert from "node:assert/strict";
import test from "node:test";
import { crc32, deflateSync } from "node:zlib";
import jpeg from "jpeg-js";
import { decodeImage, ImageError } from "../node.mjs";
import { SPEC } from "./helpers.mjs";

const RED = [200, 40, 20];
const plain = Buffer.from(jpeg.encode({ width: 16, height: 16, data: Buffer.from(Array(256).fill([...RED, 255]).flat()) }, 100).data);
const afterStart = (...parts) => Buffer.concat([plain.subarray(0, 2), ...parts, plain.subarray(20)]); // without its JFIF
const segment = (marker, ...content) => Buffer.from([0xff, marker, (content.length + 2) >> 8, (content.length + 2) & 255, ...content]);
const adobe = (transform) => segment(0xee, ...Buffer.from("Adobe"), 0, 100, 0, 0, 0, 0, transform);
const JFIF = plain.subarray(2, 20);
const first = (file) => [...decodeImage(file, SPEC).data.subarray(0, 3)];
const close = (found, expected) => found.forEach((value, at) => assert.ok(Math.abs(value - expected[at]) < 3, `${found} ${expected}`));
const Y = Math.round(0.299 * RED[0] + 0.587 * RED[1] + 0.114 * RED[2]);
const RAW = [Y, Math.round(128 + 0.564 * (RED[2] - Y)), Math.round(128 + 0.713 * (RED[0] - Y))]; // what the file holds

/** The file with other ids of its components. */
function withIds(file, ids) {
  const changed = Buffer.from(file);
  const frame = changed.indexOf(Buffer.from([0xff, 0xc0]));
  const scan = changed.indexOf(Buffer.from([0xff, 0xda]));
  ids.forEach((id, n) => {
    changed[frame + 10 + 3 * n] = id;
    changed[scan + 5 + 2 * n] = id;
  });
  return changed;
}

test("three colors are RGB or YCbCr by libjpeg's rules", () => {
  assert.equal(plain.toString("latin1", 6, 10), "JFIF");
  close(first(plain), RED);
  close(first(afterStart()), RED);
  close(first(afterStart(adobe(1))), RED);
  close(first(afterStart(adobe(0))), RAW);
  close(first(afterStart(JFIF, adobe(0))), RED); // JFIF is YCbCr always
  close(first(withIds(afterStart(), [...Buffer.from("RGB")])), RAW);
  const late = (file, ...parts) => Buffer.concat([file.subarray(0, -2), ...parts, file.subarray(-2)]);
  close(first(late(afterStart(), adobe(0))), RED); // what follows the first scan does not count
  close(first(late(afterStart(adobe(0)), JFIF)), RAW);
  close(first(withIds(plain, [...Buffer.from("RGB")])), RED);
  close(first(withIds(afterStart(adobe(1)), [...Buffer.from("RGB")])), RED);
});

test("other depths and quantization that changes are refused", () => {
  const deep = Buffer.from(plain);
  deep[deep.indexOf(Buffer.from([0xff, 0xc0])) + 4] = 12;
  assert.throws(() => decodeImage(deep, SPEC), /it has 12 bits per color/);
  const table = segment(0xdb, 0, ...Array(64).fill(9));
  const late = Buffer.concat([plain.subarray(0, -2), table, plain.subarray(-2)]);
  assert.throws(() => decodeImage(late, SPEC), /changes quantization/);
});

test("scans are counted before they are decoded, and only those of the image", () => {
  const scan = plain.indexOf(Buffer.from([0xff, 0xda]));
  const repeated = (times) => Buffer.concat([plain.subarray(0, scan), ...Array(times).fill(plain.subarray(scan, -2)), plain.subarray(-2)]);
  close(first(repeated(100)), RED);
  assert.throws(() => decodeImage(repeated(101), SPEC), /more than 100 scans/);
  const header = segment(0xda, ...Array(10).fill(0));
  const inside = Buffer.concat(Array(200).fill(header));
  const thumbnail = segment(0xe1, ...Buffer.from("Exif\0\0"), ...inside);
  close(first(Buffer.concat([plain.subarray(0, 2), thumbnail, plain.subarray(2), inside])), RED);
});

function chunk(name, data) {
  const [length, sum, body] = [Buffer.alloc(4), Buffer.alloc(4), Buffer.concat([Buffer.from(name), data])];
  length.writeUInt32BE(data.length);
  sum.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, sum]);
}
function header(width, height, interlaced = 0, bits = 8) {
  const data = Buffer.alloc(13);
  data.writeUInt32BE(width);
  data.writeUInt32BE(height, 4);
  data.set([bits, 0, 0, 0, interlaced], 8);
  return chunk("IHDR", data);
}
const png = (...chunks) => Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), ...chunks, chunk("IEND", Buffer.alloc(0))]);
const pixels = (count) => chunk("IDAT", deflateSync(Buffer.alloc(count)));

test("a second header, and interlaced pixels without end, are refused", () => {
  assert.equal(decodeImage(png(header(4, 4), pixels(20)), SPEC).width, 4);
  assert.equal(decodeImage(png(header(1, 1, 1), pixels(2)), SPEC).width, 1);
  assert.throws(() => decodeImage(png(header(4, 4), header(30000, 30000), pixels(20)), SPEC), /its header is damaged: it has two/);
  assert.throws(() => decodeImage(png(header(4, 4, 1), pixels(2 ** 26)), SPEC), ImageError);
  assert.throws(() => decodeImage(png(chunk("CgBI", Buffer.alloc(4)), header(4, 4), pixels(20)), SPEC), /its header is damaged/);
});

test("pixels that end early are refused", () => {
  for (const short of [0, 1, 19]) assert.throws(() => decodeImage(png(header(4, 4), pixels(short)), SPEC), /its pixels end early/);
  const passes = 30; // 15 rows of at most 8 pixels of one bit, each behind a byte of its own
  assert.equal(decodeImage(png(header(8, 8, 1, 1), pixels(passes)), SPEC).height, 8);
  assert.throws(() => decodeImage(png(header(8, 8, 1, 1), pixels(29)), SPEC), /its pixels end early/);
});

test("significant bits that the white level contradicts are refused", () => {
  const file = png(header(1, 1, 0, 16), chunk("sBIT", Buffer.from([12])), pixels(3));
  assert.equal(decodeImage(file, SPEC).width, 1);
  assert.throws(() => decodeImage(file, { ...SPEC, white_level: 4095 }), /12 significant bits/);
});
