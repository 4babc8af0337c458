/*
 * The PV platform. The builder maps the kernel and some padding 1:1; all other memory is seen through a window
 * whose page-table entries are rewritten, so no page table is ever made here.
 */
#include "payload.h"

#define INVALID (~0UL)
#define FRAMES_PER_PAGE (PAGE / sizeof(ulong))
#define LIST_PAGES (8192 / FRAMES_PER_PAGE) /* lists of the 8192 p2m pages that 16 GiB (64 bit) need */

typedef char page_t[PAGE];

const char *command_line;
struct shared_info *shared;
struct xencons_interface *console_ring;
struct xenstore_domain_interface *store_ring;
u32 console_port, store_port;
struct range free_ranges[8];
unsigned free_count;

static struct start_info *start;
static struct trap_info traps[21];
static ulong *p2m, page_count;
static page_t shared_page __attribute__((aligned(4096)));
static page_t view[WINDOW] __attribute__((aligned(4096)));
static unsigned view_used;
static ulong frame_list_list[FRAMES_PER_PAGE] __attribute__((aligned(4096)));
static ulong frame_lists[LIST_PAGES][FRAMES_PER_PAGE] __attribute__((aligned(4096)));

long pv_map(const void *at, u64 entry)
{
#ifdef __x86_64__
    return hypercall(__HYPERVISOR_update_va_mapping, (ulong)at, entry, UVMF_INVLPG, 0, 0);
#else
    return hypercall(__HYPERVISOR_update_va_mapping, (ulong)at, entry, entry >> 32, UVMF_INVLPG, 0);
#endif
}

static u64 entry_of(ulong mfn)
{
    return (u64)mfn << 12 | PV_WRITABLE;
}

static ulong frame_of(const void *own)
{
    return p2m[(ulong)own / PAGE];
}

static ulong pfn_of_frame(ulong mfn)
{
    for (ulong pfn = 0; pfn < page_count; pfn++)
        if (p2m[pfn] == mfn)
            return pfn;
    return INVALID;
}

/* At the start and after each real resume: all that holds machine addresses. */
static void attach(void)
{
    ulong pages = (page_count + FRAMES_PER_PAGE - 1) / FRAMES_PER_PAGE;

    pv_map(shared_page, start->shared_info | PV_WRITABLE);
    shared = (void *)shared_page;
    memset(shared->evtchn_mask, 0xff, sizeof(shared->evtchn_mask));
    for (ulong i = 0; i < pages; i++)
        frame_lists[i / FRAMES_PER_PAGE][i % FRAMES_PER_PAGE] = frame_of(p2m + i * FRAMES_PER_PAGE);
    for (ulong i = 0; i * FRAMES_PER_PAGE < pages; i++)
        frame_list_list[i] = frame_of(frame_lists[i]);
    shared->max_pfn = page_count; /* how the toolstack finds the p2m: libs/guest/xg_sr_save_x86_pv.c */
    shared->pfn_to_mfn_frame_list_list = frame_of(frame_list_list);
    console_ring = (void *)(pfn_of_frame(start->console_mfn) * PAGE);
    console_port = start->console_evtchn;
    store_ring = (void *)(pfn_of_frame(start->store_mfn) * PAGE);
    store_port = start->store_evtchn;
}

void platform_start(void *information)
{
    ulong boot_end;

    start = information;
    command_line = start->cmd_line;
    p2m = (ulong *)start->mfn_list;
    page_count = start->nr_pages;
    if (page_count > LIST_PAGES * FRAMES_PER_PAGE * FRAMES_PER_PAGE)
        page_count = LIST_PAGES * FRAMES_PER_PAGE * FRAMES_PER_PAGE;
    for (unsigned i = 0; i < 20; i++) {
        traps[i].vector = i;
        traps[i].cs = FLAT_KERNEL_CS;
        traps[i].address = trap_entries[i];
    }
    call1(set_trap_table, traps);
    attach();
    /* Kernel, p2m, start_info, rings, page tables and the boot stack lie in a row (libs/guest/xg_dom_core.c). */
    boot_end = start->pt_base / PAGE + start->nr_pt_frames + 1;
    free_ranges[0] = (struct range){1, 256};
    free_ranges[1] = (struct range){boot_end, page_count};
    free_count = boot_end < page_count ? 2 : 1;
}

