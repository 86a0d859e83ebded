// node drive.mjs PLAN.json: drive examples/browser in Chromium and print what happened as JSON.
//
// The plan: chromium (its path), digits and vit (model files), digitsFloats (by name on the site), tiny (a float32 ViT-Ti),
// flipped and flippedFloat (the digits with a changed weight), hardware (web.mjs that takes software for a GPU), strangers,
// digitImages, photos (paths), screenshots (a folder or null). The judging is in test_page.py.

import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serve, siteFiles } from "../../examples/browser/serve.mjs";

const require = createRequire(new URL("../../javascript/", import.meta.url));
const { chromium } = require("playwright-core");
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
  "--no-first-run", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
];
// Chromium's adapter in software: no GPU, no shader-f16, the right numbers, slowly.
const GPU = [...FLAGS.filter((flag) => flag !== "--disable-gpu"), "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
const plan = JSON.parse(await readFile(process.argv[2], "utf-8"));

/** Hold the answer to the first request for the model back until `release` is called. */
function hold(server) {
  let release;
  const held = new Promise((resolve) => (release = resolve));
  const [answer] = server.listeners("request");
  server.removeAllListeners("request");
  server.on("request", async (request, response) => {
    if (request.url === "/model.onnx") await held;
    answer(request, response);
  });
  return release;
}

/** Serve a model and open the page in a browser of its own, for as long as `work` takes. */
async function inBrowser(model, isolated, work, prepare = () => undefined, { args = FLAGS, changed = [] } = {}) {
  const server = await serve(await siteFiles(model, changed), { isolated });
  const prepared = prepare(server);
  const profile = await mkdtemp(join(tmpdir(), "chromium-"));
  const launch = { executablePath: plan.chromium, headless: true, args, viewport: { width: 390, height: 844 } };
  const context = await chromium.launchPersistentContext(profile, launch);
  const noise = [];
  try {
    const page = await context.newPage();
    page.setDefaultTimeout(90_000);
    page.on("filechooser", () => {}); // the dialog itself never opens
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && noise.push(message.text()));
    page.on("pageerror", (error) => noise.push(String(error)));
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    return { ...(await work(page, context, server, prepared)), noise };
  } catch (error) {
    throw new Error(`${error.message}\nthe console said: ${noise.join("\n")}`);
  } finally {
    await context.close();
    server.closeAllConnections();
    server.close();
    await rm(profile, { recursive: true, force: true });
  }
}

const ready = (page) => page.waitForFunction(() => document.body.dataset.ready);
const text = (page, id) => page.locator(`#${id}`).textContent();

/** Choose an image: the prediction, or the message in its place. */
async function classify(page, path) {
  await page.evaluate(() => {
    delete document.body.dataset.done;
    document.getElementById("error").hidden = true;
  });
  await page.setInputFiles("#image-file", path);
  await page.waitForFunction(() => document.body.dataset.done || !document.getElementById("error").hidden);
  const done = await page.evaluate(() => document.body.dataset.done);
  return done === undefined ? { error: await text(page, "error") } : JSON.parse(done);
}

async function classifyAll(page, paths) {
  const found = {};
  for (const path of paths) found[path] = await classify(page, path);
  return found;
}

async function openStrangers(page) {
  const messages = {};
  for (const path of plan.strangers) {
    await page.evaluate(() => (document.getElementById("error").hidden = true));
    await page.setInputFiles("#model-file", path);
    await page.waitForFunction(() => !document.getElementById("error").hidden);
    messages[path] = await text(page, "error");
  }
  return messages;
}

/** Open a model with "Open a model…": what the page says of it, or the message in its place. */
async function openByHand(page, path) {
  await page.evaluate(() => {
    delete document.body.dataset.ready;
    document.getElementById("error").hidden = true;
  });
  await page.setInputFiles("#model-file", path);
  return settled(page);
}

/** Wait until there is a model, or a message in its place. */
async function settled(page) {
  await page.waitForFunction(() => document.body.dataset.ready || !document.getElementById("error").hidden, null, { timeout: 240_000 });
  if (await page.locator("#error").isVisible()) return { error: await text(page, "error") };
  return { model: await text(page, "model"), device: await text(page, "device") };
}

