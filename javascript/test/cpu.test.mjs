import assert from "node:assert/strict";
import { test } from "node:test";
import { needsExactKernels } from "../cpu.mjs";
import { sessionOptions } from "../node.mjs";

const ANY_CPU = ["x86-vnni", "x86", "arm64", "wasm"];
const FULL_RANGE = ["x86-vnni", "arm64", "wasm"];
const fail = () => {
  throw new Error("not here");
};
const machine = (platform, arch, { cpuinfo, sysctl } = {}) => ({
  platform, arch,
  readFile: (path) => (path === "/proc/cpuinfo" && cpuinfo !== undefined ? cpuinfo : fail()),
  run: (command, ...args) => (`${command} ${args.join(" ")}` === "sysctl -n machdep.cpu.leaf7_features" ? sysctl ?? fail() : fail()),
});
const flags = (names) => `processor\t: 0\nmodel name\t: avx_vnni Edition\nflags\t\t: fpu ${names} avx2\nbugs\t: avx512_vnni\n`;

for (const [name, where, exact] of [
  ["Linux, AVX-512 VNNI", machine("linux", "x64", { cpuinfo: flags("avx512_vnni") }), false],
  ["Linux, AVX-VNNI", machine("linux", "x64", { cpuinfo: flags("avx_vnni") }), false],
  ["Linux, without", machine("linux", "x64", { cpuinfo: flags("avx512f") }), true],
  ["Linux, 32-bit, without", machine("linux", "ia32", { cpuinfo: flags("sse2") }), true],
  ["Linux, no /proc", machine("linux", "x64"), true],
  ["Linux, ARM", machine("linux", "arm64", { cpuinfo: "Features\t: fp asimd" }), false],
  ["macOS, Intel with", machine("darwin", "x64", { sysctl: "RDWRFSGSBASE AVX2 AVX512VNNI SHA\n" }), false],
  ["macOS, Intel without, or Rosetta", machine("darwin", "x64", { sysctl: "AVX2 BMI2\n" }), true],
  ["macOS, no answer", machine("darwin", "x64"), true],
  ["macOS, Apple", machine("darwin", "arm64"), false],
  ["Windows: not known", machine("win32", "x64"), true],
])
  test(`full-range weights, ${name}: ${exact ? "exact" : "fast"} kernels`, () => {
    assert.equal(needsExactKernels(FULL_RANGE, where), exact);
    assert.equal(needsExactKernels(ANY_CPU, where), false);
    assert.equal(needsExactKernels([], where), exact, "what is not known is taken with care");
  });

test("session options say it to ONNX Runtime", () => {
  assert.equal(sessionOptions(FULL_RANGE, { exact: true }).extra.session.x64quantprecision, "1");
  assert.equal("x64quantprecision" in sessionOptions(FULL_RANGE, { exact: false }).extra.session, false);
  assert.equal("x64quantprecision" in sessionOptions(ANY_CPU).extra.session, false);
  assert.equal(sessionOptions(ANY_CPU, { threads: 3 }).intraOpNumThreads, 3);
});
