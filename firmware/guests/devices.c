/*
 * The work `devices`: what Xen emulates of a machine for a PVH or HVM guest is given a pattern; when the guest stops for the
 * toolstack, all is armed that runs; when it goes on, each register has what it had, what runs on has gone on by as
 * much as passed, and each interrupt comes that should, once. One line a device says what differs.
 * Here: how that is told, the processor's own state, memory types, and the Hyper-V interface.
 */
#include "devices.h"

struct clocks left;
u64 slack = SLACK;
static u32 compared, wrong, is_armed, is_on;
static char said[250];

u64 ticks(void)
{
    u32 low, high;

    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}

u64 passed(u64 since_ticks)
{
    return ticks_to_ns(ticks() - since_ticks);
}

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
    __builtin_va_list list;
    ulong used = length(said);

    wrong++;
    if (used > sizeof(said) - 80) /* the first ones tell enough */
        return;
    __builtin_va_start(list, format);
    format_list_into(said + used, sizeof(said) - used, format, list);
    __builtin_va_end(list);
}

void same_as(const char *what, u64 got, u64 want)
{
    compared++;
    if (got != want)
        say(" %s=0x%llx want=0x%llx", what, got, want);
}

void within(const char *what, u64 got, u64 low, u64 high)
{
    compared++;
    if (got < low || got > high)
        say(" %s=%llu want=%llu..%llu", what, got, low, high);
}

void report(const char *check)
{
    result(check, !wrong, "compared=%u wrong=%u%s", compared, wrong, said);
    compared = wrong = 0;
    said[0] = 0;
}

/* --- the processor: what a save has of it and the work `registers` does not */
#define CR2_PATTERN 0x00abc000ul
#define CR0_EXTRA 0x00050000ul /* WP, AM */
#define CR4_EXTRA 0x4ul        /* TSD: of no meaning at privilege level 0 */
#define GDT_ENTRIES 8
#define LDT_SELECTOR 0x28 /* in 64 bit these take two entries each */
#define TSS_SELECTOR 0x18
#define LOCAL_SELECTOR 4 /* the only one of the local table */
#define FLAGS 0x240cd7   /* ID, AC, OF, DF, SF, ZF, AF, PF, CF */

struct pointer {
    u16 limit;
    ulong base;
} __attribute__((packed));
static u64 gdt[GDT_ENTRIES] __attribute__((aligned(8))), ldt[1] __attribute__((aligned(8)));
static u32 tss[26], marker[4] = {0x600dc0de, 0x12345678, 0x9abcdef0, 0x0f1e2d3c};
static struct pointer idt_before;

#ifdef __x86_64__
#define GENERAL 10
static const char *const general_names[GENERAL] = {"rbx", "rcx", "rdx", "rbp", "r8", "r9", "r10", "r11", "r12", "r13"};
#else
#define GENERAL 4
static const char *const general_names[GENERAL] = {"edx", "esi", "edi", "ebp"};
#endif
ulong suspend_general[GENERAL], suspend_flags; /* start-pvh.S: what is loaded, and then what was found */
static ulong general_loaded[GENERAL];

static u64 descriptor(ulong base, u32 limit, u32 kind)
{
    return (u64)(base >> 24 & 0xff) << 56 | (u64)(kind & 0xf0ff) << 40 | (u64)(base & 0xffffff) << 16 | (limit & 0xffff);
}

