export type Outline = {
    irVersion: number;
    opsets: Map<string, number>;
    metadata: Map<string, string>;
    /**
     * that nodes name; "" is ai.onnx, which need not be named
     */
    domains: Set<string>;
    /**
     * some tensor's values are in another file
     */
    externalData: boolean;
    /**
     * a node carries a graph (If, Loop, Scan), or the model describes its training
     */
    subgraphs: boolean;
    /**
     * the model defines operators of its own
     */
    functions: boolean;
};
/**
 * Read the outline of a serialized ModelProto.
 * @param {Uint8Array} model
 * @returns {Outline}
 * @throws {ModelError} when the bytes are not one, or one in another form than protobuf writes
 */
export declare function summarize(model: Uint8Array): Outline;
