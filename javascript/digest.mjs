// The SHA-256 at the end of a model file, which finds damage: docs/reference/model-file.md. By the engine's own code where
// it has some; a page that came over plain http has none, and there plain JavaScript does it (a quarter of the speed).

/** What a file with a digest ends with, before the 64 digits: field 14 of a ModelProto, its key, the head of its value. */
const START = Uint8Array.from([0x72, 83, 0x0a, 15, ...new TextEncoder().encode("vit_edge_sha256"), 0x12, 64]);
const END = START.length + 64;

/**
 * The SHA-256 of bytes, 64 hexadecimal digits.
 * @param {Uint8Array} bytes
 */
export async function digitsOf(bytes) {
  if (!globalThis.crypto?.subtle) return hex(sha256(bytes));
  // Shared memory, which another thread may change, is not accepted.
  const own = bytes.buffer instanceof ArrayBuffer ? /** @type {Uint8Array<ArrayBuffer>} */ (bytes) : new Uint8Array(bytes);
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", own)));
}

/**
 * Whether a model file ends with the SHA-256 of all bytes before it.
 * @param {Uint8Array} model
 */
export const isIntact = async (model) => endsWith(model, await digitsOf(covered(model)));

/**
 * The same at once, in plain JavaScript.
 * @param {Uint8Array} model
 */
export const isIntactNow = (model) => endsWith(model, hex(sha256(covered(model))));

/** @param {Uint8Array} model */
const covered = (model) => model.subarray(0, Math.max(0, model.length - END));

/** @param {Uint8Array} digest */
const hex = (digest) => Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** @param {Uint8Array} model @param {string} digits */
function endsWith(model, digits) {
  const expected = [...START, ...new TextEncoder().encode(digits)];
  const end = model.subarray(-END);
  return end.length === END && expected.every((byte, at) => end[at] === byte);
}

/** The first 32 bits of the fractional parts of a root of the first primes. @param {number} count @param {number} root */
function fractions(count, root) {
  /** @type {number[]} */
  const primes = [];
  for (let number = 2; primes.length < count; number++) if (primes.every((prime) => number % prime)) primes.push(number);
  return primes.map((prime) => ((prime ** (1 / root)) % 1) * 2 ** 32 | 0);
}

const ROUNDS = Int32Array.from(fractions(64, 3));

/**
 * FIPS 180-4.
 * @param {Uint8Array} bytes
 * @returns {Uint8Array} 32 bytes
 */
export function sha256(bytes) {
  const state = Int32Array.from(fractions(8, 2));
  const words = new Int32Array(64);
  const whole = bytes.length - (bytes.length % 64);
  for (let at = 0; at < whole; at += 64) mix(state, words, bytes, at);
  const last = new Uint8Array(bytes.length - whole < 56 ? 64 : 128);
  last.set(bytes.subarray(whole));
  last[bytes.length - whole] = 0x80;
  new DataView(last.buffer).setBigUint64(last.length - 8, 8n * BigInt(bytes.length));
  for (let at = 0; at < last.length; at += 64) mix(state, words, last, at);
  const digest = new DataView(new ArrayBuffer(32));
  state.forEach((word, index) => digest.setInt32(4 * index, word));
  return new Uint8Array(digest.buffer);
}

/** Take one block of 64 bytes in. @param {Int32Array} state @param {Int32Array} words @param {Uint8Array} bytes @param {number} at */
function mix(state, words, bytes, at) {
  for (let i = 0; i < 16; i++, at += 4) words[i] = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3];
  for (let i = 16; i < 64; i++) {
    const x = words[i - 15];
    const y = words[i - 2];
    const before = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const after = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    words[i] = (words[i - 16] + before + words[i - 7] + after) | 0;
  }
  let a = state[0]; // one by one: as arrays they take several times as long
  let b = state[1];
  let c = state[2];
  let d = state[3];
  let e = state[4];
  let f = state[5];
  let g = state[6];
  let h = state[7];
  for (let i = 0; i < 64; i++) {
    const turned = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const first = (h + turned + ((e & f) ^ (~e & g)) + ROUNDS[i] + words[i]) | 0;
    const other = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const second = (other + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + first) | 0;
    d = c;
    c = b;
    b = a;
    a = (first + second) | 0;
  }
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
  state[4] += e;
  state[5] += f;
  state[6] += g;
  state[7] += h;
}
