/*
 * The other vCPUs of this guest: brought up by the interface that its kind has, asked for things one at a time by vCPU
 * 0, which alone prints. A vCPU waits for a ring on a port of its own, does what `command` says, counts, and rings back.
 */
#include "payload.h"

#define PATIENCE 5000000000ull /* ns that an answer may take */
#define ROUNDS 50
#define VOLATILE(x) (*(volatile __typeof__(x) *)&(x))

enum command { COUNT, GO_DOWN, SET_TIMER, LOOK_AT_REGISTERS, SLEEP, TELL_TIME };

static struct {
    u32 started, answers, port, timer_port;
    enum command command;
    long error;
    u64 number; /* what the command was about */
    struct vcpu_runstate_info runstate;
    struct vcpu_time_info time;
    const char *broken;
    ulong got, want;
} __attribute__((aligned(64))) vcpus[MAX_VCPUS];
static u32 count = 1, own_port;
static char stacks[MAX_VCPUS][8192] __attribute__((aligned(16)));
/* What start-*.S gives the vCPU that is coming up. */
char *secondary_stack;
u32 secondary_number;

/* An event, which is masked, may end a poll for no port early; so may what the toolstack does. */
static void sleep_until(u32 vcpu, u64 until)
{
    struct sched_poll poll = {0, 0, until};

    for (u32 tries = 0; system_time() < until && tries < 50; tries++) {
        shared->vcpu_info[vcpu].evtchn_upcall_pending = 0;
        call2(sched_op, SCHEDOP_poll, &poll);
    }
}

/* Block until `port` is pending (it is cleared) or system time reaches `until`; whether it was. */
static int poll_port(u32 vcpu, u32 port, u64 until)
{
    struct sched_poll poll = {&port, 1, until};

    shared->vcpu_info[vcpu].evtchn_upcall_pending = 0;
    if (call2(sched_op, SCHEDOP_poll, &poll)) /* the port is of a former life, and vCPU 0 is about to make a new one */
        sleep_until(vcpu, system_time() + 2000000);
    return port_pending(port);
}

static void set_timer(u32 vcpu)
{
    u64 wanted = system_time() + 5000000;
    struct vcpu_set_singleshot_timer timer = {wanted, VCPU_SSHOTTMR_future};
    u32 port = VOLATILE(vcpus[vcpu].timer_port);
    int woken;

    port_pending(port); /* a tick of the periodic timer may have come before that was stopped */
    vcpus[vcpu].error = call3(vcpu_op, VCPUOP_set_singleshot_timer, vcpu, &timer);
    woken = poll_port(vcpu, port, wanted + 3000000000ull);
    vcpus[vcpu].number = woken ? system_time() - wanted : ~0ull;
}

void secondary(void); /* start-*.S come here with a stack */
void secondary(void)
{
    u32 vcpu = secondary_number;

    registers_load(vcpu);
    call3(vcpu_op, VCPUOP_stop_periodic_timer, vcpu, 0); /* each begins with one */
    VOLATILE(vcpus[vcpu].started) = 1;
    for (;;) {
        if (!poll_port(vcpu, VOLATILE(vcpus[vcpu].port), system_time() + 100000000))
            continue;
        vcpus[vcpu].error = 0;
        switch (VOLATILE(vcpus[vcpu].command)) {
        case COUNT:
            break;
        case GO_DOWN: /* goes on from here when it is brought up again */
            vcpus[vcpu].error = call3(vcpu_op, VCPUOP_down, vcpu, 0);
            break;
        case SET_TIMER:
            set_timer(vcpu);
            break;
        case LOOK_AT_REGISTERS:
            vcpus[vcpu].broken = registers_broken(vcpu, &vcpus[vcpu].got, &vcpus[vcpu].want);
            break;
        case SLEEP:
            sleep_until(vcpu, system_time() + 20000000);
            break;
        case TELL_TIME:
            vcpus[vcpu].number = time_by(&vcpus[vcpu].time);
        }
        memory_barrier();
        VOLATILE(vcpus[vcpu].answers)++;
        port_notify(VOLATILE(own_port));
    }
}

static long bind_ipi(u32 vcpu, u32 *port)
{
    struct evtchn_bind_ipi bind = {vcpu, 0};
    long error = call2(event_channel_op, EVTCHNOP_bind_ipi, &bind);

    *port = bind.port;
    return error;
}

/* Ports and areas belong to a domain: they are made at the start, and again after each real resume. */
static long attach(void)
{
    u32 port;
    long error = bind_ipi(0, &port);

    VOLATILE(own_port) = port;
    for (u32 i = 1; i < count && !error; i++) {
        struct vcpu_register_area runstate = {(ulong)&vcpus[i].runstate}, time = {(ulong)&vcpus[i].time};
        struct evtchn_bind_virq virq = {VIRQ_TIMER, i, 0};

        error = bind_ipi(i, &port);
        VOLATILE(vcpus[i].port) = port;
        if (!error)
            error = call2(event_channel_op, EVTCHNOP_bind_virq, &virq);
        VOLATILE(vcpus[i].timer_port) = virq.port;
        if (!error)
            error = call3(vcpu_op, VCPUOP_register_runstate_memory_area, i, &runstate);
        if (!error)
            error = call3(vcpu_op, VCPUOP_register_vcpu_time_memory_area, i, &time);
    }
    return error;
}

