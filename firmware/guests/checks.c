/* Each hypercall group with arguments that are right and arguments that are not. A case is one line. */
#include "payload.h"

typedef char page_t[PAGE];

#define NO_SUCH_HYPERCALL 45
#define FAR_PORT 0xffffu
#define MILLISECOND 1000000ull
#define LAST_GRANT (PAGE / sizeof(struct grant_entry_v1) - 1)

static int contains(const char *text, const char *part)
{
    for (; *text; text++) {
        ulong i = 0;

        while (part[i] && text[i] == part[i])
            i++;
        if (!part[i])
            return 1;
    }
    return 0;
}

static void version_checks(void)
{
    static char text[1024];
    struct xen_feature_info features = {0, 0};
    long n = call2(xen_version, XENVER_version, 0);

    result("version", n >> 16 >= 4 && n >> 16 < 100, "%ld.%ld", n >> 16, n & 0xffff);
    n = call2(xen_version, XENVER_extraversion, text);
    result("version-extra", n >= 0 && text[0] && length(text) < 16, "%s", text);
    n = call2(xen_version, XENVER_capabilities, text);
    result("version-capabilities", n >= 0 && contains(text, "xen-3.0-x86_64"), "%s", text);
    n = call2(xen_version, XENVER_get_features, &features);
    result("version-features", n == 0 && features.submap, "error=%ld features=0x%x", n, features.submap);
    n = call2(xen_version, XENVER_pagesize, 0);
    result("version-pagesize", n == PAGE, "%ld", n);
    n = call2(xen_version, 999, text);
    result("version-bad-subop", n == -XEN_ENOSYS, "error=%ld want=-38", n);
    n = call2(xen_version, XENVER_extraversion, NOWHERE);
    result("bad-pointer", n == -XEN_EFAULT, "error=%ld want=-14", n);
    n = hypercall(NO_SUCH_HYPERCALL, 0, 0, 0, 0, 0);
    result("unknown-hypercall", n == -XEN_ENOSYS, "error=%ld want=-38", n);
}

static void memory_checks(void)
{
    static page_t page __attribute__((aligned(4096)));
    ulong pfn = (ulong)page / PAGE;
    u16 domain = DOMID_SELF;
    long maximum = call2(memory_op, XENMEM_maximum_reservation, &domain);
    long current = call2(memory_op, XENMEM_current_reservation, &domain), less, back, given, taken;

    result("memory-current", current > 256, "pages=%ld", current);
    result("memory-maximum", maximum >= current, "pages=%ld", maximum);
    given = page_give(pfn);
    less = call2(memory_op, XENMEM_current_reservation, &domain);
    taken = page_take(pfn);
    back = call2(memory_op, XENMEM_current_reservation, &domain);
    result("memory-give", !given && less == current - 1, "error=%ld pages=%ld", given, less);
    result("memory-take", !taken && back == current, "error=%ld pages=%ld", taken, back);
    if (!taken) {
        *(volatile u32 *)page = 0x600df00d;
        result("memory-taken-page", *(volatile u32 *)page == 0x600df00d, "written and read");
    }
    domain = NO_SUCH_DOMAIN;
    current = call2(memory_op, XENMEM_current_reservation, &domain);
    result("memory-bad-domain", current == -XEN_ESRCH, "error=%ld want=-3", current);
    current = call2(memory_op, XENMEM_current_reservation, NOWHERE);
    result("memory-bad-pointer", current == -XEN_EFAULT, "error=%ld want=-14", current);
}

static void event_checks(void)
{
    struct evtchn_alloc_unbound unbound = {DOMID_SELF, DOMID_SELF, 0};
    struct evtchn_bind_interdomain bound = {DOMID_SELF, 0, 0};
    struct evtchn_status status = {DOMID_SELF, 0, 99, 0, {0, 0}};
    u32 port = FAR_PORT;
    long error, sent;

    error = call2(event_channel_op, EVTCHNOP_alloc_unbound, &unbound);
    status.port = unbound.port;
    call2(event_channel_op, EVTCHNOP_status, &status);
    result("event-alloc", !error && unbound.port && status.status == EVTCHNSTAT_unbound, "error=%ld port=%u status=%u",
           error, unbound.port, status.status);
    bound.remote_port = unbound.port;
    error = call2(event_channel_op, EVTCHNOP_bind_interdomain, &bound);
    port_pending(unbound.port); /* binding rings once */
    port_pending(bound.local_port);
    sent = call2(event_channel_op, EVTCHNOP_send, &bound.local_port);
    result("event-loopback", !error && !sent && port_pending(unbound.port), "bind=%ld send=%ld port=%u", error, sent,
           bound.local_port);
    error = call2(event_channel_op, EVTCHNOP_close, &bound.local_port);
    sent = call2(event_channel_op, EVTCHNOP_close, &unbound.port);
    call2(event_channel_op, EVTCHNOP_status, &status);
    result("event-close", !error && !sent && status.status == EVTCHNSTAT_closed, "error=%ld,%ld status=%u", error, sent,
           status.status);
    error = call2(event_channel_op, EVTCHNOP_send, &port);
    result("event-bad-port", error == -XEN_EINVAL, "error=%ld want=-22", error);
}

