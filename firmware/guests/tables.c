/*
 * What a PV guest does to its own tables: descriptor tables, pinned page tables, pages cleared, copied and exchanged.
 * Each structure and each list of frames has another layout in a 32-bit guest. xen/arch/x86/pv/, common/compat/memory.c
 */
#include "payload.h"

typedef char page_t[PAGE];

#define EXCHANGED 8
#define ENTRIES 512       /* descriptors of a page */
#define SLOT 40           /* the one that is used */
#define LIMIT 0x54321ul   /* of that segment, in bytes */
#define SEGMENT 0x0040f20000000000ull /* present, data that can be written, privilege level 3, 32 bits, limit in bytes */

static page_t pages[EXCHANGED] __attribute__((aligned(4096)));

static u64 descriptor(u32 limit)
{
    return SEGMENT | (u64)(limit & 0xf0000) << 32 | (limit & 0xffff);
}

/* The limit of a segment as the processor reads it from the table, or 0. */
static ulong limit_of(ulong selector)
{
    ulong limit = 0;

    __asm__ volatile("lsl %1, %0; jz 1f; xor %0, %0; 1:" : "=&r"(limit) : "r"(selector) : "cc");
    return limit;
}

static long mmuext(u32 command, ulong one, ulong two)
{
    struct mmuext_op op = {command, one, two};

    return call4(mmuext_op, &op, 1, 0, DOMID_SELF);
}

static long descriptor_write(u64 address, u64 value)
{
#ifdef __x86_64__
    return call2(update_descriptor, address, value);
#else
    return call4(update_descriptor, address, address >> 32, value, value >> 32);
#endif
}

static void gdt_checks(void)
{
    ulong frames[2] = {platform_frame(pages[0]), platform_frame(pages[1])}, first, second, gone;
    long set, written, reset;

    memset(pages, 0, 2 * PAGE);
    for (unsigned i = 0; i < 2; i++)
        pv_map(pages[i], (u64)frames[i] << 12 | PV_READONLY);
    set = call2(set_gdt, frames, 2 * ENTRIES);
    written = descriptor_write(((u64)frames[0] << 12) + SLOT * 8, descriptor(LIMIT));
    written |= descriptor_write(((u64)frames[1] << 12) + SLOT * 8, descriptor(LIMIT / 2));
    first = limit_of(SLOT << 3 | 3);
    second = limit_of((ENTRIES + SLOT) << 3 | 3);
    reset = call2(set_gdt, 0, 0);
    gone = limit_of(SLOT << 3 | 3);
    result("gdt", !set && !written && first == LIMIT && second == LIMIT / 2 && !reset && !gone,
           "error=%ld,%ld,%ld limits=0x%lx,0x%lx without=0x%lx", set, written, reset, first, second, gone);
    for (unsigned i = 0; i < 2; i++)
        pv_map(pages[i], (u64)frames[i] << 12 | PV_WRITABLE);
}

static void ldt_checks(void)
{
    ulong frame = platform_frame(pages[0]), limit, gone;
    long set, reset;

    memset(pages, 0, PAGE);
    ((u64 *)pages[0])[SLOT] = descriptor(LIMIT);
    pv_map(pages[0], (u64)frame << 12 | PV_READONLY);
    set = mmuext(MMUEXT_SET_LDT, (ulong)pages[0], ENTRIES);
    limit = limit_of(SLOT << 3 | 4 | 3);
    reset = mmuext(MMUEXT_SET_LDT, 0, 0);
    gone = limit_of(SLOT << 3 | 4 | 3);
    result("ldt", !set && limit == LIMIT && !reset && !gone, "error=%ld,%ld limit=0x%lx without=0x%lx", set, reset, limit,
           gone);
    pv_map(pages[0], (u64)frame << 12 | PV_WRITABLE);
}

