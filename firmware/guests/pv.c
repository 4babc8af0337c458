/*
 * The PV platform. The builder maps the kernel and some padding 1:1; all other memory is seen through a window
 * whose page-table entries are rewritten, so no page table is ever made here.
 */
#include "payload.h"

#define PTE_FLAGS 0x67 /* present, writable, user, accessed, dirty */
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

extern const ulong trap_entries[20];
static struct start_info *start;
static ulong *p2m, page_count;
static page_t shared_page __attribute__((aligned(4096)));
static page_t view[WINDOW] __attribute__((aligned(4096)));
static unsigned view_used;
static ulong frame_list_list[FRAMES_PER_PAGE] __attribute__((aligned(4096)));
static ulong frame_lists[LIST_PAGES][FRAMES_PER_PAGE] __attribute__((aligned(4096)));

static long map(const void *at, u64 entry)
{
#ifdef __x86_64__
    return hypercall(__HYPERVISOR_update_va_mapping, (ulong)at, entry, UVMF_INVLPG, 0, 0);
#else
    return hypercall(__HYPERVISOR_update_va_mapping, (ulong)at, entry, entry >> 32, UVMF_INVLPG, 0);
#endif
}

static u64 entry_of(ulong mfn)
{
    return (u64)mfn << 12 | PTE_FLAGS;
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

    map(shared_page, start->shared_info | PTE_FLAGS);
    shared = (void *)shared_page;
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
    static struct trap_info traps[21];
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
    map(shared_page, entry_of(frame_of(shared_page)));
    cancelled = call3(sched_op, SCHEDOP_shutdown, &reason, frame_of(start)) == 1;
    if (cancelled) {
        start->store_mfn = store;
        start->console_mfn = console;
    }
    attach();
    return cancelled;
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
        map(view[i], 0);
    view_used = 0;
}

long page_give(ulong pfn)
{
    ulong frame = p2m[pfn];
    struct xen_memory_reservation less = {&frame, 1, 0, 0, DOMID_SELF};
    long done;

    map((void *)(pfn * PAGE), 0); /* fails for what the builder did not map, and need not work there */
    p2m[pfn] = INVALID;
    done = call2(memory_op, XENMEM_decrease_reservation, &less);
    if (done != 1)
        p2m[pfn] = frame;
    return done == 1 ? 0 : done < 0 ? done : -1;
}

long page_take(ulong pfn)
{
    ulong frame = pfn;
    struct xen_memory_reservation more = {&frame, 1, 0, 0, DOMID_SELF};
    long done = call2(memory_op, XENMEM_populate_physmap, &more);

    if (done != 1)
        return done < 0 ? done : -1;
    p2m[pfn] = frame;
    map((void *)(pfn * PAGE), entry_of(frame));
    return 0;
}

long grant_frame_map(void *page)
{
    ulong frame = 0;
    struct gnttab_setup_table setup = {DOMID_SELF, 1, -1, &frame};
    long error = call3(grant_table_op, GNTTABOP_setup_table, &setup, 1);

    if (error || setup.status)
        return error ? error : setup.status;
    return map(page, entry_of(frame));
}

long grant_frame_unmap(void *page)
{
    return map(page, entry_of(frame_of(page)));
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
    if (!error) {
        ulong said = ((ulong *)mapping.v_start)[p2m[pfn]];

        result("machphys-agrees", said == pfn, "frame=0x%lx pfn=0x%lx said=0x%lx", p2m[pfn], pfn, said);
    }

    *word = 0x12345678;
    error = map(view[0], (u64)p2m[pfn] << 12 | PTE_FLAGS);
    result("update-va-mapping", !error && *(u32 *)view[0] == 0x12345678, "error=%ld", error);
    map(view[0], 0);
    error = map(view[0], (u64)0xfffffff << 12 | PTE_FLAGS);
    result("update-va-mapping-bad-frame", error == -XEN_EPERM || error == -XEN_EINVAL, "error=%ld want=-1,-22", error);
}