static void processor_program(void)
{
    struct pointer now;
    ulong cr;

    __asm__ volatile("sgdt %0" : "=m"(now));
    memcpy(gdt, (void *)now.base, 3 * sizeof(u64));
    ldt[0] = descriptor((ulong)marker, sizeof(marker) - 1, 0x93);
    gdt[TSS_SELECTOR / 8] = descriptor((ulong)tss, sizeof(tss) - 1, 0x89);
    gdt[LDT_SELECTOR / 8] = descriptor((ulong)ldt, sizeof(ldt) - 1, 0x82);
    now = (struct pointer){sizeof(gdt) - 1, (ulong)gdt};
    __asm__ volatile("lgdt %0; lldt %w1; ltr %w2" : : "m"(now), "r"(LDT_SELECTOR), "r"(TSS_SELECTOR) : "memory");
    gdt[LDT_SELECTOR / 8] = 0; /* what the processor knows of it is all there is from now on */
#ifdef __x86_64__
    __asm__ volatile("mov %w0, %%es" : : "r"(LOCAL_SELECTOR));
#else
    __asm__ volatile("mov %w0, %%gs" : : "r"(LOCAL_SELECTOR));
    ldt[0] = descriptor((ulong)marker + 4, sizeof(marker) - 5, 0x93);
#endif
    __asm__ volatile("sidt %0" : "=m"(idt_before));
    __asm__ volatile("mov %0, %%cr2" : : "r"(CR2_PATTERN));
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr));
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr | CR0_EXTRA));
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr));
    __asm__ volatile("mov %0, %%cr4" : : "r"(cr | CR4_EXTRA));
    set_msr(0xc0000080, get_msr(0xc0000080) | 1); /* SCE */
}

static ulong cr0_before, cr3_before, cr4_before;
static u64 efer_before;

static void read_controls(ulong *cr0, ulong *cr2, ulong *cr3, ulong *cr4)
{
    __asm__ volatile("mov %%cr0, %0" : "=r"(*cr0));
    __asm__ volatile("mov %%cr2, %0" : "=r"(*cr2));
    __asm__ volatile("mov %%cr3, %0" : "=r"(*cr3));
    __asm__ volatile("mov %%cr4, %0" : "=r"(*cr4));
}

static void processor_arm(void)
{
    ulong cr2;

    read_controls(&cr0_before, &cr2, &cr3_before, &cr4_before);
    same_as("cr2", cr2, CR2_PATTERN);
    efer_before = get_msr(0xc0000080);
    for (unsigned i = 0; i < GENERAL; i++)
        suspend_general[i] = general_loaded[i] = (ulong)(0x1122334455667788ull * (i + 3));
    suspend_flags = FLAGS;
}

static void processor_look(void)
{
    struct pointer now;
    ulong cr0, cr2, cr3, cr4;
    u32 local = 0;
    u16 selector;

    for (unsigned i = 0; i < GENERAL; i++)
        same_as(general_names[i], suspend_general[i], general_loaded[i]);
    same_as("flags", suspend_flags, FLAGS);
    read_controls(&cr0, &cr2, &cr3, &cr4);
    same_as("cr0", cr0, cr0_before);
    same_as("cr3", cr3, cr3_before);
    same_as("cr4", cr4, cr4_before);
    same_as("efer", get_msr(0xc0000080), efer_before);
    __asm__ volatile("sgdt %0" : "=m"(now));
    same_as("gdt", now.base, (ulong)gdt);
    same_as("gdt-limit", now.limit, sizeof(gdt) - 1);
    __asm__ volatile("sidt %0" : "=m"(now));
    same_as("idt", now.base, idt_before.base);
    same_as("idt-limit", now.limit, idt_before.limit);
    __asm__ volatile("sldt %0" : "=m"(selector));
    same_as("ldt", selector, LDT_SELECTOR);
    __asm__ volatile("str %0" : "=m"(selector));
    same_as("tr", selector, TSS_SELECTOR);
    __asm__ volatile("lsl %1, %0; jz 1f; xor %0, %0; 1:" : "=&r"(local) : "r"(LOCAL_SELECTOR) : "cc");
#ifdef __x86_64__
    same_as("local-limit", local, sizeof(marker) - 1);
    __asm__ volatile("mov %%es, %0" : "=m"(selector));
    same_as("es", selector, LOCAL_SELECTOR);
#else
    same_as("local-limit", local, sizeof(marker) - 5);
    __asm__ volatile("mov %%gs, %0" : "=m"(selector));
    same_as("gs", selector, LOCAL_SELECTOR);
    __asm__ volatile("mov %%gs:4, %0" : "=r"(local)); /* by the base that the table no longer has */
    same_as("gs-base", local, marker[1]);
#endif
    report("processor");
    same_as("cr2", cr2, CR2_PATTERN);
    report("cr2");
}

