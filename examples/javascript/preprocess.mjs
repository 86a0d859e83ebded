// From the pixels of an image to the pixels that the model takes, as runtime/preprocess.py does it.
// Pillow's filters are the textbook ones, as wide as the image shrinks (an HTML canvas does NOT resize so).

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const cubic = (x) => {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0;
};
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/** For each of `after` samples: the first input sample it sees, and the weight of each from there on. */
function weights(before, after, from, to, name) {
  const scale = (to - from) / after;
  return Array.from({ length: after }, (_, index) => {
    const centre = from + (index + 0.5) * scale;
    if (name === "nearest") return [Math.floor(centre), [1]];
    const [support, filter] = FILTERS[name];
    const stretch = Math.max(scale, 1);
    const first = Math.max(Math.trunc(centre - support * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support * stretch + 0.5), before);
    const values = [];
    for (let at = first; at < end; at++) values.push(filter((at - centre + 0.5) / stretch));
    const sum = values.reduce((a, b) => a + b, 0);
    return [first, values.map((value) => value / sum)];
  });
}

/** The part of the image that the model sees: [left, top, right, bottom]. */
function box(width, height, { size: [rows, columns], resize, resize_to }) {
  if (resize === "stretch") return [0, 0, width, height];
  const short = Math.min(width, height);
  const cover = Math.max(columns / width, rows / height);
  const scaled = resize_to
    ? [Math.trunc((resize_to * width) / short), Math.trunc((resize_to * height) / short)]
    : [Math.max(columns, even(width * cover)), Math.max(rows, even(height * cover))];
  const [left, top] = [even((scaled[0] - columns) / 2), even((scaled[1] - rows) / 2)];
  const [x, y] = [width / scaled[0], height / scaled[1]];
  return [left * x, top * y, Math.min((left + columns) * x, width), Math.min((top + rows) * y, height)];
}

/** Rounds halves to even, as Python does. */
function even(value) {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

const byte = (value) => Math.min(255, Math.max(0, Math.floor(value + 0.5)));

/**
 * @param {{width: number, height: number, data: Uint8Array}} image RGBA, upright
 * @param {object} spec the `preprocess` of the model's metadata
 * @returns {Uint8Array} height * width * 3 bytes
 */
export function preprocess(image, spec) {
  const [rows, columns] = spec.size;
  const [left, top, right, bottom] = box(image.width, image.height, spec);
  const across = weights(image.width, columns, left, right, spec.interpolation);
  const down = weights(image.height, rows, top, bottom, spec.interpolation);
  const narrow = new Uint8Array(image.height * columns * 3);
  for (let y = 0; y < image.height; y++)
    for (let x = 0; x < columns; x++)
      for (let channel = 0; channel < 3; channel++) {
        const [first, values] = across[x];
        let sum = 0;
        for (let i = 0; i < values.length; i++) {
          const at = 4 * (y * image.width + first + i);
          const alpha = image.data[at + 3];
          sum += values[i] * Math.round((image.data[at + channel] * alpha + 255 * (255 - alpha)) / 255);
        }
        narrow[(y * columns + x) * 3 + channel] = byte(sum);
      }
  const pixels = new Uint8Array(rows * columns * 3);
  for (let y = 0; y < rows; y++)
    for (let at = 0; at < columns * 3; at++) {
      const [first, values] = down[y];
      let sum = 0;
      for (let i = 0; i < values.length; i++) sum += values[i] * narrow[(first + i) * columns * 3 + at];
      pixels[y * columns * 3 + at] = byte(sum);
    }
  return pixels;
}
