/* One ELF note for Xen's domain builder. Source: xen/include/public/elfnote.h, xen/common/libelf. */
#define XEN_ELFNOTE_HYPERCALL_PAGE 2
#define XEN_ELFNOTE_VIRT_BASE 3
#define XEN_ELFNOTE_PADDR_OFFSET 4
#define XEN_ELFNOTE_ENTRY 1
#define XEN_ELFNOTE_XEN_VERSION 5
#define XEN_ELFNOTE_GUEST_OS 6
#define XEN_ELFNOTE_LOADER 8
#define XEN_ELFNOTE_PAE_MODE 9
#define XEN_ELFNOTE_FEATURES 10
#define XEN_ELFNOTE_SUSPEND_CANCEL 14
#define XEN_ELFNOTE_PHYS32_ENTRY 18

.macro note type:req, content:vararg
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 9f - 8f, \type
    .asciz "Xen"
8:  \content
9:  .balign 4
    .text
.endm

#ifdef __x86_64__
#define WORD .quad
#else
#define WORD .long
#endif
