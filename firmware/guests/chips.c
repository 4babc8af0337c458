/*
 * The chips of a PC that Xen emulates for an HVM guest: interrupt controllers, timers, clock, and the lines that go from
 * devices to them. chips.c has what stands still, timers.c what runs.
 * Source: Intel 8259A; 82093AA (I/O APIC); 82371SB (PIIX3: ELCR, PIRQ routes, USB); xen/arch/x86/hvm/{vpic,vioapic,irq}.c.
 */
#include "devices.h"
#include "timers.h"

/* --- I/O APIC */
#define IOAPIC 0xfec00000ul
#define IO_PINS 48
#define IO_ID 0
#define IO_ENTRY 0x10
#define IO_LEVEL 0x8000
#define IO_REMOTE_IRR 0x4000
#define IO_MASKED 0x10000
#define DISK_IRQ 14
#define LINK_IRQ 10
#define USB_PIN 23
#define IO_SELECTED 0x37 /* half of an entry: what the register of the index holds over the save */

static u64 entries[IO_PINS];

static u32 io_read(u32 index)
{
    *(volatile u32 *)IOAPIC = index;
    return *(volatile u32 *)(IOAPIC + 0x10);
}

static void io_write(u32 index, u32 value)
{
    *(volatile u32 *)IOAPIC = index;
    *(volatile u32 *)(IOAPIC + 0x10) = value;
}

static u64 entry(unsigned pin)
{
    return io_read(IO_ENTRY + 2 * pin) | (u64)io_read(IO_ENTRY + 2 * pin + 1) << 32;
}

void pin_route(unsigned pin, u32 low)
{
    io_write(IO_ENTRY + 2 * pin, IO_MASKED);
    io_write(IO_ENTRY + 2 * pin + 1, 0); /* to the local APIC of vCPU 0 */
    io_write(IO_ENTRY + 2 * pin, low);
    entries[pin] = low;
}

void pin_mask(unsigned pin)
{
    io_write(IO_ENTRY + 2 * pin, io_read(IO_ENTRY + 2 * pin) | IO_MASKED);
}

static void io_program(void)
{
    for (unsigned pin = 0; pin < IO_PINS; pin++) { /* masked, and else anything that an entry may hold */
        u64 low = IO_MASKED | (0x20 + pin * 3) | (pin % 2) << 8 | (pin / 2 % 2) << 11 | (pin / 3 % 2) << 13 | (pin / 5 % 2) << 15;

        entries[pin] = low | (u64)(0xff - pin * 5) << 56;
        io_write(IO_ENTRY + 2 * pin + 1, entries[pin] >> 32);
        io_write(IO_ENTRY + 2 * pin, low);
    }
    io_write(IO_ID, 0x05000000);
    pin_route(2, V_PIT);
    pin_route(8, V_RTC);
    pin_route(LINK_IRQ, V_LINK | IO_LEVEL);
    pin_route(DISK_IRQ, V_DISK | IO_LEVEL);
    pin_route(20, V_HPET0);
    pin_route(21, V_HPET1 | IO_LEVEL | IO_MASKED);
    pin_route(22, V_HPET2);
    pin_route(USB_PIN, V_USB | IO_LEVEL);
}

static void io_compare(void)
{
    for (unsigned pin = 0; pin < IO_PINS; pin++)
        same_as("entry", entry(pin), entries[pin]);
    same_as("id", io_read(IO_ID), 0x05000000);
}

/* --- the lines: the disk controller's ISA interrupt, the USB controller's PCI interrupt and the ISA one it is routed to */
#define DISK 0x1f0
#define USB 0xc040
#define USB_DEVICE (1 << 11 | 2 << 8) /* 00:01.2; its pin is INTD */
#define BRIDGE_DEVICE (1 << 11)
#define ROUTE_A 0x60 /* where PCI slots go whose number and pin add up to a multiple of 4 */
#define ROUTES 0x070b050a /* A: 10, B: 5, C: 11, D: 7 */

