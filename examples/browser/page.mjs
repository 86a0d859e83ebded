// What a person sees and does. The model is in worker.mjs.

const $ = (id) => document.getElementById(id);
const percent = (share) => (share >= 0.9995 ? "100 %" : `${(100 * share).toFixed(1)} %`);
const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
const megabytes = (bytes) => (bytes < 1e5 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
const isModel = (file) => file.name.toLowerCase().endsWith(".onnx");

const waiting = new Map();
let count = 0;
let worker = null;
let started = null; // a promise of the worker

/** Start what runs the model, behind the service worker that keeps the page, the model and the runtime for offline use. */
async function startWorker() {
  if ("serviceWorker" in navigator)
    try {
      await navigator.serviceWorker.register("sw.js");
      await navigator.serviceWorker.ready;
      if (!navigator.serviceWorker.controller)
        await new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true }));
    } catch (error) {
      console.warn(`not available offline: ${error.message}`); // a private window, for example
    }
  worker = new Worker("worker.mjs", { type: "module" });
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.error === undefined) resolve(data);
    else reject(new Error(data.error));
  };
  worker.onerror = () => {
    for (const { reject } of waiting.values()) reject(new Error("the part of this page that runs it did not load; reload the page"));
    waiting.clear();
  };
}

function ask(message, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++count, { resolve, reject });
    worker.postMessage({ id: count, ...message }, transfer);
  });
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

/** Show that there is no result, or no longer. */
function clear() {
  $("error").hidden = true;
  $("bars").replaceChildren();
  $("facts").hidden = true;
  $("nothing").hidden = true;
  $("answer").textContent = "";
}

// The model

let described = "";
let opening; // a promise of the model that is being opened: null, or why there is none
const REMEMBERED = "vit-edge device"; // what the self-test chose at the first start
const device = new URLSearchParams(location.search).get("device");

/** Use the storage, which a private window may refuse: there the self-test runs at every start. */
function attempt(work) {
  try {
    return work();
  } catch {
    return null;
  }
}

function openModel(file) {
  opening = open(file);
}

async function open(file) {
  $("model").textContent = file ? `Opening ${file.name}…` : "Loading the model…";
  $("error").hidden = true;
  try {
    const bytes = file ? new Uint8Array(await file.arrayBuffer()) : undefined;
    await (started ??= startWorker());
    const remembered = attempt(() => JSON.parse(localStorage.getItem(REMEMBERED)));
    const { model } = await ask({ open: bytes, device, remembered }, bytes ? [bytes.buffer] : []);
    const threads = model.device === "webgpu" ? "WebGPU" : model.threads === 1 ? "1 thread" : `${model.threads} threads`;
    if (model.remember && !device) attempt(() => localStorage.setItem(REMEMBERED, JSON.stringify(model.remember)));
    $("device").textContent = model.why;
    const kinds = model.labels === 1 ? "1 class" : `${model.labels} classes`;
    described = `${file ? `${file.name}: ` : ""}${kinds}, ${model.variant}, ${megabytes(model.bytes)}, ${threads}`;
    for (const id of ["choose", "camera"]) $(id).disabled = false;
    document.body.dataset.ready = String(count);
    return null;
  } catch (error) {
    clear();
    $("nothing").hidden = false;
    fail(`${file ? `${file.name} cannot be used` : "No model"}: ${error.message}.`);
    return error.message;
  } finally {
    $("model").textContent = described || "No model is open";
  }
}

// Images

let shown = null; // the address of the preview
let newest = 0; // answers to older images are not shown

/** The label, or the several labels of an image. */
const nameOf = ({ label, labels }) => (labels ? labels.map((each) => each.label).join(", ") || "no label" : label);

