/*
 * For firmware/profile: three stretches of one figure, which call code at Xen's addresses. The last one has 300 rounds
 * of two instructions, and four more. Multiboot; it ends QEMU by isa-debug-exit.
 */
#define MULTIBOOT 0x1badb002
#define DEBUG_EXIT 0x501
#define XEN 0xffff82d040000000
#define OF_XEN_4 0x105	/* its entry of the page tables' level 4, and 3 */
#define OF_XEN_3 0x141
#define MARK(what) .byte 0x0f, 0x1f, 0x80; .ascii "XLP", what

	.text
	.code32
	.balign 4
	.long MULTIBOOT, 0, -MULTIBOOT

	.globl _start
_start:
	movl $stack, %esp
	movl $level_3 + 3, level_4
	movl $level_3 + 3, level_4 + OF_XEN_4 * 8
	movl $level_2 + 3, level_3
	movl $level_2 + 3, level_3 + OF_XEN_3 * 8
	movl $0x83, level_2		/* 2 MiB from address 0 on */
	movl $level_4, %eax
	movl %eax, %cr3
	movl $0x20, %eax		/* PAE */
	movl %eax, %cr4
	movl $0xc0000080, %ecx		/* EFER: LME */
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl %cr0, %eax
	orl $0x80000001, %eax
	movl %eax, %cr0
	lgdt table
	ljmp $8, $long_mode

	.code64
long_mode:
	movl $high, %esi
	movabsq $XEN, %rdx
	addq %rdx, %rsi
	movl $1, %ebx
1:	imull $100, %ebx, %ecx
	MARK("S")
	call *%rsi
	MARK("s")
	incl %ebx
	cmpl $4, %ebx
	jne 1b
	MARK("f")
	movl $DEBUG_EXIT, %edx
	movl $16, %eax
	outl %eax, %dx
	hlt

high:
	nop
	nop
	nop
1:	decl %ecx
	jnz 1b
	ret

	.balign 8
segments:
	.quad 0, 0x00af9b000000ffff
table:	.word 15
	.long segments

	.bss
	.balign 4096
level_4: .skip 4096
level_3: .skip 4096
level_2: .skip 4096
	.skip 4096
stack:
