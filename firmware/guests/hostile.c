/*
 * Arguments no honest guest would pass: too many, too far, twice the same, nobody's. Each has one right answer (read in
 * the function named beside it), and afterwards the guest owns what it owned. With 32 bit they cross the compat layer.
 */
#include "payload.h"

#define FAR 0x7fffffffu

static long pages_owned(void)
{
    u16 domain = DOMID_SELF;

    return call2(memory_op, XENMEM_current_reservation, &domain);
}

/* xen/common/memory.c, do_memory_op; xen/common/compat/memory.c, compat_memory_op */
static void memory_hostile(void)
{
    struct range free = largest_free();
    ulong pfn = free.end - 1, count = (free.end - free.first) / 2;
    struct xen_memory_reservation much = {&pfn, FAR, 0, 0, DOMID_SELF}, nowhere = {(ulong *)NOWHERE, 1, 0, 0, DOMID_SELF};
    struct xen_memory_reservation huge = {&pfn, 1, 20, 0, DOMID_SELF}, other = {&pfn, 1, 0, 0, NO_SUCH_DOMAIN};
    struct xen_memory_reservation dom0 = {&pfn, 1, 0, 0, 0};
    long owned = pages_owned(), given, taken, less;
    u32 *page, bad = 0;

    expect("hostile-memory-count", call2(memory_op, XENMEM_decrease_reservation, &much), 0);
    much.nr_extents = ~0UL;
    expect("hostile-memory-count-most", call2(memory_op, XENMEM_populate_physmap, &much), 0);
    expect("hostile-memory-list", call2(memory_op, XENMEM_decrease_reservation, &nowhere), 0);
    nowhere.nr_extents = 1000;
    expect("hostile-memory-list-long", call2(memory_op, XENMEM_populate_physmap, &nowhere), 0);
    expect("hostile-memory-order", call2(memory_op, XENMEM_populate_physmap, &huge), 0);
    expect("hostile-memory-domain", call2(memory_op, XENMEM_decrease_reservation, &other), 0);
    expect("hostile-memory-of-dom0", call2(memory_op, XENMEM_decrease_reservation, &dom0), 0);
    expect("hostile-memory-pointer", call2(memory_op, XENMEM_populate_physmap, NOWHERE), 0);
    expect("hostile-memory-subop", call2(memory_op, 63, &much), -XEN_ENOSYS);
    result("hostile-memory-unharmed", pages_owned() == owned, "pages=%ld want=%ld", pages_owned(), owned);

    /* More extents than the compat layer translates at once (COMPAT_ARG_XLAT_SIZE: about a thousand). */
    if (count > BATCH)
        count = BATCH;
    pfn = free.end - count;
    given = pages_give(pfn, count);
    less = pages_owned();
    result("hostile-long-give", given == (long)count && less == owned - given, "done=%ld want=%lu pages=%ld->%ld", given,
           count, owned, less);
    taken = pages_take(pfn, count);
    less = pages_owned();
    result("hostile-long-take", taken == (long)count && less == owned, "done=%ld want=%lu pages=%ld want=%ld", taken,
           count, less, owned);
    for (ulong i = 0; i < count; i++) { /* each is a page of its own */
        page = window(pfn + i, 1);
        *page = 0xa5000000u + i;
    }
    for (ulong i = 0; i < count; i++) {
        page = window(pfn + i, 1);
        bad += *page != 0xa5000000u + i;
    }
    window_close();
    result("hostile-long-pages", !bad, "bad=%u of=%lu", bad, count);

    /* The same page twice: the first goes, the second is not there any more. */
    given = page_give_twice(pfn);
    taken = page_take(pfn);
    result("hostile-memory-twice", given == 1 && !taken && pages_owned() == owned, "done=%ld want=1 pages=%ld want=%ld",
           given, pages_owned(), owned);
}

/* xen/common/event_channel.c */
static void event_hostile(void)
{
    struct evtchn_alloc_unbound unbound = {NO_SUCH_DOMAIN, DOMID_SELF, 0};
    struct evtchn_bind_interdomain far = {DOMID_SELF, FAR, 0}, nobody = {NO_SUCH_DOMAIN, 1, 0};
    struct evtchn_bind_virq virq = {999, 0, 0}, vcpu = {VIRQ_TIMER, 999, 0};
    struct evtchn_status status = {DOMID_SELF, FAR, 0, 0, {0, 0}};
    u32 port = FAR;

    expect("hostile-event-domain", call2(event_channel_op, EVTCHNOP_alloc_unbound, &unbound), -XEN_ESRCH);
    unbound.dom = 0;
    expect("hostile-event-of-dom0", call2(event_channel_op, EVTCHNOP_alloc_unbound, &unbound), -XEN_EPERM);
    expect("hostile-event-bind-port", call2(event_channel_op, EVTCHNOP_bind_interdomain, &far), -XEN_EINVAL);
    expect("hostile-event-bind-domain", call2(event_channel_op, EVTCHNOP_bind_interdomain, &nobody), -XEN_ESRCH);
    expect("hostile-event-virq", call2(event_channel_op, EVTCHNOP_bind_virq, &virq), -XEN_EINVAL);
    expect("hostile-event-vcpu", call2(event_channel_op, EVTCHNOP_bind_virq, &vcpu), -XEN_ENOENT);
    expect("hostile-event-send", call2(event_channel_op, EVTCHNOP_send, &port), -XEN_EINVAL);
    expect("hostile-event-close", call2(event_channel_op, EVTCHNOP_close, &port), -XEN_EINVAL);
    expect("hostile-event-status", call2(event_channel_op, EVTCHNOP_status, &status), -XEN_EINVAL);
    expect("hostile-event-pointer", call2(event_channel_op, EVTCHNOP_send, NOWHERE), -XEN_EFAULT);
    expect("hostile-event-subop", call2(event_channel_op, 999, &port), -XEN_ENOSYS);
}

