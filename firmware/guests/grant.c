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