function show(prediction) {
  $("error").hidden = true;
  $("nothing").hidden = true;
  const items = prediction.top.map(({ label, score }) => {
    const item = document.createElement("li");
    const name = Object.assign(document.createElement("span"), { textContent: label });
    const share = Object.assign(document.createElement("span"), { textContent: percent(score), className: "share" });
    const bar = Object.assign(document.createElement("div"), { className: "bar" });
    bar.append(document.createElement("i"));
    bar.firstChild.style.width = `${100 * score}%`;
    item.append(name, share, bar);
    return item;
  });
  $("bars").replaceChildren(...items);
  $("decode").textContent = milliseconds(prediction.milliseconds.decode);
  $("resize").textContent = milliseconds(prediction.milliseconds.preprocess);
  $("latency").textContent = milliseconds(prediction.milliseconds.model);
  $("facts").hidden = false;
}

async function classify(file) {
  stopCamera();
  const current = ++newest;
  clear();
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  Object.assign($("preview"), { src: shown, hidden: false, alt: `Your image ${file.name}` });
  $("hint").hidden = true;
  $("stage").classList.add("filled");
  try {
    const missing = await opening; // an image that comes before the model waits for it
    if (current !== newest) return;
    if (!described) throw new Error(missing);
    const { prediction } = await ask({ image: file });
    if (current !== newest) return;
    show(prediction);
    $("answer").textContent = prediction.labels ? nameOf(prediction) : `${nameOf(prediction)}, ${percent(prediction.score)}`;
    document.body.dataset.done = JSON.stringify({ ...prediction, logits: [...prediction.logits] });
  } catch (error) {
    if (current !== newest) return;
    $("preview").hidden = true;
    $("hint").hidden = false;
    $("stage").classList.remove("filled");
    fail(`${file.name || "The image"} has no label: ${error.message}.`);
  }
}

function take(files) {
  const [file] = files;
  if (!file) return;
  if (isModel(file)) openModel(file);
  else classify(file);
}

for (const [button, input] of [["choose", "image-file"], ["choose-model", "model-file"]]) {
  $(button).onclick = () => $(input).click();
  $(input).onchange = () => {
    if (input === "model-file" && $(input).files[0]) openModel($(input).files[0]);
    else take($(input).files);
    $(input).value = ""; // the same file can be chosen again
  };
}
document.ondragover = (event) => {
  event.preventDefault();
  $("stage").classList.add("over");
};
document.ondragleave = (event) => event.relatedTarget ?? $("stage").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  take(event.dataTransfer.files);
};
document.onpaste = (event) => take(event.clipboardData.files);

// The camera: one frame after another, as fast as the model answers

let stream = null;

async function startCamera() {
  clear();
  try {
    if (!navigator.mediaDevices) throw new Error("this page needs https to use it");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const reasons = { NotAllowedError: "it was not allowed", NotFoundError: "there is none", NotReadableError: "another program uses it" };
    return fail(`The camera cannot be used: ${reasons[error.name] ?? error.message}.`);
  }
  $("camera").textContent = "Stop camera";
  $("camera").setAttribute("aria-pressed", "true");
  $("stage").classList.add("filled");
  $("hint").hidden = $("preview").hidden = true;
  $("video").hidden = false;
  $("video").srcObject = stream;
  await $("video").play();
  const current = ++newest;
  let last = "";
  while (stream !== null && current === newest) {
    try {
      const image = await createImageBitmap($("video"));
      const { prediction } = await ask({ image }, [image]);
      if (current !== newest) return;
      show(prediction);
      if (nameOf(prediction) !== last) $("answer").textContent = last = nameOf(prediction); // said once, not every frame
      document.body.dataset.frames = String(Number(document.body.dataset.frames ?? 0) + 1);
    } catch (error) {
      if (current !== newest) return;
      stopCamera();
      fail(`The camera's image has no label: ${error.message}.`);
    }
  }
}

function stopCamera() {
  if (stream === null) return;
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  newest++;
  $("video").srcObject = null;
  $("video").hidden = true;
  $("hint").hidden = false;
  $("stage").classList.remove("filled");
  $("camera").textContent = "Start camera";
  $("camera").setAttribute("aria-pressed", "false");
}

$("camera").onclick = () => (stream === null ? startCamera() : stopCamera());

openModel();
