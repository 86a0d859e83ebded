/**
 * Parse a JSON document that every reader understands alike: JSON.parse keeps the last of two fields with one name, and
 * makes infinity of 1e999.
 * @param {string} text
 * @returns {unknown}
 * @throws {SyntaxError}
 */
export declare function parseJson(text: string): unknown;
