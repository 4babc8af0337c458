/* The command line, the works in their order, the heart, and what the toolstack asks for. */
#include "payload.h"

u32 checks, failures;
ulong attempt_error, attempt_ip;
static char line[1024];
static int is_balloon, is_grant, is_busy, is_noack, is_nostop, is_evtchn, is_rung;
static u32 suspend_port; /* the toolstack rings there instead of writing control/shutdown */
static u32 beat;

void payload(void *information);
void trap(ulong *frame);

void crash(void)
{
    u32 reason = SHUTDOWN_crash;

    print_flush();
    for (;;)
        call2(sched_op, SCHEDOP_shutdown, &reason);
}

void trap(ulong *frame)
{
    static int nested;
    ulong cr2 = shared ? shared->vcpu_info[0].cr2 : 0;
    u32 reason = SHUTDOWN_crash;

#ifdef PVH
    __asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
#endif
    if (attempt_stack) {
        attempt_error = frame[1];
        attempt_ip = frame[2];
        attempt_failed(frame[0]);
    }
    if (nested++)
        for (;;)
            call2(sched_op, SCHEDOP_shutdown, &reason);
    print("XL trap FAIL vector=%lu eip=0x%lx error=0x%lx cr2=0x%lx\n", frame[0], frame[2], frame[1], cr2);
    crash();
}

void cpuid(u32 leaf, u32 out[4])
{
#ifdef PV /* ud2a 'x' 'e' 'n': Xen's answer, not the processor's */
    __asm__ volatile("ud2; .byte 0x78, 0x65, 0x6e; cpuid"
                     : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "0"(leaf), "2"(0));
#else
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "0"(leaf), "2"(0));
#endif
}

void result(const char *name, int passed, const char *format, ...)
{
    static char detail[320];
    __builtin_va_list list;

    __builtin_va_start(list, format);
    format_list_into(detail, sizeof(detail), format, list);
    __builtin_va_end(list);
    checks++;
    failures += !passed;
    print("XL %s %s %s\n", name, passed ? "PASS" : "FAIL", detail);
}

void expect(const char *name, long answer, long wanted)
{
    result(name, answer == wanted, "answer=%ld want=%ld", answer, wanted);
}

void expect_error(const char *name, long answer)
{
    result(name, answer < 0 && answer > -1000, "answer=%ld want=an error", answer);
}

