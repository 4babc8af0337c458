/*
 * Xen's clock, and waiting. All events stay masked: SCHEDOP_poll wakes on a pending port, masked or not, and has
 * its own timer, so that nothing needs re-arming after a relocation.
 */
#include "payload.h"

#define VOLATILE(x) (*(volatile __typeof__(x) *)&(x))

static u64 scale(u64 ticks, s8 shift, u32 multiplier)
{
    ticks = shift < 0 ? ticks >> -shift : ticks << shift;
    return (((u64)(u32)ticks * multiplier) >> 32) + (ticks >> 32) * multiplier;
}

u64 ticks_to_ns(u64 ticks)
{
    const struct vcpu_time_info *time = &shared->vcpu_info[0].time;

    return scale(ticks, VOLATILE(time->tsc_shift), VOLATILE(time->tsc_to_system_mul));
}

u64 time_by(struct vcpu_time_info *time)
{
    u32 version, low, high;
    u64 now;

    do {
        version = VOLATILE(time->version);
        barrier();
        __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
        now = VOLATILE(time->system_time) +
              scale(((u64)high << 32 | low) - VOLATILE(time->tsc_timestamp), VOLATILE(time->tsc_shift),
                    VOLATILE(time->tsc_to_system_mul));
        barrier();
    } while (version & 1 || version != VOLATILE(time->version));
    return now;
}

u64 system_time(void)
{
    return time_by(&shared->vcpu_info[0].time);
}

u64 wall_time(void)
{
    u32 version;
    u64 boot;

    do {
        version = VOLATILE(shared->wc_version);
        barrier();
        boot = ((u64)VOLATILE(shared->wc_sec_hi) << 32 | VOLATILE(shared->wc_sec)) * 1000000000 +
               VOLATILE(shared->wc_nsec);
        barrier();
    } while (version & 1 || version != VOLATILE(shared->wc_version));
    return boot + system_time();
}

int port_pending(u32 port)
{
    ulong bit = 1UL << port % LONG_BITS;

    return port && __sync_fetch_and_and(&shared->evtchn_pending[port / LONG_BITS], ~bit) & bit;
}

void port_notify(u32 port)
{
    if (port)
        call2(event_channel_op, EVTCHNOP_send, &port);
}

u32 wait_ports(const u32 *ports, u32 count, u64 until)
{
    struct sched_poll poll = {(u32 *)ports, count, until};

    if (count && !ports[0]) /* a ring without event channel: just the time */
        poll.nr_ports = 0;
    shared->vcpu_info[0].evtchn_upcall_pending = 0;
    call2(sched_op, SCHEDOP_poll, &poll);
    for (u32 i = 0; i < count; i++)
        if (port_pending(ports[i]))
            return ports[i];
    return NO_PORT;
}