/* Have a vCPU do it. 1 when it has answered in time. */
static int ask(u32 vcpu, enum command command)
{
    u32 before = vcpus[vcpu].answers;
    u64 until = system_time() + PATIENCE;

    VOLATILE(vcpus[vcpu].command) = command;
    memory_barrier();
    port_notify(vcpus[vcpu].port);
    while (VOLATILE(vcpus[vcpu].answers) == before && system_time() < until)
        wait_ports(&own_port, 1, system_time() + 100000000);
    return VOLATILE(vcpus[vcpu].answers) == before + 1;
}

static int is_up(u32 vcpu)
{
    return call3(vcpu_op, VCPUOP_is_up, vcpu, 0) == 1;
}

static int becomes(u32 vcpu, int up)
{
    for (u64 until = system_time() + PATIENCE; is_up(vcpu) != up;) {
        if (system_time() > until)
            return 0;
        wait_ports(0, 0, system_time() + 1000000);
    }
    return 1;
}

static int bring_up(u32 vcpu)
{
    long error;

    shared->vcpu_info[vcpu].evtchn_upcall_mask = 1;
    secondary_number = vcpu;
    secondary_stack = stacks[vcpu] + sizeof(stacks[vcpu]);
    memory_barrier();
    error = platform_start_vcpu(vcpu);
    for (u64 until = system_time() + PATIENCE; !error && !VOLATILE(vcpus[vcpu].started) && system_time() < until;)
        wait_ports(0, 0, system_time() + 1000000);
    if (error || !vcpus[vcpu].started || !is_up(vcpu))
        result("vcpus-up", 0, "vcpu=%u error=%ld started=%u up=%d", vcpu, error, vcpus[vcpu].started, is_up(vcpu));
    return !error && vcpus[vcpu].started;
}

static u64 sum_of(const struct vcpu_runstate_info *state)
{
    return state->time[0] + state->time[1] + state->time[2] + state->time[3];
}

/* As Xen wrote it into the registered area, and not while it was writing. */
static struct vcpu_runstate_info runstate_of(u32 vcpu)
{
    struct vcpu_runstate_info seen, again;

    do {
        memcpy(&seen, (void *)&VOLATILE(vcpus[vcpu].runstate), sizeof(seen));
        memory_barrier();
        memcpy(&again, (void *)&VOLATILE(vcpus[vcpu].runstate), sizeof(again));
    } while (seen.state_entry_time != again.state_entry_time || sum_of(&seen) != sum_of(&again));
    return seen;
}

/*
 * Xen counts each nanosecond since a vCPU was made in one of four states (vcpu_runstate_change(), xen/common/sched): so
 * between two changes of state, the sum grows by just what the time of the last change does.
 */
static int runstate_is_right(u32 vcpu)
{
    struct vcpu_runstate_info first, last, asked = {-1, 0, {0, 0, 0, 0}};
    u64 began = system_time(), ended, passed, summed, slept, waited;
    long error;
    int ok = ask(vcpu, COUNT);

    first = runstate_of(vcpu);
    ok = ok && ask(vcpu, SLEEP) && ask(vcpu, COUNT);
    last = runstate_of(vcpu);
    ended = system_time();
    passed = last.state_entry_time - first.state_entry_time;
    summed = sum_of(&last) - sum_of(&first);
    slept = last.time[2] - first.time[2];
    waited = last.time[1] - first.time[1]; /* a busy processor may have let the time of the sleep pass */
    error = call3(vcpu_op, VCPUOP_get_runstate_info, vcpu, &asked);
    ok = ok && passed == summed && passed >= 20000000 && passed < ended - began + 1000000000 &&
         slept + waited >= 19000000;
    ok = ok && slept <= passed && last.state >= 0 && last.state <= 3 && last.state_entry_time <= ended;
    ok = ok && !error && sum_of(&asked) >= sum_of(&last) && asked.time[2] >= last.time[2];
    if (!ok)
        result("vcpus-runstate", 0, "vcpu=%u state=%d entry=%llu passed=%llu summed=%llu slept=%llu took=%llu asked=%ld,%llu",
               vcpu, last.state, last.state_entry_time, passed, summed, slept, ended - began, error, sum_of(&asked));
    return ok;
}

/* The time area of a vCPU gives the same time as the shared page. */
static int time_is_right(u32 vcpu)
{
    u64 before = system_time(), said, after;
    int ok = ask(vcpu, TELL_TIME);

    said = vcpus[vcpu].number;
    after = system_time();
    ok = ok && vcpus[vcpu].time.tsc_to_system_mul && said + 1000000 >= before && said <= after + 1000000;
    if (!ok)
        result("vcpus-time", 0, "vcpu=%u before=%llu said=%llu after=%llu", vcpu, before, said, after);
    return ok;
}

