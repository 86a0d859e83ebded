/**
 * Check a JPEG before it is decoded.
 * @param {Uint8Array} file
 * @returns {{ rgb: boolean, lateTables: boolean }} whether its three colors are RGB and not YCbCr, by libjpeg's rules; and
 *   whether it changes quantization between scans
 * @throws {ImageError} for more scans than a photo has, each of which takes as long as the whole; for samples that are not
 *   of 8 bits; for CMYK without Adobe's marker, which may be stored inverted or not
 */
export declare function checkJpeg(file: Uint8Array): {
    rgb: boolean;
    lateTables: boolean;
};