/* A port that rings while it is masked has its vCPU told when the mask goes: event_channel.h, EVTCHNOP_unmask. */
static void unmask_checks(void)
{
    struct evtchn_alloc_unbound unbound = {DOMID_SELF, DOMID_SELF, 0};
    struct evtchn_bind_interdomain bound = {DOMID_SELF, 0, 0};
    struct vcpu_info *info = &shared->vcpu_info[0];
    ulong word, bit;
    long error, sent, unmasked;
    int early, told, upcall;

    error = call2(event_channel_op, EVTCHNOP_alloc_unbound, &unbound);
    bound.remote_port = unbound.port;
    error |= call2(event_channel_op, EVTCHNOP_bind_interdomain, &bound);
    word = unbound.port / LONG_BITS;
    bit = 1UL << unbound.port % LONG_BITS;
    port_pending(unbound.port); /* binding rings once */
    port_pending(bound.local_port);
    __sync_fetch_and_or(&shared->evtchn_mask[word], bit);
    __sync_fetch_and_and(&info->evtchn_pending_sel, ~(1UL << word));
    sent = call2(event_channel_op, EVTCHNOP_send, &bound.local_port);
    early = *(volatile ulong *)&info->evtchn_pending_sel >> word & 1;
    *(volatile u8 *)&info->evtchn_upcall_pending = 0;
    unmasked = call2(event_channel_op, EVTCHNOP_unmask, &unbound.port);
    told = *(volatile ulong *)&info->evtchn_pending_sel >> word & 1;
    upcall = *(volatile u8 *)&info->evtchn_upcall_pending;
    result("event-unmask", !error && !sent && !early && !unmasked && told && upcall && port_pending(unbound.port),
           "error=%ld,%ld,%ld told early=%d then=%d upcall=%d", error, sent, unmasked, early, told, upcall);
    __sync_fetch_and_or(&shared->evtchn_mask[word], bit);
    __sync_fetch_and_and(&info->evtchn_pending_sel, ~(1UL << word));
    call2(event_channel_op, EVTCHNOP_close, &bound.local_port);
    call2(event_channel_op, EVTCHNOP_close, &unbound.port);
}

/* Whether the port rings within three seconds. A poll may end early without it. */
static int rings(u32 port)
{
    u64 limit = system_time() + 3000 * MILLISECOND;
    u32 woken;

    do
        woken = wait_ports(&port, 1, limit);
    while (woken == NO_PORT && system_time() < limit);
    return woken == port;
}

