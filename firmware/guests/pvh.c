/* The PVH and HVM platforms: everything below 4 GiB is mapped to itself, or paging is off. */
#include "payload.h"

#define SHARED_PFN 1UL /* as Linux does: low memory, so that no 2 MiB page of the p2m is split for it */

const char *command_line;
struct shared_info *shared;
struct xencons_interface *console_ring;
struct xenstore_domain_interface *store_ring;
u32 console_port, store_port;
struct range free_ranges[8];
unsigned free_count;

extern char _end[];
static struct hvm_start_info *start;

static struct gate {
    u16 low, selector, flags, middle;
#ifdef __x86_64__
    u32 high, reserved;
#endif
} gates[256];

static long parameter(u32 index, u64 *value)
{
    struct xen_hvm_param param = {DOMID_SELF, index, 0};
    long error = call2(hvm_op, HVMOP_get_param, &param);

    *value = param.value;
    return error;
}

static long add_to_physmap(u32 space, ulong pfn)
{
    struct xen_add_to_physmap add = {DOMID_SELF, 0, space, 0, pfn};

    return call2(memory_op, XENMEM_add_to_physmap, &add);
}

/* At the start and after each real resume: what belongs to this domain and this host. */
static void attach(void)
{
    struct xen_hvm_param callback = {DOMID_SELF, HVM_PARAM_CALLBACK_IRQ, 2ULL << 56 | 0xf3};
    u32 leaf = 0x40000000, out[4];
    u64 value;

    for (;; leaf += 0x100) { /* another interface may sit first */
        cpuid(leaf, out);
        if (out[1] == 0x566e6558 && out[2] == 0x65584d4d && out[3] == 0x4d4d566e) /* XenVMMXenVMM */
            break;
        if (leaf > 0x40010000)
            for (;;)
                __asm__ volatile("cli; hlt");
    }
    cpuid(leaf + 2, out);
    __asm__ volatile("wrmsr" : : "c"(out[1]), "a"((ulong)hypercall_page), "d"(0) : "memory");
    add_to_physmap(XENMAPSPACE_shared_info, SHARED_PFN);
    shared = (void *)(SHARED_PFN * PAGE);
    memset(shared->evtchn_mask, 0xff, sizeof(shared->evtchn_mask));
    parameter(HVM_PARAM_CONSOLE_PFN, &value);
    console_ring = (void *)(ulong)(value * PAGE);
    parameter(HVM_PARAM_CONSOLE_EVTCHN, &value);
    console_port = value;
    parameter(HVM_PARAM_STORE_PFN, &value);
    store_ring = (void *)(ulong)(value * PAGE);
    parameter(HVM_PARAM_STORE_EVTCHN, &value);
    store_port = value;
    /*
     * Interrupts stay off, so the vector is never used. But the toolstack tells a guest of a cancelled suspend
     * only when it sees one set: modify_returncode() in libs/guest/xg_resume.c.
     */
    call2(hvm_op, HVMOP_set_param, &callback);
}

struct {
    u16 limit;
    ulong base;
} __attribute__((packed)) gates_pointer = {sizeof(gates) - 1, (ulong)gates};

void platform_gate(unsigned vector, ulong entry)
{
    gates[vector].low = entry;
    gates[vector].selector = 8;
    gates[vector].flags = 0x8e00;
    gates[vector].middle = entry >> 16;
}

static void set_traps(void)
{
    for (unsigned i = 0; i < 20; i++)
        platform_gate(i, trap_entries[i]);
    __asm__ volatile("lidt %0" : : "m"(gates_pointer));
}

static int are_words(const char *text)
{
    for (const char *wanted = "work="; *wanted; wanted++, text++)
        if (*text != *wanted)
            return 0;
    return 1;
}

void platform_start(void *information)
{
    const struct hvm_memmap_entry *memory;
    ulong used = (ulong)_end, limit = 0xfff00000;

    start = information;
    set_traps();
    attach();
    if (start->magic != HVM_START_MAGIC) {
        print("XL start FAIL magic=0x%x\n", start->magic);
        crash();
    }
    command_line = (char *)(ulong)start->cmdline_paddr;
    if (!command_line && start->nr_modules) /* HVM: what xl.cfg names as the BIOS is a text file with the words */
        command_line = (char *)(ulong)(*(u64 *)(ulong)start->modlist_paddr);
    if (!start->cmdline_paddr && !(command_line && are_words(command_line)))
        command_line = "work=mode xtf=1"; /* firmware that is told nothing, as XTF's tests are; the BIOS is a real one */
    /* The builder puts its page of information, and modules, right behind the kernel. */
    if ((ulong)information >= used)
        used = (ulong)information + PAGE;
    if ((ulong)command_line >= used)
        used = (ulong)command_line + PAGE;
    if (start->memmap_paddr >= used)
        used = start->memmap_paddr + PAGE;
    used = (used + PAGE - 1) / PAGE;
    memory = (void *)(ulong)start->memmap_paddr;
    for (u32 i = 0; start->version && i < start->memmap_entries && free_count < 8; i++) {
        u64 first = (memory[i].addr + PAGE - 1) / PAGE, end = (memory[i].addr + memory[i].size) / PAGE;

        if (memory[i].type != HVM_MEMMAP_RAM)
            continue;
        if (first < used)
            first = used;
        if (end > limit / PAGE)
            end = limit / PAGE;
        if (first < end)
            free_ranges[free_count++] = (struct range){first, end};
    }
}

