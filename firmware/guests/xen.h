/*
 * What the payloads need of Xen's public ABI, written down anew; the names are Xen's own.
 * Source of each piece: xen/include/public/, file named beside it. Sizes are checked at the end.
 */
#ifndef XEN_H
#define XEN_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed short s16;
typedef signed char s8;
typedef unsigned long ulong;

/* xen.h: hypercall numbers */
#define __HYPERVISOR_set_trap_table 0
#define __HYPERVISOR_mmu_update 1
#define __HYPERVISOR_set_gdt 2
#define __HYPERVISOR_fpu_taskswitch 5
#define __HYPERVISOR_set_debugreg 8
#define __HYPERVISOR_get_debugreg 9
#define __HYPERVISOR_update_descriptor 10
#define __HYPERVISOR_memory_op 12
#define __HYPERVISOR_multicall 13
#define __HYPERVISOR_update_va_mapping 14
#define __HYPERVISOR_set_timer_op 15
#define __HYPERVISOR_xen_version 17
#define __HYPERVISOR_console_io 18
#define __HYPERVISOR_grant_table_op 20
#define __HYPERVISOR_vm_assist 21
#define __HYPERVISOR_vcpu_op 24
#define __HYPERVISOR_mmuext_op 26
#define __HYPERVISOR_sched_op 29
#define __HYPERVISOR_event_channel_op 32
#define __HYPERVISOR_hvm_op 34

#define DOMID_SELF 0x7ff0
#define VIRQ_TIMER 0
#define UVMF_TLB_FLUSH 1
#define UVMF_INVLPG 2
#define CONSOLEIO_write 0

/* errno.h */
#define XEN_EPERM 1
#define XEN_ENOENT 2
#define XEN_ESRCH 3
#define XEN_EFAULT 14
#define XEN_EBUSY 16
#define XEN_EEXIST 17
#define XEN_ENODEV 19
#define XEN_EINVAL 22
#define XEN_ENOSYS 38
#define XEN_ENOBUFS 105

/* version.h */
#define XENVER_version 0
#define XENVER_extraversion 1
#define XENVER_capabilities 3
#define XENVER_platform_parameters 5
#define XENVER_get_features 6
#define XENVER_pagesize 7
struct xen_feature_info {
    u32 submap_idx, submap;
};

/* xen.h: page tables of PV guests */
#define MMUEXT_PIN_L1_TABLE 0
#define MMUEXT_NEW_BASEPTR 5
#define MMUEXT_TLB_FLUSH_LOCAL 6
#define MMUEXT_UNPIN_TABLE 4
#define MMUEXT_SET_LDT 13
#define MMUEXT_NEW_USER_BASEPTR 15
#define MMUEXT_CLEAR_PAGE 16
#define MMUEXT_COPY_PAGE 17
#define VMASST_CMD_enable 0
#define VMASST_CMD_disable 1
#define VMASST_TYPE_4gb_segments 0 /* 32 bit alone */
#define VMASST_TYPE_m2p_strict 32 /* 64 bit alone */
struct mmuext_op {
    u32 cmd;
    ulong arg1, arg2;
};
struct mmu_update {
    u64 ptr, val;
};

/* memory.h */
#define XENMEM_decrease_reservation 1
#define XENMEM_current_reservation 3
#define XENMEM_maximum_reservation 4
#define XENMEM_populate_physmap 6
#define XENMEM_add_to_physmap 7
#define XENMEM_memory_map 9
#define XENMEM_exchange 11
#define XENMEM_machphys_mapping 12
#define XENMEM_remove_from_physmap 15
#define XENMEM_get_vnumainfo 26
#define XENMAPSPACE_shared_info 0
#define XENMAPSPACE_grant_table 1
struct xen_memory_reservation {
    ulong *extent_start;
    ulong nr_extents;
    u32 extent_order, mem_flags;
    u16 domid;
};
struct xen_memory_exchange {
    struct xen_memory_reservation in, out;
    ulong nr_exchanged;
};
struct xen_memory_map {
    u32 nr_entries;
    void *buffer;
};
struct e820_entry {
    u64 address, size;
    u32 type;
} __attribute__((packed));
struct xen_add_to_physmap {
    u16 domid, size;
    u32 space;
    ulong idx, gpfn;
};
struct xen_remove_from_physmap {
    u16 domid;
    ulong gpfn;
};
struct xen_vmemrange {
    u64 start, end;
    u32 flags, nid;
};
struct xen_vnuma_topology_info {
    u16 domid, pad;
    u32 nr_vnodes, nr_vcpus, nr_vmemranges;
    u64 vdistance, vcpu_to_vnode, vmemrange; /* addresses, 64 bits wide for both widths of a guest */
};
struct xen_machphys_mapping {
    ulong v_start, v_end, max_mfn;
};

