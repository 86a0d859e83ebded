// The errors that this package throws on purpose. Anything else is a mistake in the code.

/** A model file that cannot be used: what was expected, what was found, what to do. */
export class ModelError extends Error {
  /** @override */
  name = "ModelError";
}

/** An image that cannot be read. */
export class ImageError extends Error {
  /** @override */
  name = "ImageError";
}

/** A device that cannot run the model: it is not there, or it lacks what this file needs. */
export class DeviceError extends Error {
  /** @override */
  name = "DeviceError";
}
