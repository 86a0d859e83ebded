// JSON documents from files that strangers made.

import { listed } from "./spec.mjs";

/**
 * Parse a JSON document that every reader understands alike: JSON.parse keeps the last of two fields with one name, and
 * makes infinity of 1e999.
 * @param {string} text
 * @returns {unknown}
 * @throws {SyntaxError}
 */
export function parseJson(text) {
  const document = JSON.parse(text);
  /** @type {(Set<string> | null)[]} */
  const open = []; // for each object its names so far, for each array null
  for (const [token] of text.matchAll(/"(?:[^"\\]+|\\.)*"(?:\s*:)?|[{}[\]]|-?\d[\d.eE+-]*/g)) // the text is known to be JSON
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
  return document;
}
