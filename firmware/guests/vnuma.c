/* The guest's virtual NUMA nodes, as Xen tells them: XENMEM_get_vnumainfo, xen/include/public/memory.h. */
#include "payload.h"

#define MAX_VNODES 8
#define MAX_RANGES 16

static u32 distances[MAX_VNODES * MAX_VNODES], vnode_of[MAX_VCPUS];
static struct xen_vmemrange ranges[MAX_RANGES];

static u64 handle(void *to)
{
    return (ulong)to;
}

/* A line for each vCPU, each range of memory and each distance; names are those of the public header. */
void vnuma_work(void)
{
    struct xen_vnuma_topology_info asked = {.domid = DOMID_SELF}, got;
    long error = call2(memory_op, XENMEM_get_vnumainfo, &asked);

    if (error != -XEN_ENOBUFS) { /* with room for nothing Xen tells how much room it wants */
        result("vnuma", 0, "with no room: answer=%ld want=%d", error, -XEN_ENOBUFS);
        return;
    }
    if (asked.nr_vnodes > MAX_VNODES || asked.nr_vcpus > MAX_VCPUS || asked.nr_vmemranges > MAX_RANGES) {
        result("vnuma", 0, "vnodes=%u vcpus=%u ranges=%u are too many", asked.nr_vnodes, asked.nr_vcpus,
               asked.nr_vmemranges);
        return;
    }
    got = asked;
    got.vdistance = handle(distances);
    got.vcpu_to_vnode = handle(vnode_of);
    got.vmemrange = handle(ranges);
    error = call2(memory_op, XENMEM_get_vnumainfo, &got);
    result("vnuma", !error, "error=%ld vnodes=%u vcpus=%u ranges=%u", error, got.nr_vnodes, got.nr_vcpus,
           got.nr_vmemranges);
    if (error)
        return;
    for (u32 i = 0; i < got.nr_vcpus; i++)
        print("XL vnuma-vcpu-%u INFO vnode=%u\n", i, vnode_of[i]);
    for (u32 i = 0; i < got.nr_vmemranges; i++)
        print("XL vnuma-range-%u INFO vnode=%u start=0x%llx end=0x%llx\n", i, ranges[i].nid, ranges[i].start,
              ranges[i].end);
    for (u32 i = 0; i < got.nr_vnodes; i++)
        for (u32 j = 0; j < got.nr_vnodes; j++)
            print("XL vnuma-distance-%u-%u INFO is=%u\n", i, j, distances[i * got.nr_vnodes + j]);
}
