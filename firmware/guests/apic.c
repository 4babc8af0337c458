/*
 * The local APIC: a pattern in its registers, interrupts in service and waiting, its timer. Interrupts are on within
 * interrupts_on() alone; what they count is what Xen gave to this vCPU.
 * Source: Intel SDM 3A, chapter 11; xen/arch/x86/hvm/vlapic.c.
 */
#include "devices.h"

#define XAPIC 0xfee00000ul
#define MSR_APIC_BASE 0x1b
#define MSR_X2APIC 0x800
#define MSR_DEADLINE 0x6e0
#define BASE_X2APIC 0x400
#define ID 0x20
#define TPR 0x80
#define EOI 0xb0
#define LDR 0xd0
#define DFR 0xe0
#define SVR 0xf0
#define ISR 0x100
#define TMR 0x180
#define IRR 0x200
#define ESR 0x280
#define ICR 0x300
#define ICR2 0x310
#define LVT_TIMER 0x320
#define LVT_LINT0 0x350
#define INITIAL 0x380
#define CURRENT 0x390
#define DIVIDE 0x3e0
#define MASKED 0x10000
#define TO_SELF 0x40000
#define CYCLE 40 /* ns of a count: Xen's bus has 100 MHz, and the divisor is 4 */
#define SENT_ILLEGAL 0x20
#define EXTERNAL 0x700

enum timer { NO_TIMER, ONE_SHOT, FIRED, PERIODIC, DEADLINE };
#define ONE_SHOT_NS (8 * SECOND)
#define FIRED_NS (4 * MILLI)
#define PERIOD_NS (300 * MILLI)
#define DEADLINE_NS (6 * SECOND)

u32 counts[256];
static int is_x2;
static enum timer timer;
static u64 armed_at, looked_at, deadline, base_msr;
static u32 too_early;

extern char interrupt_entries[]; /* start-pvh.S: 16 bytes for each vector from 32 on */
void platform_gate(unsigned vector, ulong entry);
void interrupt(u32 vector);

static const struct {
    const char *name;
    u32 offset, value;
    int is_old; /* not in x2APIC mode, or not to be written there */
} pattern[] = {
    {"svr", SVR, 0x3ff, 0},
    {"tpr", TPR, 0x35, 0},
    {"dfr", DFR, 0x0fffffff, 1},
    {"ldr", LDR, 0x21000000, 1},
    {"divide", DIVIDE, 1, 0},
    {"thermal", 0x330, MASKED | 0x281, 0},
    {"performance", 0x340, MASKED | 0x482, 0},
    {"lint0", LVT_LINT0, MASKED | EXTERNAL | 0x83, 0},
    {"lint1", 0x360, MASKED | 0xa484, 0},
    {"error", 0x370, MASKED | 0x86, 0},
};
#define PATTERN (sizeof(pattern) / sizeof(pattern[0]))
static const struct {
    const char *name;
    u32 offset;
    int is_old;
} kept[] = {{"id", ID, 0}, {"version", 0x30, 0}, {"ldr", LDR, 0}, {"esr", ESR, 0}, {"icr", ICR, 0}, {"icr2", ICR2, 1}, {"lvtt", LVT_TIMER, 0}, {"initial", INITIAL, 0}};
#define KEPT (sizeof(kept) / sizeof(kept[0]))
static u32 kept_values[KEPT], bits[3][8];

u32 lapic_read(u32 offset)
{
    return is_x2 ? (u32)get_msr(MSR_X2APIC + offset / 16) : *(volatile u32 *)(XAPIC + offset);
}

void lapic_write(u32 offset, u32 value)
{
    if (is_x2)
        set_msr(MSR_X2APIC + offset / 16, value);
    else
        *(volatile u32 *)(XAPIC + offset) = value;
}

static void send(u32 destination, u32 command)
{
    if (is_x2)
        set_msr(MSR_X2APIC + ICR / 16, (u64)destination << 32 | command);
    else {
        lapic_write(ICR2, destination << 24);
        lapic_write(ICR, command);
    }
}

void interrupt(u32 vector)
{
    counts[vector]++;
    if (vector == V_CALLBACK) { /* an event, which is looked for elsewhere: no local APIC had it */
        shared->vcpu_info[0].evtchn_upcall_pending = 0;
        return;
    }
#ifdef HVM
    chips_taken(vector);
#endif
    if (vector != V_HELD && vector != V_SPURIOUS && (vector < PIC_BASE || vector >= PIC_BASE + 16))
        lapic_write(EOI, 0);
}