void platform_mode(void)
{
    static char capabilities[1024];
    ulong cr0, cr4, efer, cs;
    u32 version = call2(xen_version, XENVER_version, 0), low, high;
    int ok;

    call2(xen_version, XENVER_capabilities, capabilities);
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0)); /* these three trap, and Xen answers */
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(0xc0000080));
    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
    efer = low;
    ok = cr4 & 0x20 && cr0 & 0x80000000 && cs == FLAT_KERNEL_CS;
    ok = ok && same(start->magic, sizeof(ulong) == 8 ? "xen-3.0-x86_64" : "xen-3.0-x86_32p");
    result("mode", ok, "bits=%u pae=%u xen=%u.%u pv=1 cpl=%lu cs=0x%lx cr0=0x%lx cr4=0x%lx efer=0x%lx magic=%s",
           (u32)sizeof(ulong) * 8, (u32)(cr4 >> 5 & 1), version >> 16, version & 0xffff, cs & 3, cs, cr0, cr4, efer,
           start->magic);
}

/*
 * The toolstack rewrites the frame numbers in start_info and expects pseudo-physical ones in there; the frame of
 * start_info goes in the third argument; nothing outside our own memory may be mapped any more.
 */
int platform_suspend(void)
{
    u32 reason = SHUTDOWN_suspend;
    ulong store = start->store_mfn, console = start->console_mfn;
    int cancelled;

    window_close();
    start->store_mfn = pfn_of_frame(store);
    start->console_mfn = pfn_of_frame(console);
    pv_map(shared_page, entry_of(frame_of(shared_page)));
    cancelled = call3(sched_op, SCHEDOP_shutdown, &reason, frame_of(start)) == 1;
    if (cancelled) {
        start->store_mfn = store;
        start->console_mfn = console;
    }
    attach();
    return cancelled;
}

extern char secondary_entry[], *secondary_stack;

/* Flat segments and the page tables of vCPU 0; the traps are its own, so that a fault is told. Linux: xen/smp_pv.c. */
long platform_start_vcpu(u32 vcpu)
{
    static struct vcpu_guest_context context;
    ulong root = frame_of((void *)start->pt_base);
    long error;

    memset(&context, 0, sizeof(context));
    context.flags = VGCF_in_kernel;
    context.user_regs.ip = (ulong)secondary_entry;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = context.user_regs.ds = context.user_regs.es = context.kernel_ss = FLAT_KERNEL_SS;
    context.user_regs.flags = 0x1000;
    context.user_regs.sp = context.kernel_sp = (ulong)secondary_stack;
    memcpy(context.traps, traps, sizeof(traps));
    context.ctrlreg[3] = sizeof(ulong) == 8 ? root << 12 : root << 12 | root >> 20;
    error = call3(vcpu_op, VCPUOP_initialise, vcpu, &context);
    return error ? error : call3(vcpu_op, VCPUOP_up, vcpu, 0);
}

int platform_started_by_ipi(void)
{
    return 0;
}

void *window(ulong pfn, unsigned count)
{
    static struct multicall_entry calls[WINDOW];

    for (unsigned i = 0; i < count; i++) {
        u64 entry = p2m[pfn + i] == INVALID ? 0 : entry_of(p2m[pfn + i]);
        ulong flags = i + 1 == count ? UVMF_TLB_FLUSH : 0;

        calls[i].op = __HYPERVISOR_update_va_mapping;
        calls[i].args[0] = (ulong)view[i];
        calls[i].args[1] = entry;
#ifdef __x86_64__
        calls[i].args[2] = flags;
#else
        calls[i].args[2] = entry >> 32;
        calls[i].args[3] = flags;
#endif
    }
    call2(multicall, calls, count);
    for (unsigned i = 0; i < count; i++)
        if (calls[i].result) {
            result("window", 0, "pfn=0x%lx mfn=0x%lx error=%ld", pfn + i, p2m[pfn + i], (long)calls[i].result);
            crash();
        }
    if (count > view_used)
        view_used = count;
    return view;
}

