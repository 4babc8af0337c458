/*
 * A pattern in each register that nothing else here uses: x87, SSE, debug registers, and those model-specific registers
 * that belong to a vCPU. The compiler is told to use general registers only, so whatever changes them is Xen, the
 * toolstack or the machine: a context switch, a sleep, a save, a relocation must all carry them over.
 */
#include "payload.h"

#ifdef __x86_64__
#define XMM_COUNT 16
#else
#define XMM_COUNT 8
#endif
#define FXSAVE_MXCSR 24 /* offsets in the image of FXSAVE: Intel SDM 1, 10.5.1 */
#define FXSAVE_ST 32
#define FXSAVE_XMM 160
#define CONTROL_WORD 0x0b7f /* all exceptions masked, 64-bit mantissa, rounding up: not what FNINIT leaves */
#define MXCSR 0x7f80        /* all exceptions masked, rounding to zero */
/*
 * Breakpoint 1: 4 bytes, on writing; set up and not switched on. QEMU 7.2 takes DR7 from a VMCB without telling its own list of
 * breakpoints (target/i386/tcg/sysemu/svm_helper.c), and dies of it in cpu_breakpoint_remove_by_ref() where one is on, in a PV
 * guest's DR7 as well.
 */
#define DR7_WATCH 0x00d00400

struct fx {
    u8 bytes[512];
} __attribute__((aligned(16)));
static struct fx images[MAX_VCPUS], now;
static u8 patterns[MAX_VCPUS][16][16] __attribute__((aligned(16)));
static ulong breakpoints[MAX_VCPUS][4];
static char never_written[PAGE] __attribute__((aligned(4096)));
static u8 is_loaded[MAX_VCPUS];

static const struct {
    const char *name;
    u32 number;
    ulong value; /* the vCPU's number is added, times 0x1000 */
} msrs[] = {
#ifdef PVH
    {"sysenter_cs", 0x174, 0x8}, /* 16 bits of it are kept by all processors */
    {"sysenter_esp", 0x175, 0x13572000},
    {"sysenter_eip", 0x176, 0x24681000},
#endif
#ifdef __x86_64__
    {"fs_base", 0xc0000100, 0x123456789000},
    {"gs_base", 0xc0000101, 0x0fedcba98000},
    {"kernel_gs_base", 0xc0000102, 0x055555555000},
#ifdef PVH
    {"star", 0xc0000081, 0x0023001000000000},
    {"lstar", 0xc0000082, 0x0aaaaaaaa000},
    {"cstar", 0xc0000083, 0x0bbbbbbbb000},
    {"sfmask", 0xc0000084, 0x47700},
#endif
#endif
    {0, 0, 0},
};
#define MSR_COUNT (sizeof(msrs) / sizeof(msrs[0]) - 1)

/* What CPUID shows is the guest's too. Left out: OSXSAVE, which the guest itself sets. */
static const struct {
    const char *name;
    u32 leaf, word, mask;
} shown[] = {
    {"cpuid-1-ecx", 1, 2, ~(1u << 27)},
    {"cpuid-1-edx", 1, 3, ~0u},
    {"cpuid-7-ebx", 7, 1, ~0u},
    {"cpuid-80000001-ecx", 0x80000001, 2, ~0u},
    {"cpuid-80000001-edx", 0x80000001, 3, ~0u},
};
#define SHOWN_COUNT (sizeof(shown) / sizeof(shown[0]))
static u32 first_shown[MAX_VCPUS][SHOWN_COUNT];

static u32 show(unsigned i)
{
    u32 out[4];

    cpuid(shown[i].leaf, out);
    return out[shown[i].word] & shown[i].mask;
}

static ulong msr_value(unsigned i, u32 vcpu)
{
    return msrs[i].number == 0x174 ? msrs[i].value : msrs[i].value + vcpu * 0x1000ul;
}

static ulong read_msr(u32 number)
{
    u32 low, high;

    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
#ifdef __x86_64__
    return (ulong)high << 32 | low;
#else
    return low;
#endif
}

