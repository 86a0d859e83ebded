export type Metadata = {
    /**
     * of this document
     */
    version: 2;
    variant: "float32" | "float16" | "int8";
    /**
     * what the model expects of an image
     */
    preprocess: import("./spec.mjs").Spec;
    /**
     * by class index; not necessarily unique
     */
    labels: string[];
    /**
     * the form of INT8 weights
     */
    target: "any-cpu" | "full-range";
    /**
     * the kinds of CPU on which default session options are exact; see `cpu.mjs`
     */
    exact_on: string[];
    /**
     * where the model came from
     */
    source: Record<string, unknown>;
    /**
     * at export
     */
    measured: Record<string, unknown>;
    /**
     * what logits are divided by before softmax
     */
    temperature: number;
    /**
     * features of a second output `embedding`, null without one
     */
    embedding: number | null;
    /**
     * "vit-edge" and its version
     */
    producer: string;
    /**
     * "sha256": the file ends with a digest, which is checked; null or absent: it has none
     */
    digest?: "sha256" | null;
};
/** What is said of a file that is not the one that was written. */
export declare const DAMAGED = "its bytes are not those that were written (it ends with another SHA-256): it was damaged or changed; copy it again, or export it again";
/**
 * Read what a model file says about itself, once its digest has shown that it is whole.
 * @param {Uint8Array} model the bytes of an .onnx file
 * @returns {Metadata}
 * @throws {ModelError} when the bytes are no model of vit-edge, or a damaged one
 */
export declare function readMetadata(model: Uint8Array): Metadata;
/**
 * The same without the digest, for whoever checks it in another way.
 * @param {Uint8Array} model
 * @returns {Metadata}
 * @throws {ModelError}
 */
export declare function readUnchecked(model: Uint8Array): Metadata;
/**
 * Check the JSON document itself.
 * @param {string} text
 * @returns {Metadata}
 * @throws {ModelError}
 */
export declare function checkMetadata(text: string): Metadata;
