/* The hypercall page with one way into it, and the trap entries, for all four kernels. */
#ifdef __x86_64__
#define AX %rax
#define SP %rsp
#define WORD .quad
#else
#define AX %eax
#define SP %esp
#define WORD .long
#endif

    .text
    .balign 4096
    .globl hypercall_page
hypercall_page:
    .skip 4096 /* filled by the domain builder (PV) or by Xen at our asking (PVH) */

/* long hypercall(u32 number, ulong a, ulong b, ulong c, ulong d, ulong e); registers: arch-x86/xen-x86_{32,64}.h */
    .globl hypercall
hypercall:
#ifdef __x86_64__
    mov %edi, %eax
    mov %rsi, %rdi
    mov %rdx, %rsi
    mov %rcx, %rdx
    mov %r8, %r10
    mov %r9, %r8
    shl $5, %rax
    add $hypercall_page, %rax
    sub $8, %rsp
    call *%rax
    add $8, %rsp
    ret
#else
    push %ebx
    push %esi
    push %edi
    mov 16(%esp), %eax
    mov 20(%esp), %ebx
    mov 24(%esp), %ecx
    mov 28(%esp), %edx
    mov 32(%esp), %esi
    mov 36(%esp), %edi
    shl $5, %eax
    add $hypercall_page, %eax
    call *%eax
    pop %edi
    pop %esi
    pop %ebx
    ret
#endif

/*
 * int attempt(void (*what)(void)): 0, or 1 + the vector of the trap that ended it. trap() leaves by attempt_failed(vector).
 * No iret is needed: nothing was masked by the trap that was not masked before, and the stack is the same.
 */
    .globl attempt, attempt_failed, attempt_stack
attempt:
#ifdef __x86_64__
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, attempt_stack
    call *%rdi
    xor %eax, %eax
1:  movq $0, attempt_stack
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
attempt_failed:
    lea 1(%rdi), %eax
    mov attempt_stack, %rsp
    jmp 1b
#else
    push %ebx
    push %ebp
    push %esi
    push %edi
    mov %esp, attempt_stack
    call *20(%esp)
    xor %eax, %eax
1:  movl $0, attempt_stack
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret
attempt_failed:
    mov 4(%esp), %eax
    inc %eax
    mov attempt_stack, %esp
    jmp 1b
#endif

/*
 * void step_over(void): the trap flag is on while the hypervisor executes one instruction for the guest. The trap must
 * come at `stepped`. No trap at all ends at the ret, with the flag off.
 */
    .globl step_over, stepped
step_over:
#ifdef __x86_64__
    push %rbx
#else
    push %ebx
#endif
    pushf
    orl $0x100, (SP)
    popf
#ifdef PV
    mov %cr0, AX
#else
    cpuid
#endif
stepped:
    nop
    pushf
    andl $~0x100, (SP)
    popf
#ifdef __x86_64__
    pop %rbx
#else
    pop %ebx
#endif
    ret

/* A PV guest of 64 bit finds rcx and r11 on top of each trap frame. */
.macro trap vector:req, has_error=0
1:
#if defined(PV) && defined(__x86_64__)
    pop %rcx
    pop %r11
#endif
    .if !\has_error
    push $0
    .endif
    push $\vector
    jmp trapped
    .section .rodata
    WORD 1b
    .text
.endm

trapped: /* vector, error code, instruction pointer, ... */
    mov SP, AX
#ifdef __x86_64__
    mov %rax, %rdi
    and $-16, %rsp
#else
    and $-16, %esp
    sub $12, %esp
    push %eax
#endif
    call trap
2:  ud2
    jmp 2b

    .section .rodata
    .balign 8
    .globl trap_entries
trap_entries:
    .text
    trap 0
    trap 1
    trap 2
    trap 3
    trap 4
    trap 5
    trap 6
    trap 7
    trap 8, 1
    trap 9
    trap 10, 1
    trap 11, 1
    trap 12, 1
    trap 13, 1
    trap 14, 1
    trap 15
    trap 16
    trap 17, 1
    trap 18
    trap 19

    .bss
    .balign 8
attempt_stack:
    .skip 8
    .balign 4096
    .skip 32768
    .globl stack_top
stack_top:
    .section .note.GNU-stack, "", @progbits