static void page_checks(void)
{
    ulong from = platform_frame(pages[0]), to = platform_frame(pages[1]);
    long copied, cleared;
    u32 last = 0;

    for (unsigned i = 0; i < PAGE; i++)
        pages[0][i] = (char)(i * 7 + 1);
    copied = mmuext(MMUEXT_COPY_PAGE, to, from);
    result("page-copy", !copied && pages[1][0] == 1 && pages[1][PAGE - 1] == pages[0][PAGE - 1], "error=%ld", copied);
    cleared = mmuext(MMUEXT_CLEAR_PAGE, to, 0);
    for (unsigned i = 0; i < PAGE; i++)
        last |= (u32)(unsigned char)pages[1][i];
    result("page-clear", !cleared && !last, "error=%ld left=0x%x", cleared, last);
}

/* A page that is pinned as a page table cannot be mapped for writing until it is unpinned. It is pinned but once. */
static void pin_checks(void)
{
    ulong frame = platform_frame(pages[0]);
    long pinned, twice, refused, unpinned, mapped;

    memset(pages, 0, PAGE);
    pv_map(pages[0], 0);
    pinned = mmuext(MMUEXT_PIN_L1_TABLE, frame, 0);
    twice = mmuext(MMUEXT_PIN_L1_TABLE, frame, 0);
    refused = pv_map(pages[0], (u64)frame << 12 | PV_WRITABLE);
    unpinned = mmuext(MMUEXT_UNPIN_TABLE, frame, 0);
    mapped = pv_map(pages[0], (u64)frame << 12 | PV_WRITABLE);
    result("pin", !pinned && twice == -XEN_EINVAL && (refused == -XEN_EINVAL || refused == -XEN_EBUSY) && !unpinned && !mapped,
           "error=%ld,%ld,%ld twice=%ld want=-22 writable=%ld want=-22,-16", pinned, unpinned, mapped, twice, refused);
}

#define LINEAR 0x3fe00000ul /* the last 2 MiB of the first GiB, where nothing is mapped */
#define LINEAR_OF(level_1, entry) (*(volatile u64 *)(LINEAR + (level_1) * PAGE + (entry) * 8))

static void write_linear(void)
{
    LINEAR_OF(511, 510) = 0; /* as it is */
}

static long entry_write(u64 address, u64 value)
{
    struct mmu_update update = {address, value};

    return call4(mmu_update, &update, 1, 0, DOMID_SELF);
}

/*
 * A page-table page may stand in itself, so that the guest reads its tables (a linear page table), but never for writing:
 * then it would map what it wants. Also not in two steps (XSA-182). With `pv-linear-pt=no` Xen refuses both.
 */
static void linear_checks(void)
{
    u64 address = pv_entry_address((void *)LINEAR, 2), table = address & ~(PAGE - 1ull), seen = 0;
    long reading = entry_write(address, table | PV_READONLY), writing, gone;
    int vector;

    if (!reading)
        seen = LINEAR_OF(511, 511);
    writing = entry_write(address, table | PV_WRITABLE);
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0, 0);
    vector = attempt(write_linear) - 1;
    gone = entry_write(address, 0);
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0, 0);
    result("linear-table", (reading ? reading == -XEN_EINVAL : (seen & ~(PAGE - 1ull)) == table) && writing == -XEN_EINVAL &&
           vector == 14 && !gone, "error=%ld,%ld entry=0x%llx of=0x%llx writable=%ld want=-22 vector=%d want=14", reading, gone,
           seen, table, writing, vector);
}

static void undefined(void)
{
    __asm__ volatile("ud2");
}

/* Whether a trap masks events is said in the table (xen-x86.h, TI_SET_IF). All ports are masked, so none is delivered. */
static u8 mask_in_trap(u8 flags, int *vector)
{
    volatile struct vcpu_info *info = &shared->vcpu_info[0];
    struct trap_info table[2] = {{6, flags, FLAT_KERNEL_CS, trap_entries[6]}, {0, 0, 0, 0}};
    u8 before = info->evtchn_upcall_mask, within;

    call1(set_trap_table, table);
    info->evtchn_upcall_pending = 0;
    info->evtchn_upcall_mask = 0;
    *vector = attempt(undefined) - 1;
    within = info->evtchn_upcall_mask;
    info->evtchn_upcall_mask = before;
    return within;
}

