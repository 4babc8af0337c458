/*
 * The timers and the clock of a PC that Xen emulates for an HVM guest. They stand still from the save to the restore, as
 * the time stamp counter does, by which they are measured; the clock alone tells the time of day.
 * Source: IA-PC HPET 1.0a; Intel 8254; Motorola MC146818A; ACPI 6.4, 4.8.3; xen/arch/x86/hvm/{hpet,rtc,pmtimer}.c,
 * xen/arch/x86/emul-i8254.c.
 */
#include "timers.h"

/* --- HPET: counts 16 ns */
#define HPET 0xfed00000ul
#define HPET_NS 16
#define CONFIG 0x10
#define STATUS 0x20
#define COUNTER 0xf0
#define T_CONFIG(n) (0x100 + 0x20 * (n))
#define T_COMPARE(n) (0x108 + 0x20 * (n))
#define T_ROUTE(n) (0x110 + 0x20 * (n))
#define LEVEL 2
#define ENABLE 4
#define PERIODIC 8
#define PIN(n) ((n) << 9)
#define HPET_BEGIN 0x70000000ull /* 30 s */
#define HPET0_NS (6 * SECOND)
#define HPET2_NS (700 * MILLI)

static u64 hpet_armed, hpet_compare[3], hpet_first2, hpet_looked, armed_ticks, looked_ticks, tick_before;
static u32 hpet_early, is_fired;

static u64 hpet_read(u32 at)
{
    volatile u32 *halves = (volatile u32 *)(HPET + at);
    u32 high, low;

    do
        high = halves[1], low = halves[0];
    while (halves[1] != high);
    return (u64)high << 32 | low;
}

static void hpet_write(u32 at, u64 value)
{
    volatile u32 *halves = (volatile u32 *)(HPET + at);

    halves[0] = (u32)value;
    halves[1] = value >> 32;
}

static u64 hpet_config(unsigned n)
{
    return hpet_read(T_CONFIG(n)) & 0xffff;
}

/* Timer 1 has asserted its line, and pin 21 is masked. */
static void hpet_program(void)
{
    *(volatile u32 *)(HPET + CONFIG) = 0;
    hpet_write(COUNTER, HPET_BEGIN);
    for (unsigned n = 0; n < 3; n++)
        hpet_write(T_ROUTE(n), 0xfee0100000004100ull + 0x1000001 * n);
    *(volatile u32 *)(HPET + T_CONFIG(1)) = PIN(21) | LEVEL | ENABLE;
    hpet_write(T_COMPARE(1), HPET_BEGIN + 2 * MILLI / HPET_NS);
    *(volatile u32 *)(HPET + CONFIG) = 1;
    for (u64 since = ticks(); !(hpet_read(STATUS) & 2) && passed(since) < SECOND;)
        interrupts_on(MILLI);
    same_as("status", hpet_read(STATUS), 2);
    report("hpet-set");
}

/* With the counter halted, and below 4 Gi, so that halves may be written one after the other. */
static void hpet_arm(void)
{
    is_fired = option("fired", 0);
    *(volatile u32 *)(HPET + CONFIG) = 0;
    hpet_write(COUNTER, HPET_BEGIN);
    *(volatile u32 *)(HPET + T_CONFIG(0)) = PIN(20) | ENABLE;
    hpet_write(T_COMPARE(0), HPET_BEGIN + (is_fired ? 2 * MILLI : HPET0_NS) / HPET_NS);
    *(volatile u32 *)(HPET + T_CONFIG(2)) = PIN(22);
    hpet_write(T_COMPARE(2), HPET_BEGIN + HPET2_NS / HPET_NS);
    *(volatile u32 *)(HPET + T_CONFIG(2)) = PIN(22) | PERIODIC;
    *(volatile u32 *)(HPET + T_COMPARE(2)) = HPET2_NS / HPET_NS; /* the period */
    *(volatile u32 *)(HPET + T_CONFIG(2)) = PIN(22) | PERIODIC | ENABLE;
    *(volatile u32 *)(HPET + CONFIG) = 1;
    for (u64 since = ticks(); is_fired && !counts[V_HPET0] && passed(since) < SECOND;)
        interrupts_on(MILLI);
    same_as("hpet-fired", counts[V_HPET0], is_fired);
    counts[V_HPET0] = 0;
    for (unsigned n = 0; n < 3; n++)
        hpet_compare[n] = hpet_read(T_COMPARE(n));
    hpet_first2 = hpet_compare[2];
    hpet_armed = hpet_read(COUNTER);
    armed_ticks = ticks();
}

