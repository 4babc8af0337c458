/* What the parts of a payload know of each other. */
#ifndef PAYLOAD_H
#define PAYLOAD_H
#include "xen.h"

#define PAGE 4096UL
#define MAX_PORT (LONG_BITS * LONG_BITS)
#define WINDOW 64 /* pages that window() shows at once */
#define barrier() __asm__ volatile("" ::: "memory")
#define memory_barrier() __sync_synchronize()
#define NO_PORT 0u
#define NO_DEADLINE 0ull

/* --- calls.S */
long hypercall(u32 number, ulong a, ulong b, ulong c, ulong d, ulong e);
extern char hypercall_page[];
/* 0, or 1 + the vector of the trap that ended `what`; then attempt_error is its error code, attempt_ip where it came. */
int attempt(void (*what)(void));
void attempt_failed(ulong vector) __attribute__((noreturn));
extern void *attempt_stack; /* not NULL: there is an attempt */
extern const ulong trap_entries[20];
extern ulong attempt_error, attempt_ip;
void step_over(void);
extern char stepped[];
#define call1(nr, a) hypercall(__HYPERVISOR_##nr, (ulong)(a), 0, 0, 0, 0)
#define call2(nr, a, b) hypercall(__HYPERVISOR_##nr, (ulong)(a), (ulong)(b), 0, 0, 0)
#define call3(nr, a, b, c) hypercall(__HYPERVISOR_##nr, (ulong)(a), (ulong)(b), (ulong)(c), 0, 0)
#define call4(nr, a, b, c, d) hypercall(__HYPERVISOR_##nr, (ulong)(a), (ulong)(b), (ulong)(c), (ulong)(d), 0)
#ifdef __x86_64__
#define NOWHERE 0x7f0000000000UL /* mapped by nobody */
#else
#define NOWHERE 0xfffff000UL
#endif
#define NO_SUCH_DOMAIN 0x7a11

/* --- pv.c or pvh.c: what differs */
struct range { /* pages first <= pfn < end that nobody uses */
    ulong first, end;
};
extern const char *command_line;
extern struct shared_info *shared;
extern struct xencons_interface *console_ring;
extern struct xenstore_domain_interface *store_ring;
extern u32 console_port, store_port;
extern struct range free_ranges[8];
extern unsigned free_count;
void platform_start(void *information);
void platform_mode(void);
/* Stop for the toolstack; 1 when it was cancelled. Afterwards everything above is right again. */
int platform_suspend(void);
/* Start a vCPU at secondary_entry (start-*.S): 0 or -errno. */
long platform_start_vcpu(u32 vcpu);
int platform_started_by_ipi(void); /* no hypercall starts it */
/* Where `count` <= WINDOW pages from `pfn` can be seen; the next call may take the view away. */
void *window(ulong pfn, unsigned count);
void window_close(void);
/* Give pages to Xen, or get some for them, in one call of at most BATCH: how many were, or -errno. */
#define BATCH 2048
long pages_give(ulong pfn, ulong count);
long pages_take(ulong pfn, ulong count);
long page_give_twice(ulong pfn); /* one list that names the page twice: how many extents were done */
/* Show the first grant table frame at `page` (page-aligned, own memory), and undo it: 0 or -errno. */
long grant_frame_map(void *page);
long grant_frame_unmap(void *page);
void platform_checks(void);
void platform_hostile(void);
void platform_features(void);
void platform_frames(void); /* machine frames of all our pages */
void platform_costs(void);
ulong platform_frame(const void *own);   /* the frame of a page of ours, as a grant names it */
u64 platform_grant_address(void);        /* PV: where a grant may be mapped */
int platform_sees_all(void); /* whether window() is a constant view of all memory */

/* --- print.c */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void print_flush(void); /* wait until the console daemon has it all */
void format_list_into(char *to, unsigned size, const char *format, __builtin_va_list list);
void format_into(char *to, unsigned size, const char *format, ...) __attribute__((format(printf, 3, 4)));
extern int echo;
u32 divide(u64 *number, u32 by); /* number /= by; the remainder */
void *memset(void *to, int value, ulong count);
void *memcpy(void *to, const void *from, ulong count);
int same(const char *a, const char *b);
ulong length(const char *text);

