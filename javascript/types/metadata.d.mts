export type Metadata = {
    /**
     * of this document
     */
    version: 1;
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
     * the CPUs that INT8 weights suit; see `cpu.mjs`
     */
    target: string;
    /**
     * where the model came from
     */
    source: Record<string, unknown>;
    /**
     * at export
     */
    measured: Record<string, unknown>;
    /**
     * "vit-edge" and its version
     */
    producer: string;
};
/**
 * INT8 weights by target: whether they use all 8 bits, which saturates in the fast kernels of an x86 CPU without VNNI.
 * @type {Record<string, boolean>}
 */
export declare const TARGETS: Record<string, boolean>;
/**
 * Read what a model file says about itself.
 * @param {Uint8Array} model the bytes of an .onnx file
 * @returns {Metadata}
 * @throws {ModelError} when the bytes are no model of vit-edge
 */
export declare function readMetadata(model: Uint8Array): Metadata;
/**
 * Check the JSON document itself.
 * @param {string} text
 * @returns {Metadata}
 * @throws {ModelError}
 */
export declare function checkMetadata(text: string): Metadata;