static void hpet_look(void)
{
    u64 counted, gone, phase, next;

    hpet_looked = hpet_read(COUNTER);
    looked_ticks = ticks();
    gone = passed(armed_ticks);
    counted = (hpet_looked - hpet_armed) * HPET_NS;
    within("counter", counted, gone > slack ? gone - slack : 0, gone + slack);
    same_as("config", hpet_read(CONFIG), 1);
    same_as("status", hpet_read(STATUS), 2);
    same_as("config0", hpet_config(0) & 0x3f0e, PIN(20) | ENABLE);
    same_as("config1", hpet_config(1) & 0x3f0e, PIN(21) | LEVEL | ENABLE);
    same_as("config2", hpet_config(2) & 0x3f0e, PIN(22) | PERIODIC | ENABLE);
    same_as("compare0", hpet_read(T_COMPARE(0)), hpet_compare[0]);
    same_as("compare1", hpet_read(T_COMPARE(1)), hpet_compare[1]);
    next = hpet_read(T_COMPARE(2));
    phase = next - hpet_compare[2];
    same_as("phase2", phase < 1ull << 40 ? divide(&phase, HPET2_NS / HPET_NS) : ~0ull, 0);
    within("compare2", next, hpet_looked, hpet_looked + 2 * HPET2_NS / HPET_NS);
    hpet_compare[2] = next;
    for (unsigned n = 0; n < 3; n++)
        same_as("route", hpet_read(T_ROUTE(n)), 0xfee0100000004100ull + 0x1000001 * n);
    report("hpet");
}

static int hpet_done(void)
{
    u64 now = hpet_read(COUNTER);

    hpet_early += !is_fired && counts[V_HPET0] && (long long)(now - hpet_compare[0]) < 0;
    return passed(looked_ticks) > 3 * SECOND && (now - hpet_compare[0]) * HPET_NS < 1ull << 50 &&
           (now - hpet_compare[0]) * HPET_NS > SLACK;
}

/* The line of timer 1 interrupts until its status bit is cleared. */
void hpet_level_taken(u32 count)
{
    if (count == 2)
        *(volatile u32 *)(HPET + STATUS) = 2;
}

static void hpet_finish(void)
{
    u64 now = hpet_read(COUNTER), least = (now - hpet_compare[2]) * HPET_NS, most = (now - hpet_first2) * HPET_NS;

    divide(&least, HPET2_NS);
    divide(&most, HPET2_NS); /* those that a stopped vCPU missed may come later */
    within("ticks", counts[V_HPET2], least > 2 ? least - 2 : 1, most + 3);
    *(volatile u32 *)(HPET + T_CONFIG(2)) = 0;
    report("hpet-periodic");
    same_as("fired", counts[V_HPET0], !is_fired);
    same_as("early", hpet_early, 0);
    report("hpet-one-shot");
    pin_route(21, V_HPET1 | 0x8000);
    interrupts_on(20 * MILLI);
    same_as("twice", counts[V_HPET1], 2);
    *(volatile u32 *)(HPET + STATUS) = 2;
    counts[V_HPET1] = 0;
    pin_mask(21);
    pin_route(21, V_HPET1 | 0x8000);
    interrupts_on(20 * MILLI);
    same_as("cleared", counts[V_HPET1], 0);
    pin_mask(21);
    report("hpet-level");
}

/* --- PIT */
#define PIT 0x40
#define PIT0_COUNT 0xe89b /* 49.9 ms */
#define PIT0_NS (49905 * MILLI / 1000)
#define PIT1_COUNT 0x0800
#define PIT2_HALF 0x34
#define PIT2_COUNT 0x1234

