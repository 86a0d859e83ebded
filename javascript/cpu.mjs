// Whether the CPU at hand adds 8-bit products in 32 bits (VNNI), which full-range INT8 weights need on x86.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

/**
 * Where facts about the machine come from; tests pretend another machine.
 * @typedef {object} Machine
 * @property {string} arch as `process.arch`
 * @property {string} platform as `process.platform`
 * @property {(path: string) => string} readFile
 * @property {(command: string, ...args: string[]) => string} run
 */

/** @type {Machine} */
const HERE = {
  arch: process.arch,
  platform: process.platform,
  readFile: (path) => readFileSync(path, "latin1"),
  run: (command, ...args) => execFileSync(command, args, { encoding: "latin1", timeout: 2000, stdio: ["ignore", "pipe", "ignore"] }),
};

/**
 * Whether a model needs ONNX Runtime's exact kernels here: the fast ones of an x86 CPU without VNNI saturate 16-bit sums
 * of full-range weights, in silence. Where the CPU cannot be known (Windows) the answer is yes, which costs speed and
 * never accuracy.
 * @param {string[]} exactOn `exact_on` of the model's metadata
 * @param {Machine} [machine]
 */
export function needsExactKernels(exactOn, machine = HERE) {
  return ["x64", "ia32"].includes(machine.arch) && !exactOn.includes("x86") && !hasVnni(machine);
}

/** @param {Machine} machine */
function hasVnni({ platform, readFile, run }) {
  try {
    if (platform === "linux") {
      const flags = /^flags\s*:(.*)$/m.exec(readFile("/proc/cpuinfo"))?.[1].split(" ") ?? [];
      return flags.includes("avx512_vnni") || flags.includes("avx_vnni");
    }
    if (platform === "darwin") return run("sysctl", "-n", "machdep.cpu.leaf7_features").split(/\s+/).includes("AVX512VNNI");
  } catch {
    return false; // no such file or program: as where nothing can be asked
  }
  return false;
}