/* --- clocks */
static void time_look(void)
{
    u64 gone = passed(left.ticks), wall = wall_time() - left.wall;

    within("tsc", gone, 1, wall + slack); /* it stands still while nobody has the guest */
    within("wall", wall, 1, 1800 * SECOND);
    report("time");
}

/* --- memory types: Intel SDM 3A, 11.11. Xen gives a guest 8 variable ranges. */
#define MTRR_BASE(n) (0x200 + 2 * (n))
#define MTRR_DEFAULT 0x2ff
#define PAT 0x277
#define RANGES 8

static const u32 fixed_ranges[11] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f};
static const u8 types[5] = {6, 0, 1, 4, 5};

static u64 fixed_value(unsigned i)
{
    u64 value = 0;

    for (unsigned k = 0; k < 8; k++)
        value = value << 8 | types[(i + k * (i + 1)) % 5];
    return value;
}

static u64 range_base(unsigned n)
{
    return 0xc0000000ull + n * 0x1000000 + types[n % 5];
}

static u64 range_mask(unsigned n)
{
    return 0xff000000ull + n * 0x1000 + 0x800 * (n != 6); /* one of them is off */
}

#define PAT_VALUE 0x0001040500070406ull
#define DEFAULT_VALUE 0xc05 /* on, fixed ranges on, write-protected: of no effect with nested paging */

static void memory_types_compare(void)
{
    for (unsigned i = 0; i < 11; i++)
        same_as("fixed", get_msr(fixed_ranges[i]), fixed_value(i));
    same_as("base0", get_msr(MTRR_BASE(0)), range_base(0));
    same_as("mask0", get_msr(MTRR_BASE(0) + 1), range_mask(0));
    same_as("default", get_msr(MTRR_DEFAULT), DEFAULT_VALUE);
    same_as("pat", get_msr(PAT), PAT_VALUE);
    same_as("capability", get_msr(0xfe) & 0xff, RANGES);
}

static void ranges_compare(void)
{
    for (unsigned n = 1; n < RANGES; n++) {
        same_as("base", get_msr(MTRR_BASE(n)), range_base(n));
        same_as("mask", get_msr(MTRR_BASE(n) + 1), range_mask(n));
    }
}

static void memory_types_program(void)
{
    for (unsigned i = 0; i < 11; i++)
        set_msr(fixed_ranges[i], fixed_value(i));
    for (unsigned n = 0; n < RANGES; n++) {
        set_msr(MTRR_BASE(n), range_base(n));
        set_msr(MTRR_BASE(n) + 1, range_mask(n));
    }
    set_msr(MTRR_DEFAULT, DEFAULT_VALUE);
    set_msr(PAT, PAT_VALUE);
    memory_types_compare();
    ranges_compare();
    report("mtrr-set");
}

static void memory_types_look(void)
{
    memory_types_compare();
    report("mtrr");
    ranges_compare();
    report("mtrr-ranges");
}