/* event_channel.h */
#define EVTCHNOP_bind_interdomain 0
#define EVTCHNOP_bind_virq 1
#define EVTCHNOP_close 3
#define EVTCHNOP_send 4
#define EVTCHNOP_status 5
#define EVTCHNOP_alloc_unbound 6
#define EVTCHNOP_bind_ipi 7
#define EVTCHNOP_unmask 9
#define EVTCHNSTAT_closed 0
#define EVTCHNSTAT_unbound 1
struct evtchn_bind_interdomain {
    u16 remote_dom;
    u32 remote_port, local_port;
};
struct evtchn_bind_virq {
    u32 virq, vcpu, port;
};
struct evtchn_bind_ipi {
    u32 vcpu, port;
};
struct evtchn_alloc_unbound {
    u16 dom, remote_dom;
    u32 port;
};
struct evtchn_status {
    u16 dom;
    u32 port, status, vcpu;
    u32 detail[2];
};

/* sched.h */
#define SCHEDOP_yield 0
#define SCHEDOP_shutdown 2
#define SCHEDOP_poll 3
#define SCHEDOP_remote_shutdown 4
struct sched_remote_shutdown {
    u16 domid;
    u32 reason;
};
#define SHUTDOWN_poweroff 0
#define SHUTDOWN_reboot 1
#define SHUTDOWN_suspend 2
#define SHUTDOWN_crash 3
struct sched_poll {
    u32 *ports;
    u32 nr_ports;
    u64 timeout;
};

/* vcpu.h */
#define VCPUOP_initialise 0
#define VCPUOP_up 1
#define VCPUOP_down 2
#define VCPUOP_is_up 3
#define VCPUOP_set_periodic_timer 6
#define VCPUOP_get_runstate_info 4
#define VCPUOP_register_runstate_memory_area 5
#define VCPUOP_register_vcpu_time_memory_area 13
#define VCPUOP_stop_periodic_timer 7
#define VCPUOP_set_singleshot_timer 8
#define VCPU_SSHOTTMR_future 1
struct vcpu_register_area {
    u64 address;
};
struct vcpu_runstate_info {
    int state;
    u64 state_entry_time, time[4];
};
struct vcpu_set_periodic_timer {
    u64 period_ns;
};
struct vcpu_set_singleshot_timer {
    u64 timeout_abs_ns;
    u32 flags;
};

/* grant_table.h */
#define GNTTABOP_map_grant_ref 0
#define GNTTABOP_unmap_grant_ref 1
#define GNTMAP_host_map 2
#define GTF_permit_access 1
#define GTF_readonly 4
#define GTF_reading 8
#define GTF_writing 16
#define GNTST_okay 0
#define GNTST_general_error -1
#define GNTST_bad_domain -2
#define GNTST_bad_gntref -3
#define GNTST_bad_copy_arg -10
struct gnttab_map_grant_ref {
    u64 host_addr;
    u32 flags, ref;
    u16 dom;
    s16 status;
    u32 handle;
    u64 dev_bus_addr;
};
struct gnttab_unmap_grant_ref {
    u64 host_addr, dev_bus_addr;
    u32 handle;
    s16 status;
};
#define GNTTABOP_setup_table 2
#define GNTTABOP_copy 5
#define GNTTABOP_query_size 6
#define GNTTABOP_get_version 10
#define GNTTABOP_swap_grant_ref 11
struct gnttab_copy_end {
    ulong frame;
    u16 domid, offset;
};
struct gnttab_copy {
    struct gnttab_copy_end source, dest;
    u16 len, flags;
    s16 status;
};
struct gnttab_get_version {
    u16 dom, pad;
    u32 version;
};
struct gnttab_swap_grant_ref {
    u32 ref_a, ref_b;
    s16 status;
};
struct gnttab_setup_table {
    u16 dom;
    u32 nr_frames;
    s16 status;
    ulong *frame_list;
};
struct gnttab_query_size {
    u16 dom;
    u32 nr_frames, max_nr_frames;
    s16 status;
};
struct grant_entry_v1 {
    u16 flags, domid;
    u32 frame;
};