static u32 config_read(u32 device, u32 at)
{
    out32(0xcf8, 0x80000000 | device | at);
    return in32(0xcfc);
}

static void config_write(u32 device, u32 at, u32 value)
{
    out32(0xcf8, 0x80000000 | device | at);
    out32(0xcfc, value);
}

static void lines_program(void)
{
    config_write(BRIDGE_DEVICE, ROUTE_A, ROUTES);
    config_write(USB_DEVICE, 0x20, USB | 1);
    config_write(USB_DEVICE, 4, 1);
    same_as("usb", config_read(USB_DEVICE, 0), 0x70208086);
}

static void lines_assert(void)
{
    out8(DISK + 6, 0xa0);
    out8(0x3f6, 0);
    out8(DISK + 7, 0xff); /* there is no such command, and no disk: it ends at once, with an interrupt */
    out16(USB + 4, 2);    /* interrupt on resume */
    out16(USB + 0x10, 0x40); /* port 1 has seen one */
    out16(USB, 8); /* suspended: a resume that a port has seen is told */
}

static void lines_compare(void)
{
    same_as("routes", config_read(BRIDGE_DEVICE, ROUTE_A), ROUTES); /* the device model's own copy */
}

/* A line that stays asserted interrupts again when it was acknowledged, until its device is told. */
void chips_taken(u32 vector)
{
    if (vector == V_DISK && counts[vector] == 2)
        in8(DISK + 7);
    if (vector == V_USB && counts[vector] == 2)
        out16(USB + 2, 4);
    if (vector == V_LINK && counts[vector] == 2)
        pin_mask(LINK_IRQ);
    if (vector == V_HPET1)
        hpet_level_taken(counts[vector]);
    if (vector >= PIC_BASE && vector < PIC_BASE + 16) {
        out8(0x21, 0xff);
        out8(0xa1, 0xff);
    }
    if (counts[vector] > 20 && (vector == V_DISK || vector == V_USB || vector == V_LINK || vector == V_HPET1))
        for (unsigned pin = LINK_IRQ; pin < IO_PINS; pin++) /* a line that never goes: the count says so */
            pin_mask(pin);
}

/* Interrupts were on: the asserted lines came, and again after they were acknowledged, and no more when they went. */
void chips_lines(void)
{
    same_as("disk", counts[V_DISK], 2);
    same_as("usb", counts[V_USB], 2);
    same_as("link", counts[V_LINK], 2);
    pin_route(LINK_IRQ, V_LINK | IO_LEVEL);
    interrupts_on(20 * MILLI);
    same_as("link-again", counts[V_LINK], 2);
    same_as("disk-remote-irr", entry(DISK_IRQ) & IO_REMOTE_IRR, 0);
    same_as("usb-remote-irr", entry(USB_PIN) & IO_REMOTE_IRR, 0);
    report("lines");
}

/* --- the two 8259 */
#define MASTER 0x20
#define SLAVE 0xa0
#define MASTER_MASK 0xfa /* of IRQ 0 to 7 all but the PIT's and the slave */
#define SLAVE_MASK 0xbf  /* all but the disk's */
#define MASTER_LEVEL 0xa8
#define SLAVE_LEVEL 0x56
#define BY_TIMERS 1 /* IRQ 0 and IRQ 8 come when they come */

static u8 slave_requests;

static void pic_program(void)
{
    static const u8 words[2][4] = {{0x11, PIC_BASE, 4, 1}, {0x11, PIC_BASE + 8, 2, 1}};

    for (unsigned i = 0; i < 4; i++) {
        out8(i ? MASTER + 1 : MASTER, words[0][i]);
        out8(i ? SLAVE + 1 : SLAVE, words[1][i]);
    }
    out8(MASTER + 1, 0xff);
    out8(SLAVE + 1, 0xff);
    out8(0x4d0, MASTER_LEVEL);
    out8(0x4d1, SLAVE_LEVEL);
}