void interrupts_on(u64 nanoseconds)
{
    u64 since = ticks();

    do
        __asm__ volatile("sti; nop; pause; cli" : : : "memory");
    while (passed(since) < nanoseconds);
}

void lapic_start(void)
{
    for (unsigned i = 32; i < 256; i++)
        platform_gate(i, (ulong)interrupt_entries + (i - 32) * 16);
    is_x2 = option("x2apic", 0);
    if (is_x2)
        set_msr(MSR_APIC_BASE, get_msr(MSR_APIC_BASE) | BASE_X2APIC);
}

static void look_at_pattern(void)
{
    for (unsigned i = 0; i < PATTERN; i++)
        if (!(is_x2 && pattern[i].is_old))
            same_as(pattern[i].name, lapic_read(pattern[i].offset), pattern[i].value);
}

void lapic_program(void)
{
    for (unsigned i = 0; i < PATTERN; i++)
        if (!(is_x2 && pattern[i].is_old))
            lapic_write(pattern[i].offset, pattern[i].value);
    send(0, TO_SELF | 5); /* vectors below 16 are illegal: the error register says so, from the write to it on */
    lapic_write(ESR, 0);
    send(0, TO_SELF | V_HELD);
    interrupts_on(20 * MILLI);
    look_at_pattern();
    same_as("in-service", counts[V_HELD], 1);
    same_as("esr", lapic_read(ESR), SENT_ILLEGAL);
    same_as("x2apic", get_msr(MSR_APIC_BASE) >> 10 & 1, is_x2);
}

static void arm_timer(void)
{
    u32 ecx[4];

    timer = option("lapic", NO_TIMER);
    cpuid(1, ecx);
    if (timer == DEADLINE && !(ecx[2] >> 24 & 1)) {
        print("XL lapic-deadline INFO not offered: one-shot\n");
        timer = ONE_SHOT;
    }
    lapic_write(LVT_TIMER, V_TIMER | (timer == PERIODIC ? 1 << 17 : timer == DEADLINE ? 2 << 17 : 0));
    armed_at = ticks();
    if (timer == ONE_SHOT)
        lapic_write(INITIAL, ONE_SHOT_NS / CYCLE);
    if (timer == FIRED) {
        lapic_write(INITIAL, FIRED_NS / CYCLE);
        while (!counts[V_TIMER] && passed(armed_at) < SECOND)
            interrupts_on(MILLI);
        same_as("timer-fired", counts[V_TIMER], 1);
        counts[V_TIMER] = 0;
    }
    if (timer == PERIODIC)
        lapic_write(INITIAL, PERIOD_NS / CYCLE);
    if (timer == DEADLINE) {
        u64 a_second = 0, began = ticks();

        while (passed(began) < 50 * MILLI)
            ;
        a_second = (ticks() - began) * 20;
        deadline = ticks() + 6 * a_second;
        set_msr(MSR_DEADLINE, deadline);
    }
}

/* Right before the guest stops. */
void lapic_arm(void)
{
    counts[V_HELD] = 0;
    arm_timer();
    send(0, TO_SELF | V_LOW);
    send(0, TO_SELF | V_BEHIND);
    for (unsigned i = 0; i < WAITING; i++)
        send(0, TO_SELF | (V_WAITING + i * WAITING_STEP));
    send(0x5a, 0x47); /* nobody has this ID: the command register keeps a pattern */
    base_msr = get_msr(MSR_APIC_BASE);
    for (unsigned i = 0; i < KEPT; i++)
        kept_values[i] = is_x2 && kept[i].is_old ? 0 : lapic_read(kept[i].offset);
    for (unsigned i = 0; i < 8; i++) {
        bits[0][i] = lapic_read(ISR + 16 * i);
        bits[1][i] = lapic_read(TMR + 16 * i);
        bits[2][i] = lapic_read(IRR + 16 * i);
    }
    same_as("isr", bits[0][V_HELD / 32], 1u << V_HELD % 32);
    same_as("irr", bits[2][V_BEHIND / 32] >> V_BEHIND % 32 & 1, 1);
    same_as("irr", bits[2][V_WAITING / 32] >> V_WAITING % 32 & 1, 1);
}

/* Those of timers come when they come. */
static u32 unforeseen(unsigned word)
{
    return word == V_TIMER / 32 ? 0x3fu << V_TIMER % 32 : 0;
}

