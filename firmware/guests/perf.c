/*
 * What operations of the hypervisor cost this guest, in ticks of the processor's TSC. A stretch of `rounds` operations
 * is taken again and again; the shortest counts, and how many were as short. What disturbs a stretch (an interrupt,
 * another domain's turn) makes it longer, so a length that comes again and again had nothing in it but the operations.
 * The domain must have the native TSC (tsc_mode in xl.cfg). The guest's own loop and its call are part of the cost.
 */
#include "payload.h"

#define AGREED 8     /* stretches of the shortest length, to one in a thousand, after which no more are taken */
#define STRETCHES 512 /* at most */

static u64 ticks(void)
{
    u32 low, high;

    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}

void cost(const char *name, void (*operations)(u32 rounds), u32 rounds)
{
    static u64 taken[STRETCHES];
    u64 least = ~0ull, most = 0;
    u32 agree = 0, count = 0;

    operations(rounds); /* caches, and what Xen makes at the first time */
    while (count < STRETCHES && agree < AGREED) {
        u64 before = ticks(), length;

        operations(rounds);
        length = ticks() - before;
        taken[count++] = length;
        if (length < least) {
            least = length, agree = 0;
            for (u32 i = 0; i + 1 < count; i++)
                agree += taken[i] - least <= least >> 10;
        }
        if (length > most)
            most = length;
        agree += length - least <= least >> 10;
    }
    print("XL cost-%s INFO ticks=%llu rounds=%u agree=%u of=%u most=%llu\n", name, least, rounds, agree, count, most);
}

static void hypercalls(u32 rounds)
{
    while (rounds--)
        call2(xen_version, XENVER_version, 0);
}

static void cpuids(u32 rounds)
{
    u32 out[4];

    while (rounds--)
        cpuid(0, out);
}

static void yields(u32 rounds)
{
    while (rounds--)
        call2(sched_op, SCHEDOP_yield, 0);
}

static u32 port;

/* To this vCPU, whose events are masked: marked pending each time as if none had been. */
static void events(u32 rounds)
{
    while (rounds--) {
        port_notify(port);
        port_pending(port);
        shared->vcpu_info[0].evtchn_pending_sel = 0;
        shared->vcpu_info[0].evtchn_upcall_pending = 0;
    }
}

#ifdef PV
static struct gnttab_map_grant_ref mapping;
static struct gnttab_unmap_grant_ref unmapping;
static long grant_error;

static void grants(u32 rounds)
{
    while (rounds--) {
        grant_error |= call3(grant_table_op, GNTTABOP_map_grant_ref, &mapping, 1) | mapping.status;
        unmapping.handle = mapping.handle;
        grant_error |= call3(grant_table_op, GNTTABOP_unmap_grant_ref, &unmapping, 1) | unmapping.status;
    }
}

static void grant_costs(void)
{
    const char *wrong = own_grant(&mapping);

    if (wrong) {
        result("cost-grant", 0, "%s", wrong);
        return;
    }
    unmapping.host_addr = mapping.host_addr;
    cost("grant", grants, 64);
    if (grant_error)
        result("cost-grant-error", 0, "error=%ld map=%d unmap=%d", grant_error, mapping.status, unmapping.status);
    own_grant_end();
}
#else
static void grant_costs(void)
{
}
#endif

static void pings(u32 rounds)
{
    while (rounds--)
        vcpus_ping();
}

void perf_work(void)
{
    struct evtchn_bind_ipi bind = {0, 0};
    long error;

    cost("hypercall", hypercalls, 256);
    cost("cpuid", cpuids, 128);
    cost("yield", yields, 64);
    error = call2(event_channel_op, EVTCHNOP_bind_ipi, &bind);
    port = bind.port;
    if (error)
        result("cost-event", 0, "error=%ld", error);
    else
        cost("event", events, 128);
    grant_costs();
    platform_costs();
}

void ping_work(void)
{
    if (vcpus_ping())
        cost("ping", pings, 32);
    else
        result("cost-ping", 0, "vCPU 1 does not answer");
}