static void time_checks(void)
{
    struct evtchn_bind_virq virq = {VIRQ_TIMER, 0, 0};
    struct vcpu_set_singleshot_timer timer = {0, VCPU_SSHOTTMR_future};
    struct vcpu_set_periodic_timer period = {2 * MILLISECOND};
    u64 before, now, end, last, rung[3] = {0, 0, 0};
    u32 backwards = 0, readings = 0;
    int woken, early;
    long error;

    call3(vcpu_op, VCPUOP_stop_periodic_timer, 0, 0); /* a PV guest begins with one of 10 ms */
    last = before = system_time();
    for (end = before + 3 * MILLISECOND; (now = system_time()) < end && readings < 10000000; readings++) {
        backwards += now < last;
        last = now;
    }
    result("time-monotonic", now >= end && !backwards, "readings=%u backwards=%u", readings, backwards);

    before = system_time();
    for (readings = 0; (now = system_time()) < before + 5 * MILLISECOND && readings < 50; readings++)
        wait_ports(0, 0, before + 5 * MILLISECOND); /* any event at all ends a poll for no port early */
    result("sched-poll-timeout", now >= before + 5 * MILLISECOND, "asked=5000000 slept=%llu polls=%u", now - before,
           readings);

    error = call2(event_channel_op, EVTCHNOP_bind_virq, &virq);
    before = system_time();
    timer.timeout_abs_ns = before + 5 * MILLISECOND;
    if (!error)
        error = call3(vcpu_op, VCPUOP_set_singleshot_timer, 0, &timer);
    woken = rings(virq.port);
    now = system_time();
    result("vcpu-singleshot-timer", !error && woken && now >= timer.timeout_abs_ns,
           "error=%ld woken=%d asked=5000000 slept=%llu", error, woken, now - before);
    before = system_time();
    end = before + 5 * MILLISECOND;
#ifdef __x86_64__
    error = call1(set_timer_op, end);
#else
    error = call2(set_timer_op, end, end >> 32);
#endif
    woken = rings(virq.port);
    now = system_time();
    result("set-timer", !error && woken && now >= end, "error=%ld woken=%d asked=5000000 slept=%llu", error, woken,
           now - before);
    /* This timer stands still while the vCPU is blocked. */
    early = port_pending(virq.port);
    before = system_time();
    for (readings = 0, error = call3(vcpu_op, VCPUOP_set_periodic_timer, 0, &period);
         readings < 3 && (now = system_time()) < before + 3000 * MILLISECOND;)
        if (port_pending(virq.port))
            rung[readings++] = system_time() - before; /* later than now, by as long as another guest's turn */
    call3(vcpu_op, VCPUOP_stop_periodic_timer, 0, 0);
    result("vcpu-periodic-timer", !error && !early && readings == 3 && rung[2] >= 4 * MILLISECOND,
           "error=%ld early=%d rings=%u at=%llu,%llu,%llu period=%llu", error, early, readings, rung[0], rung[1],
           rung[2], period.period_ns);
    call2(event_channel_op, EVTCHNOP_close, &virq.port);
}

static void vcpu_checks(void)
{
    struct vcpu_runstate_info state = {-1, 0, {0, 0, 0, 0}};
    long error = call2(sched_op, SCHEDOP_yield, 0);

    result("sched-yield", error == 0, "error=%ld", error);
    error = call2(sched_op, 999, 0);
    result("sched-bad-subop", error == -XEN_ENOSYS, "error=%ld want=-38", error);
    error = call3(vcpu_op, VCPUOP_is_up, 0, 0);
    result("vcpu-is-up", error == 1, "%ld", error);
    error = call3(vcpu_op, VCPUOP_is_up, 77, 0);
    result("vcpu-bad-vcpu", error == -XEN_ENOENT, "error=%ld want=-2", error);
    error = call3(vcpu_op, VCPUOP_get_runstate_info, 0, &state);
    result("vcpu-runstate", !error && state.state == 0 && state.time[0], "error=%ld state=%d running=%llu", error,
           state.state, state.time[0]);
}

static void multicall_checks(void)
{
    struct multicall_entry calls[3];
    u16 domain = DOMID_SELF;
    long error;

    memset(calls, 0, sizeof(calls));
    calls[0].op = __HYPERVISOR_xen_version;
    calls[0].args[0] = XENVER_pagesize;
    calls[1].op = NO_SUCH_HYPERCALL;
    calls[2].op = __HYPERVISOR_memory_op;
    calls[2].args[0] = XENMEM_current_reservation;
    calls[2].args[1] = (ulong)&domain;
    for (unsigned i = 0; i < 3; i++)
        calls[i].result = 0x5a5a;
    error = call2(multicall, calls, 3);
    result("multicall",
           !error && calls[0].result == PAGE && (long)calls[1].result == -XEN_ENOSYS && (long)calls[2].result > 256,
           "error=%ld results=%ld,%ld,%ld", error, (long)calls[0].result, (long)calls[1].result, (long)calls[2].result);
    error = call2(multicall, NOWHERE, 3);
    result("multicall-bad-pointer", error == -XEN_EFAULT, "error=%ld want=-14", error);
}

#define COPIES 3
#define ROUNDS 16

/*
 * Three pieces in one hypercall, the second of which does not fit into its page. Between two pieces Xen may turn to other
 * work, and go on with a shorter list; in one of so many rounds it does not.
 */