static int timer_is_right(u32 vcpu)
{
    int ok = ask(vcpu, SET_TIMER);

    ok = ok && !vcpus[vcpu].error && vcpus[vcpu].number < 3000000000ull;
    if (!ok)
        result("vcpus-timer", 0, "vcpu=%u error=%ld late=%llu", vcpu, vcpus[vcpu].error, vcpus[vcpu].number);
    return ok;
}

static int registers_are_right(u32 vcpu)
{
    int ok = ask(vcpu, LOOK_AT_REGISTERS) && !vcpus[vcpu].broken;

    if (!ok)
        result("vcpus-registers", 0, "vcpu=%u broken=%s got=0x%lx want=0x%lx", vcpu,
               vcpus[vcpu].broken ? vcpus[vcpu].broken : "no answer", vcpus[vcpu].got, vcpus[vcpu].want);
    return ok;
}

static int counts_right(u32 vcpu)
{
    u32 before = vcpus[vcpu].answers;
    int ok = 1;

    for (u32 round = 0; round < ROUNDS && ok; round++)
        ok = ask(vcpu, COUNT);
    ok = ok && vcpus[vcpu].answers == before + ROUNDS;
    if (!ok)
        result("vcpus-events", 0, "vcpu=%u answers=%u want=%u", vcpu, vcpus[vcpu].answers - before, ROUNDS);
    return ok;
}

/* It takes itself down, stands still however often it is rung, and goes on where it was when it is brought up. */
static int goes_and_comes(u32 vcpu)
{
    u32 before = vcpus[vcpu].answers;
    int went, stood, came, answered;
    long error;

    VOLATILE(vcpus[vcpu].command) = GO_DOWN;
    memory_barrier();
    port_notify(vcpus[vcpu].port);
    went = becomes(vcpu, 0);
    wait_ports(0, 0, system_time() + 20000000);
    stood = VOLATILE(vcpus[vcpu].answers) == before && !is_up(vcpu);
    error = call3(vcpu_op, VCPUOP_up, vcpu, 0);
    came = becomes(vcpu, 1);
    for (u64 until = system_time() + PATIENCE; VOLATILE(vcpus[vcpu].answers) == before && system_time() < until;)
        wait_ports(&own_port, 1, system_time() + 100000000);
    answered = VOLATILE(vcpus[vcpu].answers) == before + 1;
    if (!(went && stood && !error && came && answered))
        result("vcpus-down-and-up", 0, "vcpu=%u went=%d stood=%d error=%ld came=%d answered=%d", vcpu, went, stood, error,
               came, answered);
    return went && stood && !error && came && answered;
}

/* Each vCPU but this one; one line when all are right. */
static void each(const char *name, int (*is_right)(u32 vcpu))
{
    u32 good = 0;

    for (u32 i = 1; i < count; i++)
        good += is_right(i);
    if (good == count - 1)
        result(name, 1, "vcpus=%u", count);
}

void vcpus_work(void)
{
    u32 wanted = option("vcpus", 1);
    long error;

    if (wanted < 2 || wanted > MAX_VCPUS) {
        result("vcpus", 0, "vcpus=%u want=2 to %u", wanted, MAX_VCPUS);
        return;
    }
    expect("vcpus-nobody-up", call3(vcpu_op, VCPUOP_up, wanted, 0), -XEN_ENOENT);
    if (!platform_started_by_ipi())
        expect("vcpus-up-too-early", call3(vcpu_op, VCPUOP_up, 1, 0), -XEN_EINVAL);
    count = wanted;
    error = attach();
    if (error) {
        result("vcpus", 0, "ports and areas: error=%ld", error);
        count = 1;
        return;
    }
    for (count = 1; count < wanted && bring_up(count);)
        count++;
    if (count < wanted) {
        count = 1; /* nothing more is asked of them */
        return;
    }
    result("vcpus-up", 1, "vcpus=%u", count);
    if (!platform_started_by_ipi())
        expect("vcpus-initialise-twice", platform_start_vcpu(1), -XEN_EEXIST);
    each("vcpus-events", counts_right);
    each("vcpus-timer", timer_is_right);
    each("vcpus-time", time_is_right);
    each("vcpus-runstate", runstate_is_right);
    each("vcpus-down-and-up", goes_and_comes);
    each("vcpus-registers", registers_are_right);
}

/* At each heartbeat: all of them answer, and have their registers. */
void vcpus_look(void)
{
    static int is_told;

    for (u32 i = 1; i < count && !is_told; i++)
        is_told = !registers_are_right(i);
}

int vcpus_ping(void)
{
    return count > 1 && ask(1, COUNT);
}

/* After a resume. */
void vcpus_resume(int cancelled)
{
    long error = cancelled || count < 2 ? 0 : attach();

    if (error) {
        result("vcpus-resume", 0, "ports and areas: error=%ld", error);
        count = 1;
    }
    vcpus_look();
    for (u32 i = 1; i < count; i++)
        if (!runstate_is_right(i) || !time_is_right(i))
            break;
}
