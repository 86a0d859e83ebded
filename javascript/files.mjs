// Files that a person names, in Node.

import { constants, open } from "node:fs/promises";

/**
 * Read a regular file, through links too; a pipe is not waited for, and a device is no file without an end.
 * @param {string} path
 */
export async function readRegular(path) {
  const file = await open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  try {
    if (!(await file.stat()).isFile()) throw new Error("expected a file, found a folder, a pipe or a device");
    return await file.readFile();
  } finally {
    await file.close();
  }
}
