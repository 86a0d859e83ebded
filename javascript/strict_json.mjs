// JSON documents from files that strangers made.

import { ModelError } from "./errors.mjs";
import { isObject, listed } from "./spec.mjs";

/**
 * Parse a JSON object that every reader understands alike: JSON.parse keeps the last of two fields with one name, and makes
 * infinity of 1e999.
 * @param {string} text
 * @param {string} what it is, for messages
 * @throws {ModelError}
 */
export function parseObject(text, what) {
  let document;
  try {
    document = JSON.parse(text);
    checkTokens(text);
  } catch (error) {
    throw new ModelError(`its ${what} is not JSON (${/** @type {Error} */ (error).message}); export it again`);
  }
  if (!isObject(document)) throw new ModelError(`its ${what} is not a JSON object; export it again`);
  return document;
}

/** @param {string} text that is JSON */
function checkTokens(text) {
  /** @type {(Set<string> | null)[]} */
  const open = []; // for each object its names so far, for each array null
  for (const [token] of text.matchAll(/"(?:[^"\\]+|\\.)*"(?:\s*:)?|[{}[\]]|-?\d[\d.eE+-]*/g))
    if (token === "{") open.push(new Set());
    else if (token === "[") open.push(null);
    else if (token === "}" || token === "]") open.pop();
    else if (token.endsWith(":")) {
      const name = JSON.parse(token.slice(0, -1));
      const names = open[open.length - 1];
      if (names?.has(name)) throw new SyntaxError(`an object has two fields "${listed([name])}", expected one`);
      names?.add(name);
    } else if (!token.startsWith('"') && !Number.isFinite(Number(token)))
      throw new SyntaxError(`${token.slice(0, 24)} is larger than a float64 can be`);
}