/* --- clock.c */
u64 system_time(void);
u64 time_by(struct vcpu_time_info *time); /* system time, by this copy of what Xen tells */
u64 wall_time(void); /* ns since 1970 */
u64 ticks_to_ns(u64 ticks); /* of the time stamp counter */
/* Block until a port is pending (it is cleared) or system time reaches `until`: the port, or NO_PORT. */
u32 wait_ports(const u32 *ports, u32 count, u64 until);
int port_pending(u32 port); /* asks and clears */
void port_notify(u32 port);

/* --- xenbus.c */
void xenbus_start(int resumed);
long xenbus_read(const char *path, char *into, unsigned size); /* length or -1 */
long xenbus_write(const char *path, const char *value);
long xenbus_write_number(const char *path, u32 number);
void xenbus_watch(const char *path);
int xenbus_changed(void); /* a watch fired since the last call */
void xenbus_poll(void);   /* takes what has come in */

/* --- memory.c */
int memory_work(void);
void memory_beat(u32 dirty_kib);
int memory_verify(void);        /* 0 when all is as it was written; then memory_sum is over all of it */
extern ulong memory_pages;      /* how many it looked at */
extern u64 memory_sum;
/* One page given to Xen, or got for it: 0 or -errno. */
long page_give(ulong pfn);
long page_take(ulong pfn);
ulong given_pages(void); /* by give_work, and not taken back */
void give_work(void);
void take_work(void);
void demand_work(void);
struct range largest_free(void);
void balloon_start(void);
void balloon_adjust(void);

/* --- pv.c, tables.c: PV alone */
#define PV_READONLY 0x65 /* a page-table entry: present, user, accessed, dirty */
#define PV_WRITABLE 0x67
long pv_map(const void *at, u64 entry);
long pv_exchange(void *own, ulong count);
ulong pv_machphys(void);
ulong pv_pfn_said(const void *own);
u64 pv_entry_address(const void *at, int level);
void tables_checks(void);

/* --- grant.c */
void grant_start(void);
void grant_adjust(void);
/* PV: a page of ours granted to ourselves, and how it is mapped; NULL, or what went wrong. */
const char *own_grant(struct gnttab_map_grant_ref *map);
void own_grant_end(void);
void own_grant_checks(void);

/* --- disk.c */
void disk_work(void);
void disk_beat(void);
void lies_work(void);
void orphan_work(void);

/* --- checks.c, hostile.c, measure.c */
void hypercall_checks(void);
void hostile_checks(void);
void features_work(void);
void tlb_work(void);

/* --- perf.c */
void perf_work(void);
void ping_work(void);
void cost(const char *name, void (*operations)(u32 rounds), u32 rounds);

/* --- registers.c */
#define MAX_VCPUS 8
void registers_work(void);
void cr2_work(void);
void registers_load(u32 vcpu);
const char *registers_broken(u32 vcpu, ulong *got, ulong *want);
void registers_look(void); /* prints when vCPU 0's are not as they were */

/* --- vcpus.c */
void vcpus_work(void);
void vcpus_look(void);
void vcpus_resume(int cancelled);
int vcpus_ping(void); /* vCPU 1 is rung, and rings back; 0: it does not, or there is none */

/* --- devices.c: PVH and HVM alone */
void devices_work(void);
void devices_leave(void); /* the guest stops, and then goes on */
void devices_look(int cancelled);

/* --- vnuma.c */
void vnuma_work(void);

/* --- main.c */
void result(const char *name, int passed, const char *format, ...) __attribute__((format(printf, 3, 4)));
void expect(const char *name, long answer, long wanted);
void expect_error(const char *name, long answer); /* whichever it is */
ulong option(const char *key, ulong otherwise);
void cpuid(u32 leaf, u32 out[4]);
void crash(void) __attribute__((noreturn));
extern u32 checks, failures;

#endif