/* The highest count that is read in a little more than 2^16 ticks. */
static u32 pit_sample(unsigned channel)
{
    u32 most = 0, value;

    for (u64 since = ticks(); passed(since) < 60 * MILLI;) {
        out8(PIT + 3, channel << 6);
        value = in8(PIT + channel);
        value |= in8(PIT + channel) << 8;
        most = value > most ? value : most;
    }
    return most;
}

static void pit_load(unsigned channel, u8 mode, u32 count)
{
    out8(PIT + 3, channel << 6 | 0x30 | mode);
    out8(PIT + channel, count);
    out8(PIT + channel, count >> 8);
}

static u32 pit_status(unsigned channel)
{
    out8(PIT + 3, 0xe0 | 2 << channel);
    return in8(PIT + channel) & 0x3f;
}

static void pit_program(void)
{
    pit_load(1, 4, 0xf000); /* mode 2 */
    pit_load(2, 7, 0xf800); /* mode 3, BCD, which Xen keeps and does not obey */
    out8(0x61, 3);
    same_as("speaker", in8(0x61) & 3, 3);
    report("pit-set");
}

/* Channel 1 has a count latched from before it was loaded anew, channel 2 has half of the next count. */
static void pit_arm(void)
{
    pit_load(0, 4, PIT0_COUNT);
    pit_load(1, 4, 0xf000);
    out8(PIT + 3, 1 << 6);
    out8(PIT + 1, PIT1_COUNT & 0xff);
    out8(PIT + 1, PIT1_COUNT >> 8);
    out8(PIT + 2, PIT2_HALF);
}

static void pit_look(void)
{
    u32 latched = in8(PIT + 1);

    latched |= in8(PIT + 1) << 8;
    within("latched1", latched, PIT1_COUNT + 1, 0xf000);
    within("count0", pit_sample(0), PIT0_COUNT / 2, PIT0_COUNT);
    within("count1", pit_sample(1), PIT1_COUNT / 2, PIT1_COUNT);
    within("count2", pit_sample(2), PIT2_COUNT + 1, 0xf800);
    out8(PIT + 2, PIT2_COUNT >> 8);
    within("half2", pit_sample(2), PIT2_COUNT / 2, PIT2_COUNT);
    same_as("status0", pit_status(0), 0x34);
    same_as("status1", pit_status(1), 0x34);
    same_as("status2", pit_status(2), 0x37);
    same_as("speaker", in8(0x61) & 3, 3);
    report("pit");
}

static void pit_finish(void)
{
    u64 least = passed(looked_ticks), most = passed(armed_ticks);

    divide(&least, PIT0_NS);
    divide(&most, PIT0_NS);
    within("ticks", counts[V_PIT], least / 2, most + most / 4 + 5);
    report("pit-interrupt");
}

/* --- clock */
#define CLOCK_A 0x2f /* 32 kHz, a period of half a second */
#define CLOCK_B 0x26 /* alarm interrupt on, binary, 24 hours */
#define ANY_MINUTE 0xc5 /* both: a value that means any */
#define ANY_HOUR 0xd9

static u32 alarm_second, clock_year, is_late, is_past;
static u64 alarm_ticks, alarm_wait;

static u8 clock_read(u8 index)
{
    out8(0x70, index);
    return in8(0x71);
}

static void clock_write(u8 index, u8 value)
{
    out8(0x70, index);
    out8(0x71, value);
}

static void clock_program(void)
{
    clock_write(0xb, CLOCK_B & ~0x20);
    clock_write(0xb, (CLOCK_B & ~0x20) | 0x80); /* it is set: binary by now */
    clock_year = (clock_read(9) + 1) % 100; /* the guest's own idea of the time goes with it */
    clock_write(9, clock_year);
    clock_write(0xb, CLOCK_B & ~0x20);
    clock_write(0xa, CLOCK_A);
    same_as("a", clock_read(0xa) & 0x7f, CLOCK_A);
    same_as("b", clock_read(0xb), CLOCK_B & ~0x20);
    same_as("year", clock_read(9), clock_year);
    report("clock-set");
}

