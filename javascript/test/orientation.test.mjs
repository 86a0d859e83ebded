import assert from "node:assert/strict";
import { test } from "node:test";
import { readOrientation, upright } from "../index.mjs";
import { imageOf } from "./helpers.mjs";

/** A TIFF block with one unrelated entry and the orientation. */
export function exif(orientation, little) {
  const block = new DataView(new ArrayBuffer(38));
  block.setUint16(0, little ? 0x4949 : 0x4d4d);
  block.setUint16(2, 42, little);
  block.setUint32(4, 8, little);
  block.setUint16(8, 2, little);
  for (const [at, tag, value] of [[10, 0x0100, 5], [22, 0x0112, orientation]]) {
    block.setUint16(at, tag, little);
    block.setUint16(at + 2, 3, little);
    block.setUint32(at + 4, 1, little);
    block.setUint16(at + 8, value, little);
  }
  return [...new Uint8Array(block.buffer)];
}
const big = (value, bytes) => Array.from({ length: bytes }, (_, i) => (value >>> (8 * (bytes - 1 - i))) & 255);
const jpeg = (block) => Uint8Array.from([
  0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xff, 0xe1, ...big(block.length + 8, 2), ...Buffer.from("Exif\0\0"), ...block, 0xff, 0xda,
]);
const png = (block) => Uint8Array.from([
  ...[0x89, 80, 78, 71, 13, 10, 26, 10], ...big(0, 4), ...Buffer.from("IDAT"), ...big(0, 4),
  ...big(block.length, 4), ...Buffer.from("eXIf"), ...block, ...big(0, 4),
]);

test("eight orientations, both byte orders, JPEG and PNG", () => {
  for (let orientation = 1; orientation <= 8; orientation++)
    for (const little of [true, false])
      for (const file of [jpeg, png]) assert.equal(readOrientation(file(exif(orientation, little))), orientation);
});

test("none, nonsense and half a block are upright", () => {
  assert.equal(readOrientation(jpeg(exif(9, true))), 1);
  assert.equal(readOrientation(jpeg(exif(0, true))), 1);
  assert.equal(readOrientation(jpeg([1, 2, 3])), 1);
  assert.equal(readOrientation(new Uint8Array()), 1);
  assert.equal(readOrientation(Uint8Array.from([0xff, 0xd8, 0xff, 0xda])), 1);
  for (let length = 0; length < jpeg(exif(6, true)).length - 4; length++)
    assert.ok([1, 6].includes(readOrientation(jpeg(exif(6, true)).subarray(0, length))));
});

test("turning: where the first corner of the file is seen", () => {
  const image = imageOf(3, 5);
  image.data.set([1, 2, 3, 255]); // the first pixel
  const corner = ({ width, height, data }) => {
    for (const [name, at] of [["top left", 0], ["top right", width - 1], ["bottom right", width * height - 1], ["bottom left", width * (height - 1)]])
      if (data[4 * at] === 1 && data[4 * at + 1] === 2) return name;
    return null;
  };
  const seen = ["top left", "top right", "bottom right", "bottom left", "top left", "top right", "bottom right", "bottom left"];
  for (let orientation = 1; orientation <= 8; orientation++) {
    const turned = upright(image, orientation);
    assert.deepEqual([turned.width, turned.height], orientation > 4 ? [3, 5] : [5, 3]);
    assert.equal(corner(turned), seen[orientation - 1], `orientation ${orientation}`);
  }
});
