/*
 * A page that dom0 grants, mapped for the guest's devices while xenstore names it: `data/granted` holds the reference
 * (0: none), with `ro` behind it for a mapping that allows reading alone. xen/include/public/grant_table.h
 */
#include "payload.h"

#define NAME "data/granted"
#define DEVICE_MAP 1
#define READONLY 4

static struct gnttab_map_grant_ref held;
static int is_held;

void grant_start(void)
{
    xenbus_watch(NAME);
}

static void map_it(u32 ref, int is_readonly)
{
    long error;

    held = (struct gnttab_map_grant_ref){.flags = DEVICE_MAP | (is_readonly ? READONLY : 0), .ref = ref};
    error = call3(grant_table_op, GNTTABOP_map_grant_ref, &held, 1);
    is_held = !error && held.status == GNTST_okay;
    print("XL granted INFO frame=0x%llx error=%ld status=%d\n", held.dev_bus_addr / PAGE, error, held.status);
}

static void unmap_it(void)
{
    struct gnttab_unmap_grant_ref unmap = {.dev_bus_addr = held.dev_bus_addr, .handle = held.handle};
    long error = call3(grant_table_op, GNTTABOP_unmap_grant_ref, &unmap, 1);

    is_held = 0;
    print("XL granted INFO gone error=%ld status=%d\n", error, unmap.status);
}

void grant_adjust(void)
{
    char text[24], *c = text;
    u32 ref = 0;

    if (xenbus_read(NAME, text, sizeof(text)) <= 0)
        return;
    for (; *c >= '0' && *c <= '9'; c++)
        ref = ref * 10 + *c - '0';
    if (is_held && !ref)
        unmap_it();
    else if (!is_held && ref)
        map_it(ref, same(c, " ro"));
}

#ifdef PV
#define OWN 8 /* the first grant that is not the toolstack's */
static char granted[PAGE] __attribute__((aligned(4096)));
static char grant_frame[PAGE] __attribute__((aligned(4096)));

static struct grant_entry_v1 *own_entry(void)
{
    return (struct grant_entry_v1 *)grant_frame + OWN;
}

/* With nested paging Xen would take the page away where it is (p2m.c). */
const char *own_grant(struct gnttab_map_grant_ref *map)
{
    char text[12];
    u16 own = 0;

    if (!store_ring || xenbus_read("domid", text, sizeof(text)) <= 0)
        return "xenstore does not tell the domain's number";
    for (char *c = text; *c >= '0' && *c <= '9'; c++)
        own = own * 10 + *c - '0';
    if (grant_frame_map(grant_frame))
        return "the grant table is not mapped";
    own_entry()->frame = platform_frame(granted);
    own_entry()->domid = own;
    memory_barrier();
    own_entry()->flags = GTF_permit_access;
    *map = (struct gnttab_map_grant_ref){
        .host_addr = platform_grant_address(), .flags = GNTMAP_host_map, .ref = OWN, .dom = own};
    return 0;
}

void own_grant_end(void)
{
    own_entry()->flags = 0;
    grant_frame_unmap(grant_frame);
}

static volatile u32 *where;

static void read_there(void)
{
    *where;
}

/* What a grant maps is seen there, and no longer when the call that unmaps it returns: the processor has forgotten it. */
void own_grant_checks(void)
{
    struct gnttab_map_grant_ref map;
    struct gnttab_unmap_grant_ref unmap;
    const char *wrong = own_grant(&map);
    int early, late;
    long error;
    u32 seen = 0;

    if (wrong) {
        result("grant-unmap", 0, "%s", wrong);
        return;
    }
    *(volatile u32 *)granted = 0x600d9a9e;
    error = call3(grant_table_op, GNTTABOP_map_grant_ref, &map, 1);
    where = (u32 *)(ulong)map.host_addr;
    early = attempt(read_there) - 1;
    if (early < 0)
        seen = *where;
    unmap = (struct gnttab_unmap_grant_ref){.host_addr = map.host_addr, .handle = map.handle};
    error |= call3(grant_table_op, GNTTABOP_unmap_grant_ref, &unmap, 1);
    late = attempt(read_there) - 1;
    result("grant-unmap", !error && !map.status && !unmap.status && seen == 0x600d9a9e && late == 14,
           "error=%ld status=%d,%d seen=0x%x vector=%d,%d want=-1,14", error, map.status, unmap.status, seen, early, late);
    own_grant_end();
}
#endif