/** Where the Tab key leads, by accessible name, and whether Enter on the first opens the file chooser. */
async function byKeyboard(page) {
  const names = [];
  await page.evaluate(() => document.activeElement?.blur());
  for (let i = 0; i < 3; i++) {
    await page.keyboard.press("Tab");
    names.push(await page.evaluate(() => document.activeElement.textContent.trim()));
  }
  await page.focus("#choose");
  const [chooser] = await Promise.all([page.waitForEvent("filechooser"), page.keyboard.press("Enter")]);
  return { names, chooser: chooser.isMultiple() === false };
}

async function drop(page, path) {
  await dropAlone(page, path);
  await page.waitForFunction(() => document.body.dataset.done);
  return JSON.parse(await page.evaluate(() => document.body.dataset.done));
}

async function dropAlone(page, path) {
  const bytes = [...(await readFile(path))];
  await page.evaluate((values) => {
    delete document.body.dataset.done;
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(values)], "dropped.png", { type: "image/png" }));
    document.getElementById("stage").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
  }, bytes);
}

async function useCamera(page) {
  await page.click("#camera");
  await page.waitForFunction(() => Number(document.body.dataset.frames) >= 3);
  const seen = { pressed: await page.getAttribute("#camera", "aria-pressed"), label: await text(page, "answer") };
  await shoot(page, "camera");
  await page.click("#camera");
  return { ...seen, stopped: await page.locator("#video").isHidden() };
}

/** Turns of the page's own loop while the worker is busy with a photo. */
async function ticksDuring(page, path) {
  await page.evaluate(() => {
    window.ticks = 0;
    window.ticking = setInterval(() => window.ticks++, 5);
  });
  await classify(page, path);
  return page.evaluate(() => (clearInterval(window.ticking), window.ticks));
}

async function shoot(page, name) {
  if (!plan.screenshots) return;
  for (const width of [390, 1280]) {
    await page.setViewportSize({ width, height: width === 390 ? 844 : 800 });
    await page.waitForTimeout(300);
    await page.screenshot({ path: join(plan.screenshots, `${name}-${width}.png`), fullPage: true });
  }
  await page.setViewportSize({ width: 390, height: 844 });
}

const facts = (page) => page.evaluate(() => ({
  title: document.title, lang: document.documentElement.lang, isolated: crossOriginIsolated,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  model: document.getElementById("model").textContent, device: document.getElementById("device").textContent,
  heights: [...document.querySelectorAll("button")].map((button) => button.getBoundingClientRect().height),
}));

const step = (name) => process.env.VERBOSE && console.error(new Date().toISOString(), name);

const plain = await inBrowser(plan.digits, false, async (page, context, server) => {
  await ready(page);
  await shoot(page, "start");
  const result = { facts: await facts(page), tree: await page.locator("body").ariaSnapshot() };
  step("keyboard");
  result.keyboard = await byKeyboard(page);
  step("camera");
  result.camera = await useCamera(page);
  step("images");
  result.images = await classifyAll(page, plan.digitImages);
  await shoot(page, "digit");
  result.dropped = await drop(page, plan.digitImages[0]);
  result.strangers = await openStrangers(page);
  await shoot(page, "stranger");
  result.flipped = await openByHand(page, plan.flipped);
  step("offline");
  await context.setOffline(true);
  server.closeAllConnections();
  server.close();
  await page.reload();
  await ready(page);
  result.offline = { ...(await classify(page, plan.digitImages[0])), device: await text(page, "device") };
  return result;
});

const isolated = await inBrowser(plan.vit, true, async (page) => {
  await ready(page);
  const result = { facts: await facts(page), images: await classifyAll(page, plan.photos) };
  await shoot(page, "photo");
  result.ticks = await ticksDuring(page, plan.photos[0]);
  result.broken = await classifyAll(page, plan.broken);
  await shoot(page, "broken");
  return result;
});