void window_close(void)
{
    for (unsigned i = 0; i < view_used; i++)
        pv_map(view[i], 0);
    view_used = 0;
}

static ulong batch[BATCH];

long pages_give(ulong pfn, ulong count)
{
    struct xen_memory_reservation less = {batch, count, 0, 0, DOMID_SELF};
    long done;

    for (ulong i = 0; i < count; i++) {
        pv_map((void *)((pfn + i) * PAGE), 0); /* fails for what the builder did not map, and need not work there */
        batch[i] = p2m[pfn + i];
        p2m[pfn + i] = INVALID;
    }
    done = call2(memory_op, XENMEM_decrease_reservation, &less);
    for (ulong i = done < 0 ? 0 : done; i < count; i++)
        p2m[pfn + i] = batch[i];
    return done;
}

long pages_take(ulong pfn, ulong count)
{
    struct xen_memory_reservation more = {batch, count, 0, 0, DOMID_SELF};
    long done;

    for (ulong i = 0; i < count; i++)
        batch[i] = pfn + i;
    done = call2(memory_op, XENMEM_populate_physmap, &more);
    for (long i = 0; i < done; i++) {
        p2m[pfn + i] = batch[i];
        pv_map((void *)((pfn + i) * PAGE), entry_of(batch[i]));
    }
    return done;
}

long page_give_twice(ulong pfn)
{
    struct xen_memory_reservation twice = {batch, 2, 0, 0, DOMID_SELF};

    batch[0] = batch[1] = p2m[pfn];
    pv_map((void *)(pfn * PAGE), 0);
    p2m[pfn] = INVALID;
    return call2(memory_op, XENMEM_decrease_reservation, &twice);
}

int platform_sees_all(void)
{
    return 0;
}

long grant_frame_map(void *page)
{
    ulong frame = 0;
    struct gnttab_setup_table setup = {DOMID_SELF, 1, -1, &frame};
    long error = call3(grant_table_op, GNTTABOP_setup_table, &setup, 1);

    if (error || setup.status)
        return error ? error : setup.status;
    return pv_map(page, entry_of(frame));
}

long grant_frame_unmap(void *page)
{
    return pv_map(page, entry_of(frame_of(page)));
}

/* Other machine frames for pages of our own, which lose what they held. 0; -errno: of some alone; -2: false frames. */
long pv_exchange(void *own, ulong count)
{
    static ulong given[BATCH];
    ulong first = (ulong)own / PAGE;
    struct xen_memory_exchange exchange = {{given, count, 0, 0, DOMID_SELF}, {batch, count, 0, 0, DOMID_SELF}, 0};
    long error;

    for (ulong i = 0; i < count; i++) {
        pv_map((void *)((first + i) * PAGE), 0);
        given[i] = p2m[first + i];
        batch[i] = first + i;
    }
    error = call2(memory_op, XENMEM_exchange, &exchange);
    if (!error && exchange.nr_exchanged != count)
        error = -1;
    for (ulong i = 0; i < count; i++) {
        if (!error || i < exchange.nr_exchanged)
            p2m[first + i] = batch[i];
        if (pv_map((void *)((first + i) * PAGE), entry_of(p2m[first + i])) && !error)
            error = -2;
    }
    return error;
}

ulong pv_machphys(void)
{
    struct xen_machphys_mapping mapping = {0, 0, 0};

    call2(memory_op, XENMEM_machphys_mapping, &mapping);
    return mapping.v_start;
}

/* What Xen's table says about the machine frame of an own page. */
ulong pv_pfn_said(const void *own)
{
    return ((ulong *)pv_machphys())[frame_of(own)];
}

