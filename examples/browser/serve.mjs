// node serve.mjs MODEL [--port 8080] [--threads]     serve the page on this machine
// node serve.mjs MODEL --into FOLDER                 copy the page and all it needs, for any web server
//
// MODEL is a model file, or the folder of an export; its model.int8.onnx comes first, as in Python, and its float files are
// served for the GPU.
// --threads sends the two headers that WebAssembly needs for threads.

import { createReadStream } from "node:fs";
import { copyFile, mkdir, readdir, readFile, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { basename, dirname, extname, join } from "node:path";
import { pipeline } from "node:stream";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { readEntries, readMetadata } from "../../javascript/metadata.mjs";

const HERE = import.meta.dirname ?? dirname(fileURLToPath(import.meta.url));
const PACKAGE = join(HERE, "..", "..", "javascript");
const ORT = join(PACKAGE, "node_modules", "onnxruntime-web", "dist");
const ORT_FILES = [
  "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
  "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
];
const TYPES = {
  ".html": "text/html; charset=utf-8", ".mjs": "text/javascript", ".js": "text/javascript", ".css": "text/css",
  ".svg": "image/svg+xml", ".wasm": "application/wasm",
};
const SECONDS = 10; // of a request, and of a client that reads nothing of its answer
const MODELS = ["model.int8.onnx", "model.onnx"];
const FLOATS = { "model.fp16.onnx": "model.fp16.onnx", "model.fp32.onnx": "model.onnx" }; // name on the site, name in the folder
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** Every file of the site: its path there, and where it is here. @param {string | undefined} model @param {[string, string][]} floats */
export async function siteFiles(model, floats = []) {
  const files = new Map();
  for (const name of await readdir(HERE)) if (name !== basename(import.meta.url)) files.set(name, join(HERE, name));
  for (const name of await readdir(PACKAGE))
    if (extname(name) === ".mjs" && !["classify.mjs", "cpu.mjs", "node.mjs"].includes(name))
      files.set(`vit-edge/${name}`, join(PACKAGE, name));
  for (const name of ORT_FILES) files.set(`ort/${name}`, join(ORT, name));
  if (model) files.set("model.onnx", model);
  return new Map([...files, ...floats]);
}

/** The float files of an export for the GPU, by name on the site. @param {string} folder @param {string} model that is served */
export async function findFloats(folder, model) {
  const found = [];
  for (const [name, file] of Object.entries(FLOATS)) {
    const path = join(folder, file);
    if (path === model || !(await stat(path).catch(() => null))?.isFile()) continue;
    try {
      readEntries(new Uint8Array(await readFile(path)));
      found.push([name, path]);
    } catch (error) {
      console.error(`serve.mjs: ${path} is not served: ${error.message}`);
    }
  }
  return found;
}

/** The path that a request means; null for what is no address. @param {string} url */
function pathOf(url) {
  try {
    return decodeURIComponent(new URL(url, "http://x").pathname).slice(1) || "index.html";
  } catch {
    return null; // "//", "/%"
  }
}

/** @param {Map<string, string>} files @param {{port?: number, isolated?: boolean, seconds?: number}} options */
export function serve(files, { port = 0, isolated = false, seconds = SECONDS } = {}) {
  const own = isolated ? ISOLATED : {};
  const time = 1000 * seconds;
  const limits = { requestTimeout: time, headersTimeout: time, keepAliveTimeout: time, connectionsCheckingInterval: time / 2 };
  const server = createServer(limits, async (request, response) => {
    if (request.method !== "GET" && request.method !== "HEAD") return response.writeHead(405, { ...own, Allow: "GET, HEAD" }).end();
    const path = pathOf(request.url ?? "");
    if (path === null) return response.writeHead(400, own).end();
    const status = files.has(path) && (await stat(files.get(path)).catch(() => null));
    if (!status) return response.writeHead(404, own).end();
    const tag = `"${status.size}-${status.mtimeMs}"`;
    const headers = { "Content-Type": TYPES[extname(path)] ?? "application/octet-stream", ETag: tag, ...own };
    if (request.headers["if-none-match"] === tag) return response.writeHead(304, headers).end();
    response.writeHead(200, { ...headers, "Content-Length": status.size });
    if (request.method === "HEAD") return response.end();
    pipeline(createReadStream(files.get(path)), response, () => {}); // it closes both, whichever fails
  });
  server.setTimeout(time); // of silence on a connection
  return new Promise((resolve, reject) => {
    server.on("error", reject);
    server.listen(port, "127.0.0.1", () => resolve(server));
  });
}

/** The model file that was meant; an error for what is no model. @param {string} given @returns {Promise<string>} */
async function findModel(given) {
  const status = await stat(given).catch(() => null);
  if (!status) throw new Error(`${given}: there is no such model file; python -m export makes one`);
  const paths = status.isDirectory() ? MODELS.map((name) => join(given, name)) : [given];
  for (const path of paths)
    if ((await stat(path).catch(() => null))?.isFile()) {
      try {
        readMetadata(new Uint8Array(await readFile(path)));
      } catch (error) {
        throw new Error(`${path}: ${error.message}`);
      }
      return path;
    }
  const expected = status.isDirectory() ? `${MODELS.join(" or ")} in it, found neither` : "a model file, found none";
  throw new Error(`${given}: expected ${expected}; python -m export makes one`);
}

const USAGE = "usage: node serve.mjs MODEL [--port PORT] [--threads] [--into FOLDER]";

async function main() {
  const options = {
    port: { type: "string", default: "8080" }, threads: { type: "boolean" }, into: { type: "string" }, help: { type: "boolean", short: "h" },
  };
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  if (values.help) return console.log(USAGE);
  if (positionals.length !== 1) throw new Error(USAGE);
  if (!/^\d{1,5}$/.test(values.port) || values.port > 65535) throw new Error(`expected --port from 0 to 65535, found ${values.port}`);
  const model = await findModel(positionals[0]);
  if (!(await stat(join(ORT, ORT_FILES[0])).catch(() => null)))
    throw new Error(`expected ${ORT}, found nothing; run npm install --ignore-scripts in javascript/`);
  const files = await siteFiles(model, model === positionals[0] ? [] : await findFloats(positionals[0], model));
  if (values.into) {
    for (const [path, source] of files) {
      await mkdir(join(values.into, dirname(path)), { recursive: true });
      await copyFile(source, join(values.into, path));
    }
    console.log(`${files.size} files in ${values.into}: copy that folder to any web server (https, for camera and offline use)`);
  } else {
    const server = await serve(files, { port: Number(values.port), isolated: values.threads });
    console.log(`http://127.0.0.1:${server.address().port}/`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  await main().catch((error) => {
    if (error.constructor !== Error && !String(error.code).startsWith("ERR_PARSE_ARGS")) throw error; // a mistake in this file
    console.error(`serve.mjs: ${error.message}`);
    process.exitCode = 2;
  });
