// The JSON document that a vit-edge model carries: the value of its ONNX metadata entry "vit_edge".
// ONNX Runtime's JavaScript API does not give it, so it is read from the protobuf (ModelProto, field 14).

/** @param {Uint8Array} message @returns {Generator<[number, Uint8Array | null]>} field numbers and bytes */
function* fields(message) {
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      if (at >= message.length || shift > 63n) throw new Error("not an ONNX file, or cut short");
      const byte = message[at++];
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return Number(value);
    }
  };
  while (at < message.length) {
    const tag = varint();
    const wire = tag & 7;
    if (wire === 0) {
      varint();
      yield [Math.floor(tag / 8), null];
      continue;
    }
    const length = { 1: 8, 2: -1, 5: 4 }[wire];
    if (length === undefined) throw new Error("not an ONNX file");
    const size = length < 0 ? varint() : length;
    if (size > message.length - at) throw new Error("not an ONNX file, or cut short");
    yield [Math.floor(tag / 8), message.subarray(at, at + size)];
    at += size;
  }
}

/** @param {Uint8Array} model the bytes of an .onnx file */
export function readMetadata(model) {
  const text = new TextDecoder("utf-8", { fatal: true });
  for (const [number, entry] of fields(model)) {
    if (number !== 14 || entry === null) continue;
    const parts = Object.fromEntries(fields(entry));
    if (parts[1] && parts[2] && text.decode(parts[1]) === "vit_edge") {
      const metadata = JSON.parse(text.decode(parts[2]));
      if (metadata.version !== 1) throw new Error(`metadata version ${metadata.version}, expected 1`);
      return metadata;
    }
  }
  throw new Error("not a vit-edge model: it carries no metadata");
}