void platform_checks(void)
{
    struct xen_machphys_mapping mapping = {0, 0, 0};
    static page_t page __attribute__((aligned(4096)));
    volatile u32 *word = (u32 *)page;
    ulong pfn = (ulong)page / PAGE;
    long error;

    error = call2(memory_op, XENMEM_machphys_mapping, &mapping);
    result("machphys-mapping", !error && mapping.v_start < mapping.v_end, "error=%ld start=0x%lx end=0x%lx max=0x%lx",
           error, mapping.v_start, mapping.v_end, mapping.max_mfn);
    if (!error)
        result("machphys-agrees", pv_pfn_said(page) == pfn, "frame=0x%lx pfn=0x%lx said=0x%lx", p2m[pfn], pfn,
               pv_pfn_said(page));

    *word = 0x12345678;
    error = pv_map(view[0], (u64)p2m[pfn] << 12 | PV_WRITABLE);
    result("update-va-mapping", !error && *(u32 *)view[0] == 0x12345678, "error=%ld", error);
    pv_map(view[0], 0);
    error = pv_map(view[0], (u64)0xfffffff << 12 | PV_WRITABLE);
    result("update-va-mapping-bad-frame", error == -XEN_EPERM || error == -XEN_EINVAL, "error=%ld want=-1,-22", error);
    tables_checks();
}

static page_t code __attribute__((aligned(4096)));

static void run_view(void)
{
    ((void (*)(void))view[0])();
}

/* The bit that forbids execution is the topmost of a page-table entry: a 32-bit guest passes it in the upper half. */
void platform_features(void)
{
    const u64 no_execute = 1ull << 63;
    int allowed, forbidden;

    code[0] = (char)0xc3; /* ret */
    pv_map(view[0], entry_of(frame_of(code)) | no_execute);
    forbidden = attempt(run_view);
    pv_map(view[0], entry_of(frame_of(code)));
    allowed = attempt(run_view);
    pv_map(view[0], 0);
    result("nx", forbidden == 14 + 1 && attempt_error & 0x10 && !allowed, "forbidden=%d error=0x%lx allowed=%d", forbidden,
           attempt_error, allowed);
}

static void touch_nothing(void)
{
    *(volatile u32 *)NOWHERE;
}

static void page_faults(u32 rounds)
{
    while (rounds--)
        attempt(touch_nothing);
}

static void table_switches(u32 rounds)
{
    struct mmuext_op op = {MMUEXT_NEW_BASEPTR, frame_of((void *)start->pt_base), 0};

    while (rounds--)
        call4(mmuext_op, &op, 1, 0, DOMID_SELF);
}

static void tlb_flushes(u32 rounds)
{
    struct mmuext_op op = {MMUEXT_TLB_FLUSH_LOCAL, 0, 0};

    while (rounds--)
        call4(mmuext_op, &op, 1, 0, DOMID_SELF);
}

/* The machine address of the entry of this level that maps `at`. The tables lie in our own memory, read-only. */
u64 pv_entry_address(const void *at, int level)
{
    const u64 *table = (const u64 *)start->pt_base;

    for (int here = sizeof(ulong) == 8 ? 4 : 3;; here--) {
        ulong index = (ulong)at >> (3 + 9 * here) & 511;

        if (here == level)
            return ((u64)frame_of(table) << 12) + index * 8;
        table = (const u64 *)(pfn_of_frame((ulong)(table[index] >> 12 & 0xffffffffff)) * PAGE);
    }
}

static struct mmu_update maps[WINDOW], unmaps[WINDOW];
static long update_error;

static void updates(u32 rounds)
{
    for (; rounds; rounds -= WINDOW) {
        update_error |= call4(mmu_update, maps, WINDOW, 0, DOMID_SELF);
        update_error |= call4(mmu_update, unmaps, WINDOW, 0, DOMID_SELF);
    }
}

void platform_costs(void)
{
    struct range free = largest_free();

    cost("page-fault", page_faults, 128);
    cost("new-cr3", table_switches, 128);
    cost("tlb-flush", tlb_flushes, 128);
    window_close();
    for (unsigned i = 0; i < WINDOW; i++) {
        maps[i].ptr = unmaps[i].ptr = pv_entry_address(view[i], 1);
        maps[i].val = entry_of(p2m[free.first + i]);
    }
    cost("mmu-update", updates, WINDOW);
    if (update_error)
        result("cost-mmu-update-error", 0, "error=%ld", update_error);
}

ulong platform_frame(const void *own)
{
    return frame_of(own);
}

u64 platform_grant_address(void)
{
    return (ulong)view[0];
}