static void copy_checks(void)
{
    static page_t from __attribute__((aligned(4096))), to __attribute__((aligned(4096)));
    struct gnttab_copy copies[COPIES];
    int is_right = 1;
    u32 wrong = 0;
    long error = 0;

    for (unsigned i = 0; i < PAGE; i++)
        from[i] = (char)(i * 5 + 3);
    for (unsigned round = 0; is_right && round < ROUNDS; round++) {
        memset(copies, 0, sizeof(copies));
        memset(to, 0, PAGE);
        for (unsigned i = 0; i < COPIES; i++) {
            copies[i].source.frame = platform_frame(from);
            copies[i].dest.frame = platform_frame(to);
            copies[i].source.domid = copies[i].dest.domid = DOMID_SELF;
            copies[i].source.offset = 100 * i;
            copies[i].dest.offset = i == 1 ? PAGE - 10 : 1000 * i;
            copies[i].len = 50;
            copies[i].status = 99;
        }
        error = call3(grant_table_op, GNTTABOP_copy, copies, COPIES);
        for (unsigned i = 0; i < PAGE; i++) {
            unsigned there = i < 50 ? i : i >= 2000 && i < 2050 ? i - 2000 + 200 : PAGE;

            wrong += to[i] != (there < PAGE ? from[there] : 0);
        }
        is_right = !error && !copies[0].status && copies[1].status == GNTST_bad_copy_arg && !copies[2].status && !wrong;
    }
    result("grant-copy", is_right, "error=%ld status=%d,%d,%d want=0,-10,0 wrong bytes=%u", error, copies[0].status,
           copies[1].status, copies[2].status, wrong);
}

static void grant_checks(void)
{
    struct gnttab_swap_grant_ref swap = {LAST_GRANT, LAST_GRANT - 1, 99};
    struct gnttab_get_version version = {DOMID_SELF, 0, 99};
    static page_t page __attribute__((aligned(4096)));
    struct gnttab_query_size size = {DOMID_SELF, 0, 0, -99};
    volatile struct grant_entry_v1 *entry = (void *)(page + PAGE - sizeof(struct grant_entry_v1));
    long error = call3(grant_table_op, GNTTABOP_query_size, &size, 1);

    result("grant-query-size", !error && !size.status && size.nr_frames && size.max_nr_frames >= size.nr_frames,
           "error=%ld status=%d frames=%u max=%u", error, size.status, size.nr_frames, size.max_nr_frames);
    page[0] = 0x77;
    error = grant_frame_map(page);
    if (!error) {
        u32 before = entry->frame;

        entry->frame = 0x1234;
        result("grant-table-frame", !before && entry->frame == 0x1234 && !entry->flags, "last entry before=0x%x", before);
        entry[-1].frame = 0x4321;
        error = call3(grant_table_op, GNTTABOP_swap_grant_ref, &swap, 1);
        result("grant-swap", !error && !swap.status && entry->frame == 0x4321 && entry[-1].frame == 0x1234,
               "error=%ld status=%d entries=0x%x,0x%x", error, swap.status, entry->frame, entry[-1].frame);
        entry->frame = entry[-1].frame = 0;
    } else
        result("grant-table-frame", 0, "error=%ld", error);
    error = grant_frame_unmap(page);
    result("grant-table-unmap", !error, "error=%ld", error);
    error = call3(grant_table_op, GNTTABOP_get_version, &version, 1);
    result("grant-version", !error && version.version == 1, "error=%ld version=%u", error, version.version);
    error = call3(grant_table_op, GNTTABOP_query_size, NOWHERE, 1);
    result("grant-bad-pointer", error == -XEN_EFAULT, "error=%ld want=-14", error);
}

/* With the trap flag on, an instruction that the hypervisor executes for the guest is followed by the trap, as any other. */
static void step_checks(void)
{
    int vector = attempt(step_over) - 1;

    result("single-step", vector == 1 && attempt_ip == (ulong)stepped, "vector=%d want=1 at=0x%lx want=0x%lx", vector,
           attempt_ip, (ulong)stepped);
}

void hypercall_checks(void)
{
    version_checks();
    memory_checks();
    event_checks();
    unmask_checks();
    vcpu_checks();
    time_checks();
    multicall_checks();
    grant_checks();
    copy_checks();
    step_checks();
    platform_checks();
}
