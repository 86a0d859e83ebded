// What Node and the browser share. `vit-edge/node` and `vit-edge/web` add decoding and session options.

export { Classifier } from "./classifier.mjs";
export { DeviceError, ImageError, ModelError } from "./errors.mjs";
export { readMetadata } from "./metadata.mjs";
export { readOrientation, upright } from "./orientation.mjs";
export { MAX_PIXELS, preprocess, reduced } from "./preprocess.mjs";
export { readSelfTest } from "./self_test.mjs";