void platform_frames(void)
{
    ulong low = INVALID, high = 0, above = 0, pages = 0;

    for (ulong pfn = 0; pfn < page_count; pfn++) {
        if (p2m[pfn] == INVALID)
            continue;
        pages++;
        low = p2m[pfn] < low ? p2m[pfn] : low;
        high = p2m[pfn] > high ? p2m[pfn] : high;
        above += p2m[pfn] >= 0x100000;
    }
    result("frames", pages && high, "pages=%lu low=0x%lx high=0x%lx above_4g=%lu", pages, low, high, above);
}

static ulong *machine_to_phys;

static void write_machine_to_phys(void)
{
    *(volatile ulong *)machine_to_phys = 0;
}

/* Exact errors: what xen/arch/x86/mm.c, pv/descriptor-tables.c, x86_64/compat/mm.c answer. */
void platform_hostile(void)
{
    static struct mmuext_op ops[1000];
    static page_t plain __attribute__((aligned(4096)));
    struct xen_machphys_mapping mapping = {0, 0, 0};
    struct mmu_update update = {0, 0};
    u32 done = 0;

    for (unsigned i = 0; i < 1000; i++)
        ops[i].cmd = MMUEXT_TLB_FLUSH_LOCAL;
    expect("hostile-mmuext-long", call4(mmuext_op, ops, 1000, &done, DOMID_SELF), 0);
    result("hostile-mmuext-count", done == 1000, "done=%u want=1000", done);
    ops[10].cmd = 999;
    done = 0;
    expect("hostile-mmuext-command", call4(mmuext_op, ops, 1000, &done, DOMID_SELF), -XEN_ENOSYS);
    result("hostile-mmuext-until", done == 10, "done=%u want=10", done);
    expect("hostile-mmuext-pointer", call4(mmuext_op, NOWHERE, 1, 0, DOMID_SELF), -XEN_EFAULT);
    expect("hostile-mmuext-domain", call4(mmuext_op, ops, 1, 0, NO_SUCH_DOMAIN), -XEN_ESRCH);
    ops[0].cmd = MMUEXT_PIN_L1_TABLE;
    ops[0].arg1 = frame_of(plain); /* mapped writable */
    expect("hostile-pin-writable", call4(mmuext_op, ops, 1, 0, DOMID_SELF), -XEN_EINVAL);
    ops[0].arg1 = 0xfffffff;
    expect("hostile-pin-nothing", call4(mmuext_op, ops, 1, 0, DOMID_SELF), -XEN_EINVAL);
#ifndef __x86_64__
    ops[0].cmd = MMUEXT_NEW_USER_BASEPTR; /* a second address space is for 64 bit */
    expect("hostile-user-baseptr", call4(mmuext_op, ops, 1, 0, DOMID_SELF), -XEN_EINVAL);
#endif
    update.ptr = (u64)0xfffffff << 12;
    expect_error("hostile-mmu-update-nothing", call4(mmu_update, &update, 1, 0, DOMID_SELF));
    update.ptr = (u64)frame_of(plain) << 12; /* no page table, but ours: a plain write, as Xen allows */
    update.val = 0x1122334455667788;
    expect("hostile-mmu-update-plain", call4(mmu_update, &update, 1, 0, DOMID_SELF), 0);
    result("hostile-mmu-update-value", *(volatile u64 *)plain == update.val, "value=0x%llx", *(volatile u64 *)plain);
    expect("hostile-mmu-update-pointer", call4(mmu_update, NOWHERE, 1, 0, DOMID_SELF), -XEN_EFAULT);
    expect_error("hostile-map-high-bits", pv_map(view[0], entry_of(frame_of(plain)) | 1ull << 51));
    expect_error("hostile-map-frame-of-xen", pv_map(view[0], entry_of(0)));
    expect("hostile-trap-table", call1(set_trap_table, NOWHERE), -XEN_EFAULT);
    expect("hostile-gdt-entries", call2(set_gdt, ops, 9999), -XEN_EINVAL);
    if (!call2(memory_op, XENMEM_machphys_mapping, &mapping)) {
        int vector;

        machine_to_phys = (ulong *)mapping.v_start + p2m[(ulong)plain / PAGE];
        vector = attempt(write_machine_to_phys) - 1;
        result("hostile-machphys-write", vector == 14, "vector=%d want=14", vector);
    }
}