/* --- the Hyper-V interface, with `viridian=1`. Source: Hyper-V TLFS 6.0b, appendix; xen/arch/x86/hvm/viridian. */
#define TIME_COUNT 0x40000020
static char pages[4][PAGE] __attribute__((aligned(4096)));
static u64 count_before;
static const struct {
    const char *name;
    u32 number;
    int page; /* whose address is added, with 1 for "on"; -1: none */
    u64 value;
} hyperv[] = {
    {"os-id", 0x40000000, -1, 0x8100123456789abcull},
    {"hypercall", 0x40000001, 0, 0},
    {"reference-tsc", 0x40000021, 1, 0},
    {"assist", 0x40000073, 2, 0},
    {"message-page", 0x40000083, 3, 0},
    {"sint0", 0x40000090, -1, 0x10061},
    {"sint2", 0x40000092, -1, 0x30062},
    {"sint15", 0x4000009f, -1, 0x10063},
    {"timer0-config", 0x400000b0, -1, 0x30002},
    {"timer0-count", 0x400000b1, -1, 0x12345678},
    {"timer3-config", 0x400000b6, -1, 0xf0002},
    {"timer3-count", 0x400000b7, -1, 0x23456789},
};
#define HYPERV (sizeof(hyperv) / sizeof(hyperv[0]))
static const struct {
    const char *name;
    u32 number;
    u64 value;
} hyperv_control[] = {{"control", 0x40000080, 1}, {"event-page", 0x40000082, 0x5000}};

static u64 hyperv_value(unsigned i)
{
    return hyperv[i].page < 0 ? hyperv[i].value : (ulong)pages[hyperv[i].page] | 1;
}

static void hyperv_compare(void)
{
    for (unsigned i = 0; i < HYPERV; i++)
        same_as(hyperv[i].name, get_msr(hyperv[i].number), hyperv_value(i));
}

static void control_compare(void)
{
    for (unsigned i = 0; i < 2; i++)
        same_as(hyperv_control[i].name, get_msr(hyperv_control[i].number), hyperv_control[i].value);
}

static void hyperv_program(void)
{
    for (unsigned i = 0; i < HYPERV; i++)
        set_msr(hyperv[i].number, hyperv_value(i));
    for (unsigned i = 0; i < 2; i++)
        set_msr(hyperv_control[i].number, hyperv_control[i].value);
    hyperv_compare();
    control_compare();
    report("viridian-set");
}

static void hyperv_look(void)
{
    u64 count = get_msr(TIME_COUNT) - count_before, gone = passed(left.ticks);

    hyperv_compare();
    within("time", count * 100, 1, gone + slack);
    report("viridian");
    control_compare();
    report("viridian-control");
}

/* --- all */
void devices_work(void)
{
    lapic_start();
#ifdef HVM
    chips_program();
#endif
    lapic_program();
    report("lapic-set");
    processor_program();
    memory_types_program();
    is_on = 1;
    if (option("viridian", 0))
        hyperv_program();
}

/* The guest is about to stop. */
void devices_leave(void)
{
    if (!is_on)
        return;
    memset(counts, 0, sizeof(counts));
#ifdef HVM
    chips_arm();
#endif
    lapic_arm();
    processor_arm();
    if (wrong)
        report("armed");
    compared = 0;
    if (option("viridian", 0))
        count_before = get_msr(TIME_COUNT);
    left = (struct clocks){ticks(), wall_time()};
    is_armed = 1;
}

/* It goes on. Nothing is written before all was read; then interrupts come. */
void devices_look(int cancelled)
{
    int is_seen;

    if (!is_armed)
        return;
    is_armed = 0;
    slack = cancelled ? SLACK / 5 : SLACK;
    memset(counts, 0, sizeof(counts));
    processor_look();
    time_look();
#ifdef HVM
    chips_look();
#endif
    lapic_look();
    memory_types_look();
    if (option("viridian", 0))
        hyperv_look();
    interrupts_on(200 * MILLI);
#ifdef HVM
    chips_lines();
#endif
    lapic_pending();
    do {
        u64 since = ticks();

        interrupts_on(10 * MILLI);
        is_seen = lapic_timer_done();
#ifdef HVM
        is_seen &= chips_timers_done();
#endif
        while (passed(since) < 60 * MILLI) /* interrupts that are off wait, and may end a wait early */
            wait_ports(0, 0, system_time() + 20 * MILLI);
    } while (!is_seen);
#ifdef HVM
    chips_finish();
#endif
    lapic_finish();
    print("XL devices INFO looked at\n");
}
