/*
 * Does a guest of SVM read the CR2 that it wrote, if only reads of CR0 are intercepted?
 *
 *     qemu-system-x86_64 -accel tcg -cpu qemu64,+svm -nodefaults -display none -device isa-debug-exit -kernel cr2
 *
 * QEMU ends with status 33 if it does, with 35 if the read of CR2 exits to the host as one of CR0, and with 37 if
 * anything else happens. A hypervisor that intercepts CR0 and not CR2, as Xen does on nested paging, takes such an exit
 * for a wish to read CR2, and gives a copy that nobody keeps up to date. So Linux cannot handle its first page fault.
 *
 * Multiboot (version 1): 32-bit protected mode, flat segments, no paging.
 * SVM: AMD64 Architecture Programmer's Manual, volume 2, appendix B (layout of the VMCB) and C (exit codes).
 */

#define MULTIBOOT 0x1badb002
#define DEBUG_EXIT 0x501	/* isa-debug-exit's port; the status is twice what is written there, and 1 */
#define READS_ITS_OWN 16
#define READS_CR0 17
#define OTHERWISE 18

#define MSR_EFER 0xc0000080
#define EFER_SVME 0x1000
#define MSR_VM_HSAVE_PA 0xc0010117

#define INTERCEPT_CR 0x000	/* bit N: reads of CRn */
#define INTERCEPT_SVM 0x010	/* bit 0: VMRUN, which must be; bit 1: VMMCALL */
#define ASID 0x058
#define EXIT_CODE 0x070
#define EXIT_READ_CR0 0x000
#define EXIT_VMMCALL 0x081
#define ES 0x400
#define CS 0x410
#define SS 0x420
#define DS 0x430
#define EFER 0x4d0
#define CR0 0x558
#define RFLAGS 0x570
#define RIP 0x578
#define RAX 0x5f8
#define ATTRIBUTES 2		/* of a segment */
#define LIMIT 4
#define CODE 0xc9b		/* flat, 32 bits, present */
#define DATA 0xc93

#define PATTERN 0x5a5ac0de

	.text
	.code32
	.balign 4
	.long MULTIBOOT, 0, -MULTIBOOT

	.globl _start
_start:
	movl $MSR_EFER, %ecx
	rdmsr
	orl $EFER_SVME, %eax
	wrmsr
	movl $MSR_VM_HSAVE_PA, %ecx
	movl $saved, %eax
	xorl %edx, %edx
	wrmsr

	movl $vmcb, %eax
	movl $1, INTERCEPT_CR(%eax)
	movl $3, INTERCEPT_SVM(%eax)
	movl $1, ASID(%eax)
	movl $EFER_SVME, EFER(%eax)
	movl $0x11, CR0(%eax)
	movl $2, RFLAGS(%eax)
	movl $guest, RIP(%eax)
	movw $CODE, CS + ATTRIBUTES(%eax)
	movl $-1, CS + LIMIT(%eax)
	.irp segment, ES, SS, DS
	movw $DATA, \segment + ATTRIBUTES(%eax)
	movl $-1, \segment + LIMIT(%eax)
	.endr
	vmrun %eax

	movl $OTHERWISE, %ebx
	cmpl $EXIT_READ_CR0, vmcb + EXIT_CODE
	je reads_cr0
	cmpl $EXIT_VMMCALL, vmcb + EXIT_CODE
	jne tell
	cmpl $PATTERN, vmcb + RAX
	jne tell
	movl $READS_ITS_OWN, %ebx
	jmp tell
reads_cr0:
	movl $READS_CR0, %ebx
tell:
	movl $DEBUG_EXIT, %edx
	movl %ebx, %eax
	outl %eax, %dx
	hlt

guest:
	movl $PATTERN, %ecx
	movl %ecx, %cr2
	movl %cr2, %eax
	vmmcall

	.bss
	.balign 4096
vmcb:	.skip 4096
saved:	.skip 4096
