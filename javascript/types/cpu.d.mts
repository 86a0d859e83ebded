export type Machine = {
    /**
     * as `process.arch`
     */
    arch: string;
    /**
     * as `process.platform`
     */
    platform: string;
    readFile: (path: string) => string;
    run: (command: string, ...args: string[]) => string;
};
/**
 * Whether a model needs ONNX Runtime's exact kernels here: the fast ones of an x86 CPU without VNNI saturate 16-bit sums
 * of full-range weights, in silence. Where the CPU cannot be known (Windows) the answer is yes, which costs speed and
 * never accuracy.
 * @param {string[]} exactOn `exact_on` of the model's metadata
 * @param {Machine} [machine]
 */
export declare function needsExactKernels(exactOn: string[], machine?: Machine): boolean;
