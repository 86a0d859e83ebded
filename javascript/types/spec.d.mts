export type Spec = {
    /**
     * [height, width] that the model takes
     */
    size: [number, number];
    /**
     * straight to `size`, or cover it and cut out the center
     */
    resize: "stretch" | "crop";
    /**
     * before the center is cut: the shorter edge ("crop" only), or
     * [height, width] that is covered ("crop") or stretched to; null: `size`
     */
    resize_to: number | [number, number] | null;
    interpolation: "nearest" | "box" | "bilinear" | "hamming" | "bicubic" | "lanczos";
    /**
     * turn the image the way its EXIF orientation says
     */
    exif: boolean;
    /**
     * the value of a 16-bit gray pixel that is white, 1 to 65534; absent: 65535
     */
    white_level?: number;
    /**
     * "draft": large JPEGs may be read at 1/2, 1/4 or 1/8
     */
    decode: "full" | "draft";
};
export declare const WHITE_16 = 65535;
/** @param {unknown} value @returns {value is Record<string, any>} */
export declare const isObject: (value: unknown) => value is Record<string, any>;
/** Some names for a message, which may come from the file. @param {string[]} names */
export declare const listed: (names: string[]) => string;
/**
 * Check a specification from outside.
 * @param {unknown} spec
 * @returns {Spec}
 * @throws {ModelError} when it describes no possible preprocessing
 */
export declare function checkSpec(spec: unknown): Spec;
/**
 * The part of an image that the model sees: left, top, right, bottom in pixels.
 * @param {number} width of the image
 * @param {number} height
 * @param {Spec} spec
 * @returns {[number, number, number, number]}
 */
export declare function boxOf(width: number, height: number, { size: [rows, columns], resize, resize_to }: Spec): [number, number, number, number];
/**
 * By how much a JPEG may be reduced before it is resized: 1, 2, 4 or 8.
 * @param {number} width of the image
 * @param {number} height
 * @param {Spec} spec
 */
export declare function reduction(width: number, height: number, { decode, size, resize_to }: Spec): 1 | 2 | 4 | 8;