/* hvm/hvm_op.h, hvm/params.h */
#define HVMOP_set_param 0
#define HVMOP_get_param 1
#define HVM_PARAM_CALLBACK_IRQ 0
#define HVM_PARAM_STORE_PFN 1
#define HVM_PARAM_STORE_EVTCHN 2
#define HVM_PARAM_CONSOLE_PFN 17
#define HVM_PARAM_CONSOLE_EVTCHN 18
#define HVM_PARAM_ACPI_IOPORTS_LOCATION 19
struct xen_hvm_param {
    u16 domid;
    u32 index;
    u64 value;
};

/* xen.h: what a domain shares with the hypervisor */
struct multicall_entry {
    ulong op, result, args[6];
};
struct vcpu_time_info {
    u32 version, pad0;
    u64 tsc_timestamp, system_time;
    u32 tsc_to_system_mul;
    s8 tsc_shift;
    u8 flags, pad1[2];
};
struct vcpu_info {
    u8 evtchn_upcall_pending, evtchn_upcall_mask;
    ulong evtchn_pending_sel;
    ulong cr2;
#ifdef __x86_64__
    ulong pad;
#else
    ulong pad[5];
#endif
    struct vcpu_time_info time;
};
#define LONG_BITS (8 * sizeof(ulong))
struct shared_info {
    struct vcpu_info vcpu_info[32];
    ulong evtchn_pending[LONG_BITS], evtchn_mask[LONG_BITS];
    u32 wc_version, wc_sec, wc_nsec;
#ifdef __x86_64__
    u32 wc_sec_hi;
#endif
    ulong max_pfn, pfn_to_mfn_frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation;
#ifndef __x86_64__
    u32 wc_sec_hi;
#endif
};
struct start_info {
    char magic[32];
    ulong nr_pages, shared_info;
    u32 flags;
    ulong store_mfn;
    u32 store_evtchn;
    ulong console_mfn;
    u32 console_evtchn;
    ulong pt_base, nr_pt_frames, mfn_list, mod_start, mod_len;
    char cmd_line[1024];
    ulong first_p2m_pfn, nr_p2m_frames;
};

/* arch-x86/xen-x86_{32,64}.h, arch-x86/xen.h */
#ifdef __x86_64__
#define FLAT_KERNEL_CS 0xe033
#define FLAT_KERNEL_SS 0xe02b
#else
#define FLAT_KERNEL_CS 0xe019
#define FLAT_KERNEL_SS 0xe021
#endif
#define TI_MASKS 4 /* a flag of a trap: events are masked when its handler begins */
struct trap_info {
    u8 vector, flags;
    u16 cs;
    ulong address;
};
/* What a vCPU of a PV guest begins with. */
#define VGCF_in_kernel 4
struct cpu_user_regs {
#ifdef __x86_64__
    ulong r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    u32 error_code, entry_vector;
    ulong ip;
    u16 cs, pad0;
    u8 saved_upcall_mask, pad1[3];
    ulong flags, sp;
    u16 ss, pad2[3], es, pad3[3], ds, pad4[3], fs, pad5[3], gs, pad6[3];
#else
    ulong ebx, ecx, edx, esi, edi, ebp, eax;
    u16 error_code, entry_vector;
    ulong ip;
    u16 cs;
    u8 saved_upcall_mask, pad0;
    ulong flags, sp;
    u16 ss, pad1, es, pad2, ds, pad3, fs, pad4, gs, pad5;
#endif
};
struct vcpu_guest_context {
    char fpu[512];
    ulong flags;
    struct cpu_user_regs user_regs;
    struct trap_info traps[256];
    ulong ldt_base, ldt_ents, gdt_frames[16], gdt_ents, kernel_ss, kernel_sp, ctrlreg[8], debugreg[8];
#ifdef __x86_64__
    ulong event_callback_eip, failsafe_callback_eip, syscall_callback_eip, vm_assist;
    ulong fs_base, gs_base_kernel, gs_base_user;
#else
    ulong event_callback_cs, event_callback_eip, failsafe_callback_cs, failsafe_callback_eip, vm_assist;
#endif
};

