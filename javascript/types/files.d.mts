/**
 * Read a regular file, through links too; a pipe is not waited for, and a device is no file without an end.
 * @param {string} path
 */
export declare function readRegular(path: string): Promise<Buffer<ArrayBufferLike>>;
