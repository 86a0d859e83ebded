/**
 * @param {Buffer} file
 * @param {number} whiteLevel of the specification
 * @throws {ImageError} for too many pixels; for a second header, which pngjs would follow; for pixels that end early, or
 *   inflate to more than the image holds; for a number of significant bits that `whiteLevel` contradicts
 */
export declare function checkPng(file: Buffer, whiteLevel: number): void;