static void write_msr(u32 number, ulong value)
{
#ifdef __x86_64__
    u32 high = value >> 32;
#else
    u32 high = 0;
#endif

    __asm__ volatile("wrmsr" : : "c"(number), "a"((u32)value), "d"(high));
}

static ulong read_debug(unsigned i)
{
    ulong value;

    switch (i) {
    case 0: __asm__ volatile("mov %%dr0, %0" : "=r"(value)); break;
    case 1: __asm__ volatile("mov %%dr1, %0" : "=r"(value)); break;
    case 2: __asm__ volatile("mov %%dr2, %0" : "=r"(value)); break;
    case 3: __asm__ volatile("mov %%dr3, %0" : "=r"(value)); break;
    default: __asm__ volatile("mov %%dr7, %0" : "=r"(value)); break;
    }
    return value;
}

static void load_xmm(u8 (*with)[16])
{
#define XMM(n) __asm__ volatile("movups %0, %%xmm" #n : : "m"(with[n]))
    XMM(0); XMM(1); XMM(2); XMM(3); XMM(4); XMM(5); XMM(6); XMM(7);
#ifdef __x86_64__
    XMM(8); XMM(9); XMM(10); XMM(11); XMM(12); XMM(13); XMM(14); XMM(15);
#endif
#undef XMM
}

static void load_x87(u32 vcpu)
{
    u16 control = CONTROL_WORD;

    __asm__ volatile("fninit; fldcw %0" : : "m"(control));
    for (u64 i = 1; i <= 8; i++) {
        u64 number = 0x0123456789abcdefull * i + vcpu; /* an integer of 64 bits fills the mantissa of 64 bits */

        __asm__ volatile("fildll %0" : : "m"(number));
    }
}

/* The first byte of these that differs, or -1. */
static int first_difference(const u8 *a, const u8 *b, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (a[i] != b[i])
            return i;
    return -1;
}

static int differ_at(u32 vcpu, unsigned at, unsigned count)
{
    return first_difference(now.bytes + at, images[vcpu].bytes + at, count) >= 0;
}

/* Which register of this vCPU (the one that runs this) is not as it was loaded; NULL: none. */
const char *registers_broken(u32 vcpu, ulong *got, ulong *want)
{
    static const char *const breakpoint_names[] = {"dr0", "dr1", "dr2", "dr3"};
    static char name[8];

    *got = *want = 0;
    if (!is_loaded[vcpu])
        return 0;
    __asm__ volatile("fxsave %0" : "=m"(now)); /* one vCPU looks at a time */
    if (differ_at(vcpu, 0, 5)) { /* control, status and tag word */
        *got = *(u16 *)now.bytes, *want = *(u16 *)images[vcpu].bytes;
        return "x87";
    }
    if (differ_at(vcpu, FXSAVE_MXCSR, 4)) {
        *got = *(u32 *)(now.bytes + FXSAVE_MXCSR), *want = *(u32 *)(images[vcpu].bytes + FXSAVE_MXCSR);
        return "mxcsr";
    }
    for (unsigned i = 0; i < 8 + XMM_COUNT; i++) {
        unsigned at = i < 8 ? FXSAVE_ST + 16 * i : FXSAVE_XMM + 16 * (i - 8), n = i < 8 ? i : i - 8;

        if (!differ_at(vcpu, at, i < 8 ? 10 : 16))
            continue;
        *got = *(ulong *)(now.bytes + at), *want = *(ulong *)(images[vcpu].bytes + at);
        memcpy(name, i < 8 ? "st" : "xmm", 3);
        name[i < 8 ? 2 : 3] = n > 9 ? '1' : '0' + n;
        name[i < 8 ? 3 : 4] = n > 9 ? '0' + n - 10 : 0;
        name[5] = 0;
        return name;
    }
    for (unsigned i = 0; i < 4; i++)
        if (*got = read_debug(i), *want = breakpoints[vcpu][i], *got != *want)
            return breakpoint_names[i];
    if (*got = read_debug(7), *want = DR7_WATCH, *got != *want)
        return "dr7";
    for (unsigned i = 0; msrs[i].name; i++)
        if (*got = read_msr(msrs[i].number), *want = msr_value(i, vcpu), *got != *want)
            return msrs[i].name;
    for (unsigned i = 0; i < SHOWN_COUNT; i++)
        if (*got = show(i), *want = first_shown[vcpu][i], *got != *want)
            return shown[i].name;
    return 0;
}

