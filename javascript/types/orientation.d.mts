/**
 * @param {Uint8Array} file
 * @returns {number} 1 to 8; 1 (upright) where there is none, or none that can be read
 */
export declare function readOrientation(file: Uint8Array): number;
/**
 * Turn an image the way its orientation says.
 * @param {import("./preprocess.mjs").Pixels} image
 * @param {number} orientation 1 to 8
 * @returns {import("./preprocess.mjs").Pixels}
 */
export declare function upright(image: import("./preprocess.mjs").Pixels, orientation: number): import("./preprocess.mjs").Pixels;