const bare = await inBrowser(undefined, false, async (page) => {
  await page.waitForFunction(() => !document.getElementById("error").hidden);
  const result = { error: await text(page, "error"), disabled: await page.locator("#choose").isDisabled() };
  await page.setInputFiles("#model-file", plan.digits);
  await ready(page);
  result.images = await classifyAll(page, plan.digitImages.slice(0, 1));
  await page.goto(`${page.url()}?device=webgpu`);
  await settled(page);
  return { ...result, noGpu: await openByHand(page, plan.digits) };
});

/** Images that are dropped before there is a model: the last one waits for it. */
const early = await inBrowser(
  plan.digits,
  false,
  async (page, _context, _server, release) => {
    await page.waitForFunction(() => document.getElementById("model").textContent.startsWith("Loading"));
    for (const path of plan.digitImages.slice(0, 2)) await dropAlone(page, path);
    await page.waitForTimeout(300);
    const result = { error: await page.locator("#error").isVisible(), preview: await page.locator("#preview").isVisible() };
    release();
    await page.waitForFunction(() => document.body.dataset.done);
    return { ...result, prediction: JSON.parse(await page.evaluate(() => document.body.dataset.done)) };
  },
  hold,
);

/** The same where no model comes. */
const never = await inBrowser(
  undefined,
  false,
  async (page, _context, _server, release) => {
    await dropAlone(page, plan.digitImages[0]);
    release();
    await page.waitForFunction(() => document.getElementById("error").textContent.startsWith("dropped.png"));
    return { error: await text(page, "error"), preview: await page.locator("#preview").isVisible() };
  },
  hold,
);

/** The GPU that is asked for by the address, beside WebAssembly with the same files. */
const gpu = await inBrowser(
  plan.digits,
  false,
  async (page) => {
    const result = { automatic: await settled(page) };
    for (const device of ["wasm", "webgpu"]) {
      step(device);
      await page.goto(new URL(`?device=${device}`, page.url()).href);
      const digits = await settled(page);
      if (device === "wasm") await openByHand(page, plan.digitsFloats["model.fp32.onnx"]);
      const images = await classifyAll(page, plan.digitImages);
      await shoot(page, device);
      step("ViT-Ti");
      result[device] = { digits, images, tiny: await openByHand(page, plan.tiny), photos: await classifyAll(page, plan.photos.slice(0, 1)) };
    }
    result.float16 = await openByHand(page, plan.digitsFloats["model.fp16.onnx"]);
    await page.goto(new URL("?device=npu", page.url()).href);
    return { ...result, unknown: await settled(page) };
  },
  undefined,
  { args: GPU, changed: Object.entries(plan.digitsFloats) },
);

/** The choice where the adapter does not say that it is software: with the right file, a changed one, and none at all. */
const hardware = {};
const FLOATS = { right: plan.digitsFloats["model.fp32.onnx"], changed: plan.flippedFloat, spoiled: plan.strangers[0] };
for (const [name, file] of Object.entries(FLOATS))
  hardware[name] = await inBrowser(plan.digits, false, settled, undefined, {
    args: GPU, changed: [["model.fp32.onnx", file], ["vit-edge/web.mjs", plan.hardware]],
  });

/** The WebGPU of onnxruntime-web before the native one. */
const ort = (name) => join(new URL("../../javascript/node_modules/onnxruntime-web/dist/", import.meta.url).pathname, name);
const OLD = [
  ["ort/ort.webgpu.min.mjs", ort("ort.min.mjs")],
  ...["mjs", "wasm"].map((end) => [`ort/ort-wasm-simd-threaded.jsep.${end}`, ort(`ort-wasm-simd-threaded.jsep.${end}`)]),
];
const old = await inBrowser(
  plan.digits,
  false,
  async (page) => {
    await settled(page);
    await page.goto(new URL("?device=webgpu", page.url()).href);
    return settled(page);
  },
  undefined,
  { args: GPU, changed: [...Object.entries(plan.digitsFloats), ...OLD] },
);

console.log(JSON.stringify({ plain, isolated, bare, early, never, gpu, hardware, old }));
