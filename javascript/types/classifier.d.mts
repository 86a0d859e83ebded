export type Candidate = {
    label: string;
    index: number;
    score: number;
};
export type Prediction = {
    /**
     * of the best class
     */
    label: string;
    /**
     * of the best class, into `metadata.labels`
     */
    index: number;
    /**
     * 0 to 1
     */
    score: number;
    /**
     * best first
     */
    top: Candidate[];
    /**
     * one per class
     */
    logits: Float32Array;
    milliseconds: {
        preprocess: number;
        model: number;
    };
};
export type Runtime = {
    InferenceSession: {
        create: (model: any, options?: any) => Promise<any>;
    };
    Tensor: new (type: any, data: any, dims: number[]) => any;
};
/** @typedef {{label: string, index: number, score: number}} Candidate score: 0 to 1 */
/**
 * @typedef {object} Prediction
 * @property {string} label of the best class
 * @property {number} index of the best class, into `metadata.labels`
 * @property {number} score 0 to 1
 * @property {Candidate[]} top best first
 * @property {Float32Array} logits one per class
 * @property {{preprocess: number, model: number}} milliseconds
 */
/**
 * The part of an ONNX Runtime module that is used.
 * @typedef {object} Runtime
 * @property {{create: (model: any, options?: any) => Promise<any>}} InferenceSession
 * @property {new (type: any, data: any, dims: number[]) => any} Tensor
 */
export declare class Classifier {
    #private;
    /** What the model file says about itself. @readonly */
    metadata: import("./metadata.mjs").Metadata;
    /** Use `Classifier.open`. @param {any} session @param {Runtime} runtime @param {import("./metadata.mjs").Metadata} metadata @param {number} top */
    constructor(session: any, runtime: Runtime, metadata: import("./metadata.mjs").Metadata, top: number);
    /**
     * Open a model for inference.
     * @param {Uint8Array} model the bytes of an .onnx file that `python -m export` wrote
     * @param {object} options
     * @param {Runtime} options.runtime the module onnxruntime-node or onnxruntime-web
     * @param {number} [options.top] candidates of a prediction
     * @param {string} [options.sha256] the digest that the model must have, where you know it; the only protection from malice
     * @param {(metadata: import("./metadata.mjs").Metadata) => object} [options.session] ONNX Runtime's session options for it
     * @returns {Promise<Classifier>}
     * @throws {ModelError} when the bytes are no model of vit-edge, or not the one asked for, or ONNX Runtime does not accept them
     */
    static open(model: Uint8Array, { runtime, top, sha256, session: optionsFor }: {
        runtime: Runtime;
        top?: number;
        sha256?: string;
        session?: (metadata: import("./metadata.mjs").Metadata) => object;
    }): Promise<Classifier>;
    /**
     * Classify an image that is decoded, upright and, where it is a large JPEG, `reduced`.
     * @param {import("./preprocess.mjs").Pixels} image
     * @returns {Promise<Prediction>}
     * @throws {ImageError} when there are no such pixels
     * @throws {ModelError} when the model's logits do not fit its labels
     */
    classify(image: import("./preprocess.mjs").Pixels): Promise<Prediction>;
    /** Give the model's memory back. */
    release(): Promise<void>;
}
/** @param {unknown} error what a library threw: one line of it */
export declare const reason: (error: unknown) => string;
