// 12-bit data in gray PNG files of 16 bits: `white_level` of the specification.

import assert from "node:assert/strict";
import test from "node:test";
import { deflateSync, crc32 } from "node:zlib";
import { decodeImage, ImageError } from "../node.mjs";
import { checkSpec } from "../spec.mjs";
import { SPEC } from "./helpers.mjs";

function png(bits, color, rows) {
  const chunk = (kind, data) => {
    const body = Buffer.concat([Buffer.from(kind), data]);
    const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(data.length);
    sum.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, sum]);
  };
  const header = Buffer.from([0, 0, 0, rows[0].length / (color === 2 ? 3 : 1), 0, 0, 0, rows.length, bits, color, 0, 0, 0]);
  const data = Buffer.concat(rows.map((row) => Buffer.concat([Buffer.from([0]), ...row.map((value) => Buffer.from([value >> 8, value & 255]))])));
  return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), chunk("IHDR", header), chunk("IDAT", deflateSync(data)), chunk("IEND", Buffer.alloc(0))]);
}
const gray = (spec, row) => [...decodeImage(png(16, 0, [row]), { ...SPEC, ...spec }).data].filter((_, at) => at % 4 === 0);

test("the level is white, and what is above it", () => {
  const row = [0, 8, 9, 2048, 4095, 4096, 65535];
  assert.deepEqual(gray({ white_level: 4095 }, row), [0, 0, 1, 128, 255, 255, 255]);
  assert.deepEqual(gray({}, row), [0, 0, 0, 8, 16, 16, 255]);
});

test("16 bits per color have no white level", () => {
  const file = png(16, 2, [[1, 2, 3]]);
  assert.equal(decodeImage(file, SPEC).width, 1);
  assert.throws(() => decodeImage(file, { ...SPEC, white_level: 4095 }), ImageError);
});

test("the level is 1 to 65535, and may be absent", () => {
  checkSpec(SPEC);
  checkSpec({ ...SPEC, white_level: 4095 });
  for (const wrong of [0, 65536, 1.5, "4095", null, true])
    assert.throws(() => checkSpec({ ...SPEC, white_level: wrong }), /white_level must be 1 to 65535/);
});
