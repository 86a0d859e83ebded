// How an image is to be turned: the EXIF orientation of a JPEG or a PNG, read from untrusted bytes.

/**
 * @param {Uint8Array} file
 * @returns {number} 1 to 8; 1 (upright) where there is none, or none that can be read
 */
export function readOrientation(file) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  try {
    const found = file[0] === 0xff ? inJpeg(view) : file[0] === 0x89 ? inPng(view) : 1;
    return found >= 1 && found <= 8 ? found : 1;
  } catch (error) {
    if (error instanceof RangeError) return 1; // it ends within the block, which is no reason to refuse the image
    throw error;
  }
}

/** @param {DataView} file */
function inJpeg(file) {
  for (let at = 2; file.getUint8(at) === 0xff; ) {
    const marker = file.getUint8(at + 1);
    if (marker === 0xff) {
      at += 1; // fill bytes before a marker
      continue;
    }
    if (marker === 0xda || marker === 0xd9) return 1; // the pixels begin, or the end
    const length = file.getUint16(at + 2);
    // "Exif\0\0"
    if (marker === 0xe1 && length >= 8 && file.getUint32(at + 4) === 0x45786966 && file.getUint16(at + 8) === 0)
      return inTiff(new DataView(file.buffer, file.byteOffset + at + 10, length - 8));
    at += 2 + Math.max(length, 2);
  }
  return 1;
}

/** @param {DataView} file */
function inPng(file) {
  for (let at = 8; at + 8 <= file.byteLength; ) {
    const length = file.getUint32(at);
    // "eXIf"
    if (file.getUint32(at + 4) === 0x65584966) return inTiff(new DataView(file.buffer, file.byteOffset + at + 8, length));
    at += 12 + length;
  }
  return 1;
}

/** @param {DataView} exif */
function inTiff(exif) {
  const order = exif.getUint16(0);
  if (order !== 0x4949 && order !== 0x4d4d) return 1;
  const little = order === 0x4949;
  const start = exif.getUint32(4, little);
  const entries = exif.getUint16(start, little);
  for (let i = 0, at = start + 2; i < entries; i++, at += 12)
    if (exif.getUint16(at, little) === 0x0112 && exif.getUint16(at + 2, little) === 3) return exif.getUint16(at + 8, little);
  return 1;
}

/**
 * Turn an image the way its orientation says.
 * @param {import("./preprocess.mjs").Pixels} image
 * @param {number} orientation 1 to 8
 * @returns {import("./preprocess.mjs").Pixels}
 */
export function upright(image, orientation) {
  if (orientation === 1) return image;
  const { width, height } = image;
  const swapped = orientation > 4;
  const mirrored = [2, 3, 7, 8].includes(orientation); // from right to left in the file
  const upsideDown = [3, 4, 6, 7].includes(orientation); // from bottom to top in the file
  const turned = { width: swapped ? height : width, height: swapped ? width : height };
  const from = new Uint32Array(image.data.slice().buffer); // one number per pixel
  const to = new Uint32Array(from.length);
  for (let row = 0, at = 0; row < turned.height; row++)
    for (let column = 0; column < turned.width; column++, at++) {
      const [x, y] = swapped ? [row, column] : [column, row];
      to[at] = from[(upsideDown ? height - 1 - y : y) * width + (mirrored ? width - 1 - x : x)];
    }
  return { ...turned, data: new Uint8Array(to.buffer) };
}