/* hvm/hvm_vcpu.h: the same for PVH and HVM guests */
#define VCPU_HVM_MODE_32B 0
#define VCPU_HVM_MODE_64B 1
struct vcpu_hvm_x86_32 {
    u32 eax, ecx, edx, ebx, esp, ebp, esi, edi, eip, eflags, cr0, cr3, cr4, pad1;
    u64 efer;
    u32 cs_base, ds_base, ss_base, es_base, tr_base, cs_limit, ds_limit, ss_limit, es_limit, tr_limit;
    u16 cs_ar, ds_ar, ss_ar, es_ar, tr_ar, pad2[3];
};
struct vcpu_hvm_x86_64 {
    u64 rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, rip, rflags, cr0, cr3, cr4, efer;
};
struct vcpu_hvm_context {
    u32 mode, pad;
    union {
        struct vcpu_hvm_x86_32 x86_32;
        struct vcpu_hvm_x86_64 x86_64;
    };
};

/* arch-x86/hvm/start_info.h */
#define HVM_START_MAGIC 0x336ec578
#define HVM_MEMMAP_RAM 1
struct hvm_start_info {
    u32 magic, version, flags, nr_modules;
    u64 modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
    u32 memmap_entries, reserved;
};
struct hvm_memmap_entry {
    u64 addr, size;
    u32 type, reserved;
};

/* io/console.h */
struct xencons_interface {
    char in[1024], out[2048];
    u32 in_cons, in_prod, out_cons, out_prod;
};

/* io/xs_wire.h */
#define XS_READ 2
#define XS_WATCH 4
#define XS_WRITE 11
#define XS_WATCH_EVENT 15
#define XS_ERROR 16
struct xsd_sockmsg {
    u32 type, req_id, tx_id, len;
};
#define XENSTORE_RING_SIZE 1024
#define XENSTORE_PAYLOAD_MAX 4096
struct xenstore_domain_interface {
    char req[XENSTORE_RING_SIZE], rsp[XENSTORE_RING_SIZE];
    u32 req_cons, req_prod, rsp_cons, rsp_prod;
};

#ifdef __x86_64__
_Static_assert(sizeof(struct vcpu_runstate_info) == 48, "vcpu_runstate_info");
_Static_assert(sizeof(struct cpu_user_regs) == 200, "cpu_user_regs");
_Static_assert(sizeof(struct vcpu_guest_context) == 5168, "vcpu_guest_context");
#else
_Static_assert(sizeof(struct vcpu_runstate_info) == 44, "vcpu_runstate_info");
_Static_assert(sizeof(struct cpu_user_regs) == 68, "cpu_user_regs");
_Static_assert(sizeof(struct vcpu_guest_context) == 2800, "vcpu_guest_context");
#endif
_Static_assert(sizeof(struct vcpu_hvm_x86_32) == 120, "vcpu_hvm_x86_32");
_Static_assert(sizeof(struct vcpu_info) == 64, "vcpu_info");
_Static_assert(sizeof(struct vcpu_time_info) == 32, "vcpu_time_info");
_Static_assert(sizeof(struct hvm_start_info) == 56, "hvm_start_info");
_Static_assert(sizeof(struct xen_vnuma_topology_info) == 40, "xen_vnuma_topology_info");

#endif
