/*
 * Entry of a PVH guest, and of an HVM guest whose firmware this is: 32-bit protected mode, flat, paging off, ebx has the
 * address of hvm_start_info. Source: docs/misc/pvh.pandoc; for HVM tools/libs/guest/xg_dom_hvmloader.c, which takes a
 * kernel for firmware when it has no note for Xen. The 64-bit kernel maps 0..4 GiB to itself in 2 MiB pages and goes to
 * long mode.
 */
#include "notes.h"

#ifndef HVM
note XEN_ELFNOTE_PHYS32_ENTRY, .long _start
#endif

    .code32
    .globl _start
_start:
    cli
    cld
    mov $stack_top, %esp
#ifdef __x86_64__
    /* pd: 4 pages in a row, 2048 entries of 2 MiB */
    mov $pd, %edi
    mov $0xe3, %eax /* present, writable, accessed, dirty, large */
    mov $2048, %ecx
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    mov $pdpt, %edi
    mov $pd + 3, %eax
    mov $4, %ecx
2:  mov %eax, (%edi)
    add $0x1000, %eax
    add $8, %edi
    loop 2b
    movl $pdpt + 3, pml4
    mov $pml4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax /* PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx /* EFER */
    rdmsr
    or $0x100, %eax /* LME */
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
#endif
    lgdt gdt_pointer
    ljmp $8, $3f
#ifdef __x86_64__
    .code64
#endif
3:  mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    xor %ebp, %ebp
#ifdef __x86_64__
    lea stack_top(%rip), %rsp
    mov %ebx, %edi
    call payload
#else
    push $0 /* the stack is aligned to 16 at the call */
    push $0
    push $0
    push %ebx
    call payload
#endif
4:  ud2
    jmp 4b

/* Another vCPU begins here, in the mode and with the stack that it was started with. */
    .globl secondary_entry
secondary_entry:
    cld
    lgdt gdt_pointer
    lidt gates_pointer
#ifdef __x86_64__
    push $8
    push $5f
    lretq
#else
    ljmp $8, $5f
#endif
5:  mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    xor %ebp, %ebp
    call secondary
6:  ud2
    jmp 6b

#ifdef HVM
/* What a start-up IPI begins with, copied to TRAMPOLINE (pvh.c): real mode, cs is its page, all else is zero. */
    .code16
    .globl trampoline, trampoline_end
trampoline:
    cli
    cld
    mov %cs, %ax
    mov %ax, %ds
    lgdtl trampoline_pointer - trampoline
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $8, $7f
    .balign 8
trampoline_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff /* 8: code, 32 bit */
    .quad 0x00cf93000000ffff /* 16: data */
trampoline_pointer:
    .word . - trampoline_gdt - 1
    .long trampoline_gdt
trampoline_end:

    .code32
7:  mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov secondary_stack, %esp
#ifdef __x86_64__
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $secondary_entry
#else
    jmp secondary_entry
#endif
#ifdef __x86_64__
    .code64
#endif
#endif

/* An interrupt goes to interrupt(vector), and what it interrupted goes on. 16 bytes for each vector from 32 on. */
    .balign 16
    .globl interrupt_entries
interrupt_entries:
    .set vector, 32
    .rept 224
    .balign 16
    push $vector
    jmp interrupted
    .set vector, vector + 1
    .endr
interrupted:
#ifdef __x86_64__
    push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %rbp
    mov 80(%rsp), %edi
    mov %rsp, %rbp
    and $-16, %rsp
    cld
    call interrupt
    mov %rbp, %rsp
    pop %rbp
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rax
    add $8, %rsp
    iretq
#else
    pusha
    mov 32(%esp), %eax
    mov %esp, %ebp
    and $-16, %esp
    sub $12, %esp
    push %eax
    cld
    call interrupt
    mov %ebp, %esp
    popa
    add $4, %esp
    iret
#endif

/*
 * long suspend_with_registers(u32 *reason): SCHEDOP_shutdown, with the general registers of suspend_general and the flags
 * of suspend_flags. What they are afterwards is there then. Registers that the hypercall takes or answers in are not.
 */
    .globl suspend_with_registers
suspend_with_registers:
#ifdef __x86_64__
    push %rbx
    push %rbp
    push %r12
    push %r13
    mov %rdi, %rsi
    mov $2, %edi
    mov $29, %eax
    mov suspend_general, %rbx
    mov suspend_general + 8, %rcx
    mov suspend_general + 16, %rdx
    mov suspend_general + 24, %rbp
    mov suspend_general + 32, %r8
    mov suspend_general + 40, %r9
    mov suspend_general + 48, %r10
    mov suspend_general + 56, %r11
    mov suspend_general + 64, %r12
    mov suspend_general + 72, %r13
    push suspend_flags
    popf
    call hypercall_page + 29 * 32
    pushf
    pop suspend_flags
    cld
    mov %rbx, suspend_general
    mov %rcx, suspend_general + 8
    mov %rdx, suspend_general + 16
    mov %rbp, suspend_general + 24
    mov %r8, suspend_general + 32
    mov %r9, suspend_general + 40
    mov %r10, suspend_general + 48
    mov %r11, suspend_general + 56
    mov %r12, suspend_general + 64
    mov %r13, suspend_general + 72
    push $2
    popf
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
#else
    push %ebx
    push %ebp
    push %esi
    push %edi
    mov 20(%esp), %ecx
    mov $2, %ebx
    mov $29, %eax
    mov suspend_general, %edx
    mov suspend_general + 4, %esi
    mov suspend_general + 8, %edi
    mov suspend_general + 12, %ebp
    push suspend_flags
    popf
    call hypercall_page + 29 * 32
    pushf
    pop suspend_flags
    cld
    mov %edx, suspend_general
    mov %esi, suspend_general + 4
    mov %edi, suspend_general + 8
    mov %ebp, suspend_general + 12
    push $2
    popf
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret
#endif

    .section .data, "aw"
    .balign 8
gdt:
    .quad 0
#ifdef __x86_64__
    .quad 0x00af9b000000ffff /* 8: code, 64 bit */
#else
    .quad 0x00cf9b000000ffff /* 8: code, 32 bit */
#endif
    .quad 0x00cf93000000ffff /* 16: data */
gdt_pointer:
    .word . - gdt - 1
    WORD gdt

#ifdef __x86_64__
    .bss
    .balign 4096
pml4: .skip 4096
pdpt: .skip 4096
pd:   .skip 4 * 4096
#endif
    .section .note.GNU-stack, "", @progbits