/* The value of the last word "key=..." of the command line; NULL when there is none. */
static const char *word(const char *key)
{
    ulong n = length(key);
    const char *found = 0;

    for (const char *at = line; *at;) {
        ulong i = 0;

        while (i < n && at[i] == key[i])
            i++;
        if (i == n && at[n] == '=')
            found = at + n + 1;
        while (*at && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    return found;
}

ulong option(const char *key, ulong otherwise)
{
    const char *text = word(key);
    ulong number = 0;

    if (!text || *text < '0' || *text > '9')
        return otherwise;
    for (; *text >= '0' && *text <= '9'; text++)
        number = number * 10 + *text - '0';
    return number;
}

/* A port for dom0's toolstack, named where xs_suspend_evtchn_port() of libs/guest/xg_suspend.c looks for it. */
static void offer_port(void)
{
    struct evtchn_alloc_unbound unbound = {DOMID_SELF, 0, 0};
    long error = call2(event_channel_op, EVTCHNOP_alloc_unbound, &unbound);

    suspend_port = unbound.port;
    if (error || xenbus_write_number("device/suspend/event-channel", suspend_port) < 0)
        result("evtchn", 0, "error=%ld port=%u", error, suspend_port);
}

/* Stop and go on, perhaps elsewhere. What was counted and kept in memory must be the same afterwards. */
static void suspend(void)
{
    int cancelled;

    if (is_noack) {
        print("XL suspend INFO ignored\n");
        return;
    }
    if (!is_evtchn)
        xenbus_write("control/shutdown", "");
    print("XL suspend INFO requested\n");
    if (is_nostop)
        return;
    print_flush();
#ifdef PVH
    devices_leave();
#endif
    cancelled = platform_suspend();
    if (!cancelled) {
        xenbus_start(1);
        if (is_evtchn)
            offer_port();
    }
    print("XL resume INFO cancelled=%d\n", cancelled);
#ifdef PVH
    devices_look(cancelled);
#endif
    registers_look();
    vcpus_resume(cancelled);
    if (!memory_verify())
        print("XL verified INFO pages=%lu sum=0x%llx\n", memory_pages, memory_sum);
}

static void attend(void)
{
    static char wanted[32];
    u32 reason;

    if (is_rung) {
        is_rung = 0;
        suspend();
    }
    xenbus_poll();
    while (xenbus_changed()) {
        if (is_balloon)
            balloon_adjust();
        if (is_grant)
            grant_adjust();
        if (xenbus_read("control/shutdown", wanted, sizeof(wanted)) <= 0)
            continue;
        if (same(wanted, "suspend"))
            suspend();
        if (same(wanted, "poweroff") || same(wanted, "halt") || same(wanted, "reboot")) {
            reason = same(wanted, "reboot") ? SHUTDOWN_reboot : SHUTDOWN_poweroff;
            xenbus_write("control/shutdown", "");
            print("XL shutdown INFO %s\n", wanted);
            print_flush();
            call2(sched_op, SCHEDOP_shutdown, &reason);
        }
    }
}

/* Wait until then (or for ever), doing what the toolstack wants. */
static void live(u64 nanoseconds)
{
    u64 until = nanoseconds ? system_time() + nanoseconds : 0;
    u32 ports[2];

    do {
        u64 before = system_time();

        attend();
        if (nanoseconds && system_time() < before) /* another host's clock: wait anew */
            until = system_time() + nanoseconds;
        if (is_busy)
            continue;
        ports[0] = store_port, ports[1] = suspend_port; /* each host has its own */
        if (wait_ports(ports, is_evtchn ? 2 : 1, until ? until : system_time() + 1000000000) == suspend_port)
            is_rung = is_evtchn;
    } while (!until || system_time() < until);
}

static void heart(ulong count)
{
    u64 pause = (u64)option("hb_ms", 100) * 1000000;
    u32 dirty_kib = option("dirty_kib", 0);

    do {
        u64 now = system_time(), wall = wall_time(), done;
        u32 micros;

        divide(&wall, 1000);
        micros = divide(&wall, 1000000);
        print("XL HB %u %llu %llu.%06u\n", ++beat, now, wall, micros);
        memory_beat(dirty_kib);
        disk_beat();
        registers_look();
        vcpus_look();
        done = system_time();
        live(done > now && done - now < pause ? pause - (done - now) : 1);
    } while (!count || beat < count);
}

static void unknown(const char *name, ulong n)
{
    char text[32];

    n = n < sizeof(text) ? n : sizeof(text) - 1;
    memcpy(text, name, n);
    text[n] = 0;
    result("work", 0, "there is no work '%s'", text);
}

/* As a test of XTF ends: its last line, and power off. Source: xtf's common/report.c, README. */
static void end_as_xtf(const char *otherwise)
{
    u32 reason = SHUTDOWN_poweroff;
    char text[16] = "";

    for (ulong n = 0; otherwise && otherwise[n] > ' ' && n < sizeof(text) - 1; n++)
        text[n] = otherwise[n];
    print("Test result: %s\n", text[0] ? text : failures ? "FAILURE" : "SUCCESS");
    print_flush();
    for (;;)
        call2(sched_op, SCHEDOP_shutdown, &reason);
}

static int is(const char *name, ulong n, const char *wanted)
{
    ulong i = 0;

    while (i < n && wanted[i] == name[i])
        i++;
    return i == n && !wanted[i];
}

void payload(void *information)
{
    const char *works;
    int is_heart = 0;
    ulong count;

    platform_start(information);
    for (ulong i = 0; i < sizeof(line) - 1 && command_line && command_line[i]; i++)
        line[i] = command_line[i] < ' ' ? ' ' : command_line[i];
    echo = option("echo", 0);
    call3(vcpu_op, VCPUOP_stop_periodic_timer, 0, 0);
    registers_load(0);
    if (store_ring)
        xenbus_start(0);
    works = word("work");
    count = option("hb_count", 0);
    for (ulong n; works && *works && *works != ' '; works += n + (works[n] == ',')) {
        for (n = 0; works[n] && works[n] != ',' && works[n] != ' ';)
            n++;
        if (is(works, n, "mode"))
            platform_mode();
        else if (is(works, n, "hypercalls"))
            hypercall_checks();
        else if (is(works, n, "memory"))
            memory_work();
        else if (is(works, n, "features"))
            features_work();
        else if (is(works, n, "frames"))
            platform_frames();
        else if (is(works, n, "hostile"))
            hostile_checks();
        else if (is(works, n, "registers"))
            registers_work();
#ifdef PVH
        else if (is(works, n, "devices"))
            devices_work();
#endif
        else if (is(works, n, "cr2"))
            cr2_work();
        else if (is(works, n, "vcpus"))
            vcpus_work();
        else if (is(works, n, "vnuma"))
            vnuma_work();
        else if (is(works, n, "tlb"))
            tlb_work();
        else if (is(works, n, "perf"))
            perf_work();
        else if (is(works, n, "ping"))
            ping_work();
        else if (is(works, n, "give"))
            give_work();
        else if (is(works, n, "take"))
            take_work();
        else if (is(works, n, "demand"))
            demand_work();
        else if (is(works, n, "disk"))
            disk_work();
        else if (is(works, n, "lies"))
            lies_work();
        else if (is(works, n, "orphan"))
            orphan_work();
        else if (is(works, n, "heartbeat"))
            is_heart = 1;
        else if (is(works, n, "balloon")) {
            is_balloon = 1;
            balloon_start();
        } else if (is(works, n, "granted")) {
            is_grant = 1;
            grant_start();
        } else if (is(works, n, "busy"))
            is_busy = 1;
        else if (is(works, n, "noack"))
            is_noack = 1;
        else if (is(works, n, "nostop"))
            is_nostop = 1;
        else if (is(works, n, "evtchn")) {
            is_evtchn = 1;
            offer_port();
        }
        else if (is(works, n, "trap"))
            __asm__ volatile("ud2");
        else if (is(works, n, "fault")) /* a selector beyond every table: vector 13 with an error code */
            __asm__ volatile("mov %0, %%ds" : : "r"(0xfff8));
        else if (!is(works, n, "dirty") && !is(works, n, "idle"))
            unknown(works, n);
    }
    if (is_heart && count)
        heart(count);
    print("XL done %s n=%u failed=%u\n", failures ? "FAIL" : "PASS", checks, failures);
    if (option("xtf", 0))
        end_as_xtf(word("xtf_result"));
    if (is_heart && !count)
        heart(0);
    for (;;)
        live(0);
}
