/* Entry of a PV guest: flat segments, paging on, events masked, (e|r)si has start_info, the stack is the builder's. */
#include "notes.h"

note XEN_ELFNOTE_GUEST_OS, .asciz "xenlab"
note XEN_ELFNOTE_LOADER, .asciz "generic"
note XEN_ELFNOTE_XEN_VERSION, .asciz "xen-3.0"
note XEN_ELFNOTE_VIRT_BASE, WORD 0
note XEN_ELFNOTE_PADDR_OFFSET, WORD 0
note XEN_ELFNOTE_ENTRY, WORD _start
note XEN_ELFNOTE_HYPERCALL_PAGE, WORD hypercall_page
note XEN_ELFNOTE_SUSPEND_CANCEL, .long 1
#ifndef __x86_64__
note XEN_ELFNOTE_PAE_MODE, .asciz "yes"
note XEN_ELFNOTE_FEATURES, .asciz "pae_pgdir_above_4gb"
#endif

    .globl _start
_start:
    cld
#ifdef __x86_64__
    lea stack_top(%rip), %rsp
    xor %ebp, %ebp
    mov %rsi, %rdi
    call payload
#else
    mov $stack_top, %esp
    xor %ebp, %ebp
    push $0 /* the stack is aligned to 16 at the call */
    push $0
    push $0
    push %esi
    call payload
#endif
1:  ud2
    jmp 1b

/* Another vCPU begins here; its stack is set already. */
    .globl secondary_entry
secondary_entry:
    cld
    xor %ebp, %ebp
    call secondary
2:  ud2
    jmp 2b
    .section .note.GNU-stack, "", @progbits