/* Into the registers of the vCPU that runs this. */
void registers_load(u32 vcpu)
{
    u32 mxcsr = MXCSR;

#ifdef PV
    call1(fpu_taskswitch, 0); /* CR0.TS off */
#else
    ulong cr;

    __asm__ volatile("mov %%cr0, %0" : "=r"(cr));
    cr = (cr & ~0xcul) | 0x22; /* EM and TS off, MP and NE on */
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr));
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr));
    __asm__ volatile("mov %0, %%cr4" : : "r"(cr | 0x600)); /* OSFXSR, OSXMMEXCPT */
#endif
    for (unsigned i = 0; i < XMM_COUNT; i++)
        for (unsigned k = 0; k < 16; k++)
            patterns[vcpu][i][k] = 0x11 * i + 7 * k + 0x3d * vcpu + 1;
    load_x87(vcpu);
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    load_xmm(patterns[vcpu]);
    __asm__ volatile("fxsave %0" : "=m"(images[vcpu]));
    for (unsigned i = 0; i < 4; i++)
        breakpoints[vcpu][i] = (ulong)never_written + 64 * vcpu + 4 * i;
    __asm__ volatile("mov %0, %%dr0" : : "r"(breakpoints[vcpu][0]));
    __asm__ volatile("mov %0, %%dr1" : : "r"(breakpoints[vcpu][1]));
    __asm__ volatile("mov %0, %%dr2" : : "r"(breakpoints[vcpu][2]));
    __asm__ volatile("mov %0, %%dr3" : : "r"(breakpoints[vcpu][3]));
    __asm__ volatile("mov %0, %%dr7" : : "r"((ulong)DR7_WATCH));
    for (unsigned i = 0; msrs[i].name; i++)
        write_msr(msrs[i].number, msr_value(i, vcpu));
    for (unsigned i = 0; i < SHOWN_COUNT; i++)
        first_shown[vcpu][i] = show(i);
    is_loaded[vcpu] = 1;
}

/* What was loaded is what was meant to be: FXSAVE's image is compared with this from then on. */
static int is_as_meant(u32 vcpu)
{
    const u8 *image = images[vcpu].bytes;

    return *(u16 *)image == CONTROL_WORD && *(u32 *)(image + FXSAVE_MXCSR) == MXCSR && image[4] == 0xff &&
           first_difference(image + FXSAVE_XMM, patterns[vcpu][0], 16 * XMM_COUNT) < 0;
}

void registers_work(void)
{
    ulong got, want;
    const char *broken;

    registers_load(0);
    broken = registers_broken(0, &got, &want);
    result("registers", is_as_meant(0) && !broken, "x87=8 sse=%u debug=5 msr=%u meant=%d broken=%s got=0x%lx want=0x%lx",
           XMM_COUNT, (u32)MSR_COUNT, is_as_meant(0), broken ? broken : "none", got, want);
}

/* A guest's CR2 is its own: with nested paging Xen intercepts neither reads nor writes of it, and keeps no copy. */
void cr2_work(void)
{
    static const u32 patterns[] = {0x5a5ac0de, 0, 0xfffff00d};

    for (unsigned i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
        ulong want = patterns[i], got;

        __asm__ volatile("mov %0, %%cr2" : : "r"(want));
        __asm__ volatile("mov %%cr2, %0" : "=r"(got));
        if (got != want || i == sizeof(patterns) / sizeof(patterns[0]) - 1) {
            result("cr2", got == want, "written=0x%lx read=0x%lx", want, got);
            return;
        }
    }
}

void registers_look(void)
{
    static int is_told; /* one report is enough */
    ulong got, want;
    const char *broken = is_told ? 0 : registers_broken(0, &got, &want);

    if (broken) {
        is_told = 1;
        result("registers", 0, "vcpu=0 broken=%s got=0x%lx want=0x%lx", broken, got, want);
    }
}
