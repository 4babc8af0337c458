/* What the processor offers, as the guest sees it, and what reaching far costs. */
#include "payload.h"

#define TOUCHES 200000u

void features_work(void)
{
    u32 one[4], extended[4], most[4], pae, nx;

    cpuid(0, most);
    cpuid(1, one);
    cpuid(0x80000001, extended);
    pae = one[3] >> 6 & 1;
    nx = extended[3] >> 20 & 1;
    result("features", pae && nx && one[2] >> 31, "pae=%u nx=%u lm=%u pse=%u gib=%u syscall=%u leaves=%u leaf1=0x%x,0x%x", pae,
           nx, extended[3] >> 29 & 1, one[3] >> 3 & 1, extended[3] >> 26 & 1, extended[3] >> 11 & 1, most[0], one[2],
           one[3]);
    platform_features();
}

/* Touch a page of `pages` after the other, in an order no processor foresees: ns for all. */
static u64 touch(struct range free, ulong pages)
{
    u64 before = system_time();
    u32 x = 1, sum = 0;

    for (u32 i = 0; i < TOUCHES; i++) {
        x = x * 1664525 + 1013904223;
        sum += *(volatile u32 *)window(free.first + (u32)((u64)x * pages >> 32), 1);
    }
    barrier();
    (void)sum;
    return system_time() - before;
}

/* The same work on many pages and on few: the difference is what the TLB does not hold. */
void tlb_work(void)
{
    struct range free = largest_free();
    ulong pages = free.end - free.first;
    u64 sparse, dense;

    if (!platform_sees_all()) {
        result("tlb", 0, "a PV kernel sees its memory through a window");
        return;
    }
    touch(free, 16);
    dense = touch(free, 16);
    sparse = touch(free, pages);
    divide(&dense, TOUCHES / 1000);
    divide(&sparse, TOUCHES / 1000);
    result(given_pages() ? "tlb-given" : "tlb", dense && sparse, "pages=%lu sparse_ps=%llu dense_ps=%llu", pages, sparse,
           dense);
}