static void trap_checks(void)
{
    int masking, plain;
    u8 masked = mask_in_trap(TI_MASKS, &masking), open = mask_in_trap(0, &plain);

    result("trap-masks", masking == 6 && plain == 6 && masked == 1 && !open, "vector=%d,%d masked=%u without=%u", masking,
           plain, masked, open);
}

static void exchange_checks(void)
{
    ulong before[EXCHANGED], wrong = 0;
    long error;

    for (unsigned i = 0; i < EXCHANGED; i++)
        before[i] = platform_frame(pages[i]);
    error = pv_exchange(pages, EXCHANGED);
    for (unsigned i = 0; !error && i < EXCHANGED; i++) {
        *(volatile u32 *)pages[i] = 0x600d0000 + i;
        wrong += platform_frame(pages[i]) == before[i] || pv_pfn_said(pages[i]) != (ulong)pages[i] / PAGE;
    }
    for (unsigned i = 0; !error && i < EXCHANGED; i++)
        wrong += *(volatile u32 *)pages[i] != 0x600d0000 + i;
    result("memory-exchange", !error && !wrong, "error=%ld pages=%u wrong=%lu", error, EXCHANGED, wrong);
}

static void use_fpu(void)
{
    __asm__ volatile("fnop");
}

static void fpu_checks(void)
{
    int trapped, again;
    long error = call1(fpu_taskswitch, 1);

    trapped = attempt(use_fpu);
    call1(fpu_taskswitch, 0);
    again = attempt(use_fpu);
    result("fpu-taskswitch", !error && trapped == 7 + 1 && !again, "error=%ld vector=%d after=%d", error, trapped - 1,
           again - 1);
}

static void assist_checks(void)
{
    const u32 narrow = sizeof(ulong) == 4 ? VMASST_TYPE_4gb_segments : VMASST_TYPE_m2p_strict;
    long on = call2(vm_assist, VMASST_CMD_enable, narrow), off = call2(vm_assist, VMASST_CMD_disable, narrow);
    long unknown = call2(vm_assist, VMASST_CMD_enable, 63), command = call2(vm_assist, 9, narrow);

    result("vm-assist", !on && !off && unknown == -XEN_EINVAL && command == -XEN_ENOSYS,
           "error=%ld,%ld unknown=%ld want=-22 command=%ld want=-38", on, off, unknown, command);
}

static void debug_checks(void)
{
    ulong own;
    long value = call1(get_debugreg, 0), unknown = call1(get_debugreg, 9), bad = call2(set_debugreg, 9, 0);

    __asm__ volatile("mov %%db0, %0" : "=r"(own)); /* traps, and Xen answers */
    result("debugreg", (ulong)value == own && unknown == -XEN_ENODEV && bad == -XEN_ENODEV,
           "dr0=0x%lx said=0x%lx unknown=%ld,%ld want=-19", own, (ulong)value, unknown, bad);
}

/* From 4.18 on a debug build tells a 64-bit guest no start: xen/common/kernel.c, XENVER_platform_parameters. */
static void platform_start_check(void)
{
    ulong start = 0;
    long error = call2(xen_version, XENVER_platform_parameters, &start);
    int is_told = start == pv_machphys() || (sizeof(ulong) == 8 && !start);

    result("version-platform", !error && is_told, "error=%ld start=0x%lx", error, start);
}

void tables_checks(void)
{
    platform_start_check();
    gdt_checks();
    ldt_checks();
    page_checks();
    pin_checks();
    linear_checks();
    trap_checks();
    own_grant_checks();
    exchange_checks();
    fpu_checks();
    assist_checks();
    debug_checks();
}
