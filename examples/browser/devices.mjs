// Which device runs the model, and why: WebAssembly or the GPU. Files beside the page: model.onnx (INT8 where there is one) for
// WebAssembly, model.fp16.onnx and model.fp32.onnx for the GPU. A device whose answers fail the self-test is not used.

import { DeviceError, findGpu, ModelError, openClassifier } from "./vit-edge/web.mjs";

const MAX_THREADS = 4;
const IMAGES = 2; // of the self-test at the first start
const RUNTIMES = { wasm: "./ort/ort.wasm.min.mjs", webgpu: "./ort/ort.webgpu.min.mjs" };
const PLACES = { wasm: "in WebAssembly", webgpu: "on the GPU" };
const BLACK = { width: 1, height: 1, data: new Uint8Array([0, 0, 0, 255]) };
// Threads in WebAssembly need a page that is isolated (two headers, see docs/guides/browser.md).
export const THREADS = self.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency) : 1;

/**
 * Open the model on the fastest device that passes its self-test.
 * @param {Uint8Array | undefined} given a model file; undefined for those beside the page
 * @param {string | null} device the one to use, never another in its place; null chooses
 * @param {any} remembered `remember` of an earlier start, or null
 * @returns `classifier`, `bytes` of its file, `why` in words, and `remember` for the next start
 */
export async function openModel(given, device, remembered) {
  if (device !== null) {
    if (!Object.hasOwn(RUNTIMES, device)) throw new DeviceError(`expected ?device=wasm or ?device=webgpu, found ${device}`);
    const file = device === "webgpu" ? await findFloat(given, await findGpu()) : null;
    return describe(await openOn(device, file ?? (await findModel(given))), given, "as the address of this page asks");
  }
  const again = given ? null : await reopen(remembered);
  if (again) return again;
  const cpu = await openOn("wasm", await findModel(given));
  const [gpu, reason] = await tryGpu(given, cpu);
  const [kept, other] = gpu && (cpu.failed || gpu.check.latency_ms < cpu.check.latency_ms) ? [gpu, cpu] : [cpu, gpu];
  await other?.classifier.release();
  return describe(kept, given, other ? `${speed(kept)}; ${PLACES[other.device]} ${speed(other)}` : reason, `; ${reason}`);
}

/** What the GPU gives, or why it is not used. */
async function tryGpu(given, cpu) {
  const offered = await findGpu();
  if (offered.missing) return [null, offered.missing];
  if (offered.software) return [null, "WebGPU is computed by the CPU here"];
  if (cpu.check.fault === "no self-test") return [null, "nothing proves the GPU without a self-test in the file"];
  try {
    const file = (await findFloat(given, offered)) ?? (cpu.classifier.metadata.variant === "int8" ? null : cpu);
    if (!file) return [null, "the GPU needs a float16 or float32 file"];
    const gpu = await openOn("webgpu", file);
    if (gpu.check.passed) return [gpu, ""];
    await gpu.classifier.release();
    return [null, `the GPU fails the self-test (${gpu.check.verdict})`];
  } catch (error) {
    return [null, `the GPU cannot be used (${messageOf(error)})`];
  }
}

/** Of an error that a device or a file causes; others are thrown again. */
function messageOf(error) {
  if (!(error instanceof DeviceError || error instanceof ModelError)) throw error;
  return error.message;
}

async function openOn(device, { name, bytes }, images = IMAGES) {
  const runtime = await import(RUNTIMES[device]);
  Object.assign(runtime.env.wasm, { wasmPaths: new URL("./ort/", import.meta.url).href, numThreads: THREADS });
  const classifier = await openClassifier(bytes, { runtime, device, top: 5 });
  const check = images ? await classifier.check({ images }) : null;
  const untested = !check || check.fault === "no self-test";
  if (untested) await classifier.classify(BLACK); // the first image as fast as the next
  return { device, name, bytes, classifier, check, failed: !untested && !check.passed };
}

/** What was chosen at an earlier start, where the same browser sees the same file; null otherwise. */
async function reopen(remembered) {
  if (remembered?.browser !== navigator.userAgent) return null;
  const file = await findFile(remembered.name);
  if (!file || digestOf(file.bytes) !== remembered.digest) return null;
  try {
    const { classifier } = await openOn(remembered.device, file, 0);
    return { classifier, bytes: file.bytes, why: `${remembered.why} Checked at the first start.`, remember: remembered };
  } catch (error) {
    messageOf(error);
    return null; // the GPU is gone, for example: chosen anew
  }
}

/** What `openModel` returns; an error where the device fails the self-test. */
async function describe({ device, name, bytes, classifier, check, failed }, given, reason, besides = "") {
  if (failed) {
    await classifier.release();
    throw new DeviceError(`the device ${device} fails the self-test (${check.verdict})${besides}`);
  }
  const sentences = [`${PLACES[device]}: ${reason}`, check.passed ? `self-test ${check.verdict}` : check.verdict];
  const why = sentences.map((text) => `${text[0].toUpperCase()}${text.slice(1)}.`).join(" ");
  const digest = digestOf(bytes);
  const remember = given || !check.passed || !digest ? null : { device, name, digest, browser: navigator.userAgent, why };
  return { classifier, bytes, why, remember };
}

const speed = ({ failed, check: { latency_ms: time, verdict } }) =>
  failed ? `the self-test fails (${verdict})` : `${time.toFixed(time < 10 ? 1 : 0)} ms per image`;

/** The SHA-256 that a model file ends with, which opening it has checked; null where it has none. */
function digestOf(bytes) {
  const end = new TextDecoder("latin1").decode(bytes.subarray(-64));
  return /^[0-9a-f]{64}$/.test(end) ? end : null;
}

async function findModel(given) {
  const file = given ? { name: "model.onnx", bytes: given } : await findFile("model.onnx");
  if (file === null) throw new ModelError("there is no model beside this page; open one (.onnx)");
  return file;
}

/** The file for the GPU beside the page: float16 where its shaders have that, or else float32; null where there is none. */
const findFloat = async (given, { float16 }) =>
  given ? null : findFile(...(float16 ? ["model.fp16.onnx"] : []), "model.fp32.onnx");

/** The first of these files that is beside the page, or null. @param {string[]} names */
async function findFile(...names) {
  for (const name of names) {
    const answer = await fetch(new URL(name, import.meta.url)).catch(() => {
      throw new ModelError("the model could not be downloaded: there is no connection");
    });
    if (answer.ok) return { name, bytes: new Uint8Array(await answer.arrayBuffer()) };
    if (answer.status !== 404) throw new ModelError(`the model could not be downloaded (HTTP ${answer.status})`);
  }
  return null;
}