static void look_at_count(void)
{
    u64 gone = passed(armed_at), left_over = timer == ONE_SHOT && gone < ONE_SHOT_NS ? ONE_SHOT_NS - gone : 0;
    u64 count = (u64)lapic_read(CURRENT) * CYCLE;

    looked_at = ticks();
    if (timer == ONE_SHOT)
        within("current", count, left_over > slack ? left_over - slack : 0, left_over + SLACK / 5);
    if (timer == FIRED)
        same_as("current", count, 0);
    if (timer == PERIODIC)
        within("current", count, 1, PERIOD_NS);
    if (timer == DEADLINE && ticks() < deadline)
        same_as("deadline", get_msr(MSR_DEADLINE), deadline);
    report("lapic-count");
}

void lapic_look(void)
{
    static const char *const names[] = {"isr", "tmr", "irr"};

    look_at_count();
    same_as("base", get_msr(MSR_APIC_BASE), base_msr);
    look_at_pattern();
    for (unsigned i = 0; i < KEPT; i++)
        if (!(is_x2 && kept[i].is_old))
            same_as(kept[i].name, lapic_read(kept[i].offset), kept_values[i]);
    for (unsigned i = 0; i < 8; i++)
        for (unsigned what = 0; what < 3; what++)
            same_as(names[what], lapic_read((what == 0 ? ISR : what == 1 ? TMR : IRR) + 16 * i) & ~unforeseen(i),
                    bits[what][i] & ~unforeseen(i));
    report("lapic");
}

/* After interrupts were on for the first time: each that waited has come once, and none that must wait on. */
void lapic_pending(void)
{
    for (unsigned i = 0; i < WAITING; i++)
        same_as("waiting", counts[V_WAITING + i * WAITING_STEP], 1);
    same_as("low", counts[V_LOW], 0);
    same_as("behind", counts[V_BEHIND], 0);
    same_as("held", counts[V_HELD], 0);
    same_as("spurious", counts[V_SPURIOUS], 0);
    report("pending");
}

/*
 * Whether all is seen of the timer. It may begin anew at a restore (lapic-count says so): then it comes as much later.
 */
int lapic_timer_done(void)
{
    u64 gone = passed(armed_at), since_look = passed(looked_at);

    switch (timer) {
    case ONE_SHOT:
        too_early += counts[V_TIMER] && gone < ONE_SHOT_NS;
        return since_look > ONE_SHOT_NS + SLACK || (counts[V_TIMER] && since_look > SECOND && gone > ONE_SHOT_NS + SECOND);
    case DEADLINE:
        too_early += counts[V_TIMER] && ticks() < deadline;
        return gone > DEADLINE_NS + SLACK && since_look > SECOND;
    default:
        return since_look > SECOND;
    }
}

/* The last of all: what was in service is finished, and what waited for it comes. */
void lapic_finish(void)
{
    u64 least = passed(looked_at), most = passed(armed_at); /* those that a stopped vCPU missed may come later */

    divide(&least, PERIOD_NS);
    divide(&most, PERIOD_NS);
    if (timer == PERIODIC)
        within("ticks", counts[V_TIMER], least > 4 ? least - 4 : 1, most + 4);
    else
        same_as("fired", counts[V_TIMER], timer == ONE_SHOT || timer == DEADLINE);
    same_as("early", too_early, 0);
    if (timer == DEADLINE)
        same_as("deadline", get_msr(MSR_DEADLINE), 0);
    report("lapic-timer");

    lapic_write(LVT_TIMER, MASKED | V_TIMER);
    lapic_write(INITIAL, 0);
    /*
     * Nothing may wait for TPR alone while interrupts are on: QEMU 7.2 seems not to look at V_TPR, so that Xen is told without
     * end that the guest can take the interrupt now (svm_enable_intr_window(), xen/arch/x86/hvm/svm/intr.c).
     */
    lapic_write(TPR, 0);
    interrupts_on(20 * MILLI);
    same_as("behind", counts[V_BEHIND], 0);
    same_as("low", counts[V_LOW], 0);
    lapic_write(EOI, 0);
    interrupts_on(20 * MILLI);
    same_as("behind", counts[V_BEHIND], 1);
    same_as("low", counts[V_LOW], 1);
    for (unsigned i = 0; i < 8; i++)
        same_as("isr", lapic_read(ISR + 16 * i), 0);
    report("held");
}
