// node serve.mjs MODEL [--port 8000] [--threads]     serve the page on this machine
// node serve.mjs MODEL --into FOLDER                 copy the page and all it needs, for any web server
//
// --threads sends the two headers that WebAssembly needs for threads.

import { createReadStream } from "node:fs";
import { copyFile, mkdir, readdir, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { basename, dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const HERE = import.meta.dirname ?? dirname(fileURLToPath(import.meta.url));
const PACKAGE = join(HERE, "..", "..", "javascript");
const ORT = join(PACKAGE, "node_modules", "onnxruntime-web", "dist");
const ORT_FILES = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];
const TYPES = {
  ".html": "text/html; charset=utf-8", ".mjs": "text/javascript", ".js": "text/javascript", ".css": "text/css",
  ".svg": "image/svg+xml", ".wasm": "application/wasm",
};
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** Every file of the site: its path there, and where it is here. @param {string | undefined} model */
export async function siteFiles(model) {
  const files = new Map();
  for (const name of await readdir(HERE)) if (name !== basename(import.meta.url)) files.set(name, join(HERE, name));
  for (const name of await readdir(PACKAGE))
    if (extname(name) === ".mjs" && !["classify.mjs", "cpu.mjs", "node.mjs"].includes(name))
      files.set(`vit-edge/${name}`, join(PACKAGE, name));
  for (const name of ORT_FILES) files.set(`ort/${name}`, join(ORT, name));
  if (model) files.set("model.onnx", model);
  return files;
}

/** @param {Map<string, string>} files @param {{port?: number, isolated?: boolean}} options */
export function serve(files, { port = 0, isolated = false } = {}) {
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? "", "http://x").pathname).slice(1) || "index.html";
    const status = files.has(path) && (await stat(files.get(path)).catch(() => null));
    if (!status) return response.writeHead(404, isolated ? ISOLATED : {}).end();
    const tag = `"${status.size}-${status.mtimeMs}"`;
    const headers = { "Content-Type": TYPES[extname(path)] ?? "application/octet-stream", ETag: tag, ...(isolated ? ISOLATED : {}) };
    if (request.headers["if-none-match"] === tag) return response.writeHead(304, headers).end();
    response.writeHead(200, { ...headers, "Content-Length": status.size });
    createReadStream(files.get(path)).on("error", () => response.destroy()).pipe(response);
  });
  return new Promise((resolve, reject) => {
    server.on("error", reject);
    server.listen(port, "127.0.0.1", () => resolve(server));
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const options = { port: { type: "string" }, threads: { type: "boolean" }, into: { type: "string" } };
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  if (positionals.length !== 1) {
    console.error("usage: node serve.mjs MODEL [--port PORT] [--threads] [--into FOLDER]");
    process.exit(2);
  }
  for (const needed of [positionals[0], join(ORT, ORT_FILES[0])])
    if (!(await stat(needed).catch(() => null))) {
      console.error(`expected ${needed}, found nothing${needed.startsWith(ORT) ? "; run npm install --ignore-scripts in javascript/" : ""}`);
      process.exit(2);
    }
  const files = await siteFiles(positionals[0]);
  if (values.into) {
    for (const [path, source] of files) {
      await mkdir(join(values.into, dirname(path)), { recursive: true });
      await copyFile(source, join(values.into, path));
    }
    console.log(`${files.size} files in ${values.into}: copy that folder to any web server (https, for camera and offline use)`);
  } else {
    const server = await serve(files, { port: Number(values.port ?? 8000), isolated: values.threads });
    console.log(`http://127.0.0.1:${server.address().port}/`);
  }
}