void platform_mode(void)
{
    ulong cr0, cr4, cs;
    u32 version = call2(xen_version, XENVER_version, 0), low, high, magic = start->magic;
    int ok;

    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(0xc0000080));
    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
#ifdef __x86_64__
    ok = low & 0x400 && cr4 & 0x20 && cr0 & 0x80000000;
#else
    ok = !(low & 0x400) && cr0 & 1;
#endif
    result("mode", ok && !(cs & 3),
           "bits=%u pae=%u xen=%u.%u pv=0 pvh=1 cpl=%lu cs=0x%lx cr0=0x%lx cr4=0x%lx efer=0x%x magic=0x%x",
           (u32)sizeof(ulong) * 8, (u32)(cr4 >> 5 & 1), version >> 16, version & 0xffff, cs & 3, cs, cr0, cr4, low,
           magic);
}

long suspend_with_registers(u32 *reason); /* start-pvh.S */

int platform_suspend(void)
{
    u32 reason = SHUTDOWN_suspend;

    if (suspend_with_registers(&reason) == 1)
        return 1;
    attach();
    return 0;
}

extern char secondary_entry[], *secondary_stack;

#ifdef HVM
/*
 * As a processor is started on a board: INIT and a start-up IPI from the local APIC, with the page where the new one
 * begins in real mode. Source: Intel SDM 3A, 8.4 and 10.6; the ID of a vCPU's APIC is twice its number (libxl).
 */
#define LOCAL_APIC 0xfee00000ul
#define TRAMPOLINE 0x8000ul
extern char trampoline[], trampoline_end[];

static void apic_write(ulong offset, u32 value)
{
    *(volatile u32 *)(LOCAL_APIC + offset) = value;
}

long platform_start_vcpu(u32 vcpu)
{
    memcpy((void *)TRAMPOLINE, trampoline, trampoline_end - trampoline);
    apic_write(0xf0, 0x1ff); /* enabled */
    apic_write(0x310, vcpu * 2 << 24);
    apic_write(0x300, 0x4500); /* INIT */
    apic_write(0x310, vcpu * 2 << 24);
    apic_write(0x300, 0x4600 | TRAMPOLINE / PAGE);
    return 0;
}

int platform_started_by_ipi(void)
{
    return 1;
}
#else
/* The mode that vCPU 0 is in; segments are flat. Source: hvm/hvm_vcpu.h, xen/arch/x86/hvm/domain.c. */
long platform_start_vcpu(u32 vcpu)
{
    static struct vcpu_hvm_context context;
    long error;

    memset(&context, 0, sizeof(context));
#ifdef __x86_64__
    context.mode = VCPU_HVM_MODE_64B;
    context.x86_64.rip = (ulong)secondary_entry;
    context.x86_64.rsp = (ulong)secondary_stack;
    context.x86_64.rflags = 2;
    context.x86_64.cr0 = 0x80000011; /* PG, ET, PE */
    __asm__ volatile("mov %%cr3, %0" : "=r"(context.x86_64.cr3));
    context.x86_64.cr4 = 0x20;     /* PAE */
    context.x86_64.efer = 0x500;   /* LMA, LME */
#else
    context.mode = VCPU_HVM_MODE_32B;
    context.x86_32.eip = (ulong)secondary_entry;
    context.x86_32.esp = (ulong)secondary_stack;
    context.x86_32.eflags = 2;
    context.x86_32.cr0 = 0x11; /* ET, PE */
    context.x86_32.cs_limit = context.x86_32.ds_limit = context.x86_32.ss_limit = context.x86_32.es_limit = ~0u;
    context.x86_32.tr_limit = 0x67;
    context.x86_32.cs_ar = 0xc9b;
    context.x86_32.ds_ar = context.x86_32.ss_ar = context.x86_32.es_ar = 0xc93;
    context.x86_32.tr_ar = 0x8b;
#endif
    error = call3(vcpu_op, VCPUOP_initialise, vcpu, &context);
    return error ? error : call3(vcpu_op, VCPUOP_up, vcpu, 0);
}

int platform_started_by_ipi(void)
{
    return 0;
}
#endif

void *window(ulong pfn, unsigned count)
{
    (void)count;
    return (void *)(pfn * PAGE);
}

void window_close(void)
{
}

static ulong batch[BATCH];

static long change(u32 how, ulong pfn, ulong count)
{
    struct xen_memory_reservation reservation = {batch, count, 0, 0, DOMID_SELF};

    for (ulong i = 0; i < count; i++)
        batch[i] = pfn + i;
    return hypercall(__HYPERVISOR_memory_op, how, (ulong)&reservation, 0, 0, 0);
}

