/**
 * The SHA-256 of bytes, 64 hexadecimal digits.
 * @param {Uint8Array} bytes
 */
export declare function digitsOf(bytes: Uint8Array): Promise<string>;
/**
 * Whether a model file ends with the SHA-256 of all bytes before it.
 * @param {Uint8Array} model
 */
export declare const isIntact: (model: Uint8Array) => Promise<boolean>;
/**
 * The same at once, in plain JavaScript.
 * @param {Uint8Array} model
 */
export declare const isIntactNow: (model: Uint8Array) => boolean;
/**
 * FIPS 180-4.
 * @param {Uint8Array} bytes
 * @returns {Uint8Array} 32 bytes
 */
export declare function sha256(bytes: Uint8Array): Uint8Array;
