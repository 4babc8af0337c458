/* What the parts of the work `devices` know of each other: apic.c, chips.c, devices.c. */
#ifndef DEVICES_H
#define DEVICES_H
#include "payload.h"

#define SECOND 1000000000ull
#define MILLI 1000000ull
#define SLACK (3 * SECOND / 2) /* a board may stand still so long between two looks at clocks */
extern u64 slack;              /* by how much clocks may differ: less when they were neither saved nor restored */

/* Vectors. An interrupt waits while the class of one that is in service, or of TPR, is not below its own. */
enum vector {
    V_LOW = 0x3a,    /* below TPR, and below V_HELD: the last one */
    V_HELD = 0x41,   /* in service over the save */
    V_BEHIND = 0x42, /* of the same class: waits until V_HELD is finished */
    PIC_BASE = 0x50, /* 16 of them */
    V_WAITING = 0x65, /* and 0x85, 0xa5, 0xc5, 0xe5: wait because interrupts are off */
    V_TIMER = 0x71,  /* of the local APIC */
    V_HPET0,
    V_HPET1,
    V_HPET2,
    V_PIT,
    V_RTC,
    V_DISK = 0x91, /* lines that stay asserted until their device is told */
    V_USB = 0xb1,
    V_LINK = 0xd1,
    V_CALLBACK = 0xf3,
    V_SPURIOUS = 0xff
};
#define WAITING 5
#define WAITING_STEP 0x20

/* --- devices.c */
void same_as(const char *what, u64 got, u64 want);
void within(const char *what, u64 got, u64 low, u64 high); /* both ends included */
void report(const char *check); /* one line: all that was compared since the last */
u64 ticks(void);
u64 passed(u64 since_ticks); /* ns */
struct clocks {
    u64 ticks, wall;
};
extern struct clocks left; /* when the guest was about to stop */

/* --- apic.c */
extern u32 counts[256];
u32 lapic_read(u32 offset);
void lapic_write(u32 offset, u32 value);
void interrupts_on(u64 nanoseconds); /* for so long */
void lapic_start(void);
void lapic_program(void);
void lapic_arm(void);
void lapic_look(void);
void lapic_pending(void);
int lapic_timer_done(void);
void lapic_finish(void);

/* --- chips.c: HVM alone */
void chips_program(void);
void chips_arm(void);
void chips_look(void);
void chips_lines(void);
int chips_timers_done(void);
void chips_finish(void);
void chips_taken(u32 vector);

static inline u8 in8(u16 port)
{
    u8 value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u16 in16(u16 port)
{
    u16 value;

    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u32 in32(u16 port)
{
    u32 value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void out8(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out16(u16 port, u16 value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out32(u16 port, u32 value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline u64 get_msr(u32 number)
{
    u32 low, high;

    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
    return (u64)high << 32 | low;
}

static inline void set_msr(u32 number, u64 value)
{
    __asm__ volatile("wrmsr" : : "c"(number), "a"((u32)value), "d"((u32)(value >> 32)));
}

#endif