long pages_give(ulong pfn, ulong count)
{
    return change(XENMEM_decrease_reservation, pfn, count);
}

long pages_take(ulong pfn, ulong count)
{
    return change(XENMEM_populate_physmap, pfn, count);
}

long page_give_twice(ulong pfn)
{
    struct xen_memory_reservation twice = {batch, 2, 0, 0, DOMID_SELF};

    batch[0] = batch[1] = pfn;
    return call2(memory_op, XENMEM_decrease_reservation, &twice);
}

int platform_sees_all(void)
{
    return 1;
}

long grant_frame_map(void *page)
{
    long error = page_give((ulong)page / PAGE);

    return error ? error : add_to_physmap(XENMAPSPACE_grant_table, (ulong)page / PAGE);
}

long grant_frame_unmap(void *page)
{
    struct xen_remove_from_physmap remove = {DOMID_SELF, (ulong)page / PAGE};
    long error = call2(memory_op, XENMEM_remove_from_physmap, &remove);

    return error ? error : page_take((ulong)page / PAGE);
}

void platform_checks(void)
{
    static struct e820_entry entries[16];
    struct xen_memory_map map = {16, entries};
    u16 domain = DOMID_SELF;
    u64 pages = 0;
    long current;
    u64 value = 0;
    long error = parameter(HVM_PARAM_STORE_PFN, &value);

    result("hvm-get-param", !error && value * PAGE == (ulong)store_ring, "error=%ld store=0x%llx", error, value);
    error = parameter(9999, &value);
    result("hvm-bad-param", error == -XEN_EINVAL, "error=%ld want=-22", error);
    error = call2(memory_op, XENMEM_memory_map, &map);
    for (u32 i = 0; !error && i < map.nr_entries; i++)
        pages += entries[i].type == 1 ? entries[i].size / PAGE : 0;
    current = call2(memory_op, XENMEM_current_reservation, &domain);
    result("memory-map", !error && map.nr_entries && pages >= 256 && pages <= (u64)current + 4096,
           "error=%ld entries=%u pages=%llu of=%ld", error, map.nr_entries, pages, current);
}

void platform_features(void)
{
}

#ifdef HVM
#define EMULATED_PORT 0x61 /* of the timer, which Xen emulates itself */
#else
#define EMULATED_PORT 0x80 /* nobody has it: Xen answers */
#endif

static void ports(u32 rounds)
{
    u8 byte;

    while (rounds--)
        __asm__ volatile("inb %%dx, %%al" : "=a"(byte) : "d"(EMULATED_PORT));
}

void platform_costs(void)
{
    cost("port", ports, 128);
}

ulong platform_frame(const void *own)
{
    return (ulong)own / PAGE;
}

void platform_frames(void)
{
    result("frames", 0, "a PVH guest is not told its machine frames");
}

/* Exact errors: what xen/common/memory.c, arch/x86/mm/p2m.c and arch/x86/hvm/hvm.c answer. */
void platform_hostile(void)
{
    struct xen_remove_from_physmap remove = {DOMID_SELF, 0xfffffff};
    struct xen_add_to_physmap add = {DOMID_SELF, 0, XENMAPSPACE_shared_info, 7, SHARED_PFN};
    struct xen_hvm_param param = {NO_SUCH_DOMAIN, HVM_PARAM_STORE_PFN, 0};

    expect("hostile-shared-info-index", call2(memory_op, XENMEM_add_to_physmap, &add), -XEN_EINVAL);
    add.space = 99;
    expect("hostile-physmap-space", call2(memory_op, XENMEM_add_to_physmap, &add), -XEN_EINVAL);
    add.space = XENMAPSPACE_grant_table, add.idx = 0x7fffffff;
    expect("hostile-grant-frame", call2(memory_op, XENMEM_add_to_physmap, &add), -XEN_EINVAL);
    add.domid = NO_SUCH_DOMAIN;
    expect("hostile-physmap-domain", call2(memory_op, XENMEM_add_to_physmap, &add), -XEN_ESRCH);
    add.domid = 0;
    expect_error("hostile-physmap-of-dom0", call2(memory_op, XENMEM_add_to_physmap, &add)); /* PV or PVH: two reasons */
    expect("hostile-remove-nothing", call2(memory_op, XENMEM_remove_from_physmap, &remove), -XEN_ENOENT);
    expect("hostile-param-domain", call2(hvm_op, HVMOP_get_param, &param), -XEN_ESRCH);
    param.domid = DOMID_SELF;
    expect("hostile-param-store", call2(hvm_op, HVMOP_set_param, &param), -XEN_EPERM);
    expect("hostile-param-pointer", call2(hvm_op, HVMOP_set_param, NOWHERE), -XEN_EFAULT);
    expect("hostile-hvm-subop", call2(hvm_op, 999, &param), -XEN_ENOSYS);
}