/* The lines are asserted. The disk's interrupt is taken by a poll, and is in service from now on. */
static void pic_arm(void)
{
    out8(MASTER + 1, 0xfb);
    out8(SLAVE + 1, SLAVE_MASK);
    out8(MASTER, 0x0c);
    same_as("poll", in8(MASTER), DISK_IRQ);
    out8(MASTER + 1, MASTER_MASK);
    out8(MASTER, 0xc0); /* IRQ 0 has the lowest priority */
    out8(SLAVE, 0x0a);  /* reads are of the request register from now on */
    slave_requests = in8(SLAVE) & ~BY_TIMERS;
    same_as("slave-requests", slave_requests, 1 << (DISK_IRQ - 8) | 1 << (LINK_IRQ - 8));
    out8(MASTER, 0x0b); /* and here of the service register */
    same_as("master-service", in8(MASTER), 4);
}

static void pic_compare(void)
{
    same_as("master-mask", in8(MASTER + 1), MASTER_MASK);
    same_as("slave-mask", in8(SLAVE + 1), SLAVE_MASK);
    same_as("master-level", in8(0x4d0), MASTER_LEVEL);
    same_as("slave-level", in8(0x4d1), SLAVE_LEVEL);
}

static void pic_look(void)
{
    same_as("master-service", in8(MASTER), 4);
    same_as("slave-requests", in8(SLAVE) & ~BY_TIMERS, slave_requests);
    pic_compare();
    out8(SLAVE, 0x0b);
    same_as("slave-service", in8(SLAVE), 1 << (DISK_IRQ - 8));
    report("pic");
}

/* What was in service is finished: priorities are as they were set, and an interrupt has the vector that was set. */
static void pic_finish(void)
{
    out8(SLAVE, 0x66); /* end of interrupt 14, of 2 */
    out8(MASTER, 0x62);
    pin_mask(LINK_IRQ);
    pin_mask(DISK_IRQ);
    pin_mask(USB_PIN);
    lines_assert();
    out8(MASTER, 0x0a);
    for (u64 since = ticks(); !(in8(MASTER) & 1) && passed(since) < SECOND;)
        interrupts_on(MILLI); /* until the PIT's is requested, too */
    out8(MASTER, 0x0c);
    same_as("first", in8(MASTER), DISK_IRQ);
    out8(SLAVE, 0x66);
    out8(MASTER, 0x62);
    out8(MASTER + 1, 0xfb);
    lapic_write(0x350, 0x700); /* LINT0: from the 8259 */
    interrupts_on(20 * MILLI);
    lapic_write(0x350, 0x10700);
    for (unsigned i = 0; i < 16; i++)
        same_as("vector", counts[PIC_BASE + i], i == DISK_IRQ);
    report("pic-interrupt");
}

/* --- all */
void chips_program(void)
{
    io_program();
    io_compare();
    report("ioapic-set");
    pic_program();
    lines_program();
    report("lines-set");
    timers_program();
}

void chips_arm(void)
{
    timers_arm();
    lines_assert();
    pic_arm();
    entries[LINK_IRQ] |= IO_REMOTE_IRR;
    entries[DISK_IRQ] |= IO_REMOTE_IRR;
    entries[USB_PIN] |= IO_REMOTE_IRR;
    io_compare();
    pic_compare();
    *(volatile u32 *)IOAPIC = IO_SELECTED;
    out8(0x70, 0x0b); /* of the clock */
}

void chips_look(void)
{
    timers_look();
    same_as("selected", *(volatile u32 *)IOAPIC, IO_SELECTED);
    io_compare();
    report("ioapic");
    pic_look();
    lines_compare();
    report("routes");
}

int chips_timers_done(void)
{
    return timers_done();
}

void chips_finish(void)
{
    timers_finish();
    pic_finish();
}
