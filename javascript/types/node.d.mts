import { Classifier } from "./classifier.mjs";
export { needsExactKernels } from "./cpu.mjs";
export * from "./index.mjs";
/**
 * Open a model with onnxruntime-node.
 * @param {string | Uint8Array} model a path, or the bytes of the .onnx file
 * @param {object} [options]
 * @param {number} [options.threads] CPU threads of one prediction; without it, the cores that there are
 * @param {number} [options.top] candidates of a prediction
 * @param {string} [options.sha256] the digest that the model must have, where you know it
 * @returns {Promise<Classifier>}
 * @throws {ModelError} when it is no model of vit-edge
 */
export declare function openClassifier(model: string | Uint8Array, { threads, top, sha256 }?: {
    threads?: number;
    top?: number;
    sha256?: string;
}): Promise<Classifier>;
/**
 * Session options for onnxruntime-node, exact kernels where this CPU needs them.
 * @param {string[]} exactOn `exact_on` of the model's metadata
 * @param {object} [options]
 * @param {number} [options.threads]
 * @param {boolean} [options.exact] instead of asking the CPU
 */
export declare function sessionOptions(exactOn: string[], { threads, exact }?: {
    threads?: number;
    exact?: boolean;
}): {
    intraOpNumThreads: number;
    interOpNumThreads: number;
    logSeverityLevel: 3;
    extra: {
        session: {
            intra_op: {
                allow_spinning: string;
            };
            x64quantprecision?: string | undefined;
        };
    };
};
/**
 * Decode a JPEG or a PNG, turn it upright and reduce it as the model's specification allows.
 * @param {Uint8Array} file
 * @param {import("./spec.mjs").Spec} spec the `preprocess` of the model's metadata
 * @returns {import("./preprocess.mjs").Pixels}
 * @throws {ImageError} when it is neither, or damaged, or has too many pixels
 */
export declare function decodeImage(file: Uint8Array, spec: import("./spec.mjs").Spec): import("./preprocess.mjs").Pixels;
