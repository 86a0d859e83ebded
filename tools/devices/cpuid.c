/* Answers the `cpuid` of libraries that without_vnni.py has changed: as a CPU without AVX-512, VNNI and AMX
   would where the variable CPUID_ANSWERS has without-vnni in it, as one of Intel where it has intel.
   Their `cpuid` (0f a2) became `ud2` (0f 0b), which raises SIGILL. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define BIT(n) (1u << (n))

static int without_vnni, intel;

static void answer(int number, siginfo_t *info, void *context)
{
    (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *instruction = (const uint8_t *)registers[REG_RIP];
    if (instruction[0] != 0x0f || instruction[1] != 0x0b) {
        signal(number, SIG_DFL); /* not ours */
        return;
    }
    uint32_t leaf = registers[REG_RAX], part = registers[REG_RCX], a, b, c, d;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(part));
    if (leaf == 0 && intel) { /* "GenuineIntel" */
        b = 0x756e6547;
        d = 0x49656e69;
        c = 0x6c65746e;
    } else if (!without_vnni) {
        /* as it is */
    } else if (leaf == 7 && part == 0) {
        b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX-512 */
        c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)); /* its VBMI, VNNI (11), BITALG, VPOPCNTDQ */
        d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* AMX, float16 */
    } else if (leaf == 7 && part == 1) {
        a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(22) | BIT(23)); /* AVX-VNNI (4), bfloat16, AMX, AVX-IFMA */
        d &= ~(BIT(4) | BIT(5) | BIT(10) | BIT(19));           /* AVX-VNNI-INT8 and -INT16, AVX10 */
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor(101))) static void before_any_library(void)
{
    const char *answers = getenv("CPUID_ANSWERS");
    without_vnni = answers && strstr(answers, "without-vnni");
    intel = answers && strstr(answers, "intel");
    struct sigaction action = {0};
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, 0);
}
