/** A model file that cannot be used: what was expected, what was found, what to do. */
export declare class ModelError extends Error {
    /** @override */
    name: string;
}
/** An image that cannot be read. */
export declare class ImageError extends Error {
    /** @override */
    name: string;
}