/* xen/common/sched/core.c, xen/common/domain.c */
static void sched_hostile(void)
{
    struct sched_poll far = {0, 129, 0}, nowhere = {(u32 *)NOWHERE, 1, 0};
    struct sched_remote_shutdown dom0 = {0, SHUTDOWN_crash};
    struct vcpu_set_singleshot_timer timer = {0, 0};
    u64 period = 1000; /* ns; less than a millisecond is not given */

    expect("hostile-poll-count", call2(sched_op, SCHEDOP_poll, &far), -XEN_EINVAL);
    expect("hostile-poll-list", call2(sched_op, SCHEDOP_poll, &nowhere), -XEN_EFAULT);
    expect("hostile-poll-pointer", call2(sched_op, SCHEDOP_poll, NOWHERE), -XEN_EFAULT);
    expect("hostile-shutdown-pointer", call2(sched_op, SCHEDOP_shutdown, NOWHERE), -XEN_EFAULT);
    expect("hostile-shutdown-of-dom0", call2(sched_op, SCHEDOP_remote_shutdown, &dom0), -XEN_EPERM);
    expect("hostile-vcpu-pointer", call3(vcpu_op, VCPUOP_get_runstate_info, 0, NOWHERE), -XEN_EFAULT);
    expect("hostile-vcpu-timer-pointer", call3(vcpu_op, VCPUOP_set_singleshot_timer, 0, NOWHERE), -XEN_EFAULT);
    expect("hostile-vcpu-timer-other", call3(vcpu_op, VCPUOP_set_singleshot_timer, 77, &timer), -XEN_ENOENT);
    expect("hostile-vcpu-period", call3(vcpu_op, VCPUOP_set_periodic_timer, 0, &period), -XEN_EINVAL);
    expect("hostile-vcpu-subop", call3(vcpu_op, 999, 0, &period), -XEN_ENOSYS);
}

/* xen/common/grant_table.c, xen/common/compat/grant_table.c */
static void grant_hostile(void)
{
    static ulong frame;
    struct gnttab_map_grant_ref map = {0, 2 /* host_map */, 1, NO_SUCH_DOMAIN, 0, 0, 0};
    struct gnttab_setup_table setup = {DOMID_SELF, 100000, 0, &frame};
    struct gnttab_query_size size = {NO_SUCH_DOMAIN, 0, 0, 0};
    long error = call3(grant_table_op, GNTTABOP_map_grant_ref, &map, 1);

    result("hostile-grant-domain", !error && map.status == GNTST_bad_domain, "error=%ld status=%d want=-2", error,
           map.status);
    map.dom = 0, map.ref = FAR;
    error = call3(grant_table_op, GNTTABOP_map_grant_ref, &map, 1);
    result("hostile-grant-reference", !error && map.status == GNTST_bad_gntref, "error=%ld status=%d want=-3", error,
           map.status);
    error = call3(grant_table_op, GNTTABOP_setup_table, &setup, 1);
    result("hostile-grant-frames", !error && setup.status == GNTST_general_error, "error=%ld status=%d want=-1", error,
           setup.status);
    error = call3(grant_table_op, GNTTABOP_query_size, &size, 1);
    result("hostile-grant-size-domain", !error && size.status == GNTST_bad_domain, "error=%ld status=%d want=-2", error,
           size.status);
    expect("hostile-grant-count", call3(grant_table_op, GNTTABOP_map_grant_ref, &map, ~0u), -XEN_EINVAL);
    expect("hostile-grant-pointer", call3(grant_table_op, GNTTABOP_map_grant_ref, NOWHERE, 1), -XEN_EFAULT);
    expect("hostile-grant-subop", call3(grant_table_op, 999, &map, 1), -XEN_ENOSYS);
}

/* xen/common/multicall.c */
static void multicall_hostile(void)
{
    static struct multicall_entry calls[200], inner;
    u32 bad = 0;
    long error;

    for (unsigned i = 0; i < 200; i++) { /* over several pages, each with an answer of its own */
        calls[i].op = i % 2 ? __HYPERVISOR_xen_version : 45;
        calls[i].args[0] = XENVER_pagesize;
    }
    error = call2(multicall, calls, 200);
    for (unsigned i = 0; i < 200; i++)
        bad += calls[i].result != (i % 2 ? PAGE : (ulong)-XEN_ENOSYS);
    result("hostile-multicall-long", !error && !bad, "error=%ld bad=%u of=200", error, bad);
    inner.op = __HYPERVISOR_xen_version;
    calls[0].op = __HYPERVISOR_multicall;
    calls[0].args[0] = (ulong)&inner;
    calls[0].args[1] = 1;
    error = call2(multicall, calls, 1);
    result("hostile-multicall-nested", !error && (long)calls[0].result == -XEN_EINVAL, "error=%ld result=%ld want=-22",
           error, (long)calls[0].result);
    expect("hostile-multicall-pointer", call2(multicall, NOWHERE, 200), -XEN_EFAULT);
}

void hostile_checks(void)
{
    u64 before = system_time();

    memory_hostile();
    event_hostile();
    sched_hostile();
    grant_hostile();
    multicall_hostile();
    platform_hostile();
    result("hostile-alive", system_time() > before, "ns=%llu", system_time() - before);
}
