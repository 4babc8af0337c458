/*
 * What operations of the hypervisor cost this guest, in ticks of the processor's TSC. A stretch of `rounds` operations
 * is taken again and again, until one length has come AGREED times. What disturbs a stretch (an interrupt, another
 * domain's turn) makes it longer by this or that, so a length that comes again and again had nothing in it but the
 * operations. It need not be the shortest: where Xen has two ways, the rarer one would be found now and then.
 * The domain must have the native TSC (tsc_mode in xl.cfg). The guest's own loop and its call are part of the cost.
 */
#include "payload.h"

#define AGREED 8     /* stretches of one length, to one in a thousand, after which no more are taken */
#define STRETCHES 512 /* at most */

/* A no-op that tells what counts for the lab (firmware/profile) where a figure, and each stretch of it, begins and ends. */
#define MARK(what) __asm__ volatile(".byte 0x0f, 0x1f, 0x80; .ascii \"XLP" what "\"" : : : "memory")

static u64 ticks(void)
{
    u32 low, high;

    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}

static u64 taken[STRETCHES];

/* How many of the first `count` stretches were as long as this, to one in a thousand. */
static u32 agreeing(u64 length, u32 count)
{
    u32 found = 0;

    for (u32 i = 0; i < count; i++)
        found += (taken[i] > length ? taken[i] - length : length - taken[i]) <= length >> 10;
    return found;
}

void cost(const char *name, void (*operations)(u32 rounds), u32 rounds)
{
    u64 length = 0, least = ~0ull, most = 0;
    u32 agree = 0, count = 0;

    operations(rounds); /* caches, and what Xen makes at the first time */
    while (count < STRETCHES && agree < AGREED) {
        u64 before;

        MARK("S");
        before = ticks();
        operations(rounds);
        length = ticks() - before;
        MARK("s");
        taken[count++] = length;
        agree = agreeing(length, count);
        if (length < least)
            least = length;
        if (length > most)
            most = length;
    }
    MARK("f");
    if (agree < AGREED) /* a clock that does not count: the shortest time is the least disturbed */
        length = least, agree = agreeing(least, count);
    print("XL cost-%s INFO ticks=%llu rounds=%u agree=%u of=%u most=%llu\n", name, length, rounds, agree, count, most);
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