static void clock_arm(void)
{
    alarm_second = (clock_read(0) + option("alarm_s", 20)) % 60;
    clock_write(1, alarm_second);
    clock_write(3, ANY_MINUTE);
    clock_write(5, ANY_HOUR);
    clock_write(0xb, CLOCK_B);
    clock_read(0xc);
}

static void clock_look(void)
{
    u64 wall;

    same_as("selected", in8(0x71), CLOCK_B);
    same_as("a", clock_read(0xa) & 0x7f, CLOCK_A);
    same_as("b", clock_read(0xb), CLOCK_B);
    same_as("d", clock_read(0xd), 0x80);
    same_as("alarm-second", clock_read(1), alarm_second);
    same_as("alarm-minute", clock_read(3), ANY_MINUTE);
    same_as("alarm-hour", clock_read(5), ANY_HOUR);
    same_as("year", clock_read(9), clock_year);
    wall = wall_time();
    divide(&wall, SECOND);
    within("second", (clock_read(0) + 60 - divide(&wall, 60) + 2) % 60, 0, 4);
    is_past = lapic_read(0x200 + 16 * (V_RTC / 32)) >> V_RTC % 32 & 1;
    alarm_wait = (alarm_second + 60 - clock_read(0)) % 60 * SECOND;
    alarm_ticks = ticks();
    report("clock");
}

static int clock_done(void)
{
    if (counts[V_RTC] && !is_late) {
        u32 behind = (clock_read(0) + 60 - alarm_second) % 60;

        is_late = 1 + behind; /* told once, when it is first seen */
    }
    return is_past || passed(alarm_ticks) > alarm_wait + 3 * SECOND;
}

static void clock_finish(void)
{
    u8 flags = clock_read(0xc);

    if (is_past) {
        print("XL clock-alarm INFO unproved: the alarm was before the save\n");
        return;
    }
    same_as("fired", counts[V_RTC], 1);
    within("second", is_late, 1, 4);
    same_as("flags", flags & 0xf0, 0xf0); /* interrupt; periodic, alarm, update */
    for (u64 since = ticks(); passed(since) < 2 * SECOND;)
        interrupts_on(MILLI);
    same_as("later", clock_read(0xc) & 0x70, 0x50);
    report("clock-alarm");
}

/* --- ACPI's timer: 3.579545 MHz */
#define PM 0xb000
#define PM_ENABLED 0x0120 /* power button, global lock */

static u32 pm_armed;

static void pm_program(void)
{
    struct xen_hvm_param ports = {DOMID_SELF, HVM_PARAM_ACPI_IOPORTS_LOCATION, 1};

    same_as("ports", call2(hvm_op, HVMOP_set_param, &ports), 0);
    out16(PM + 2, PM_ENABLED);
    same_as("enabled", in16(PM + 2), PM_ENABLED);
    report("pm-set");
}

static void pm_look(void)
{
    u64 counted = (u32)(in32(PM + 8) - pm_armed), gone = passed(tick_before);

    counted *= 279365;
    divide(&counted, 1000);
    within("timer", counted, gone > slack ? gone - slack : 0, gone + slack);
    same_as("enabled", in16(PM + 2), PM_ENABLED);
    report("pm");
}

/* --- all */
void timers_program(void)
{
    hpet_program();
    pit_program();
    clock_program();
    pm_program();
}

void timers_arm(void)
{
    hpet_arm();
    pit_arm();
    clock_arm();
    pm_armed = in32(PM + 8);
    tick_before = ticks();
}

void timers_look(void)
{
    clock_look();
    pm_look();
    hpet_look();
    pit_look();
}

int timers_done(void)
{
    int clock = clock_done(), hpet = hpet_done();

    return clock && hpet;
}

void timers_finish(void)
{
    pit_finish();
    hpet_finish();
    clock_finish();
}
