/*
 * A TCG plugin of QEMU: how many instructions of the hypervisor each stretch of a figure takes, by the address of the
 * block that has them. The payload marks its stretches by a no-op that nobody else executes (firmware/guests/perf.c).
 * Of a figure's stretches the last one is kept, whose length is the figure.
 *
 * What QEMU 7.2 offers to plugins is declared here: Debian has no header of it. Source: docs/devel/tcg-plugins.rst and
 * include/qemu/qemu-plugin.h of QEMU 7.2, interface version 1.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info; /* of the machine; not looked at */
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *),
                                            enum qemu_plugin_cb_flags, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

/* Where Xen is linked to (xen/arch/x86/include/asm/config.h, XEN_VIRT_START), and 1 GiB on. */
#define XEN_START 0xffff82d040000000ull
#define XEN_SIZE (1ull << 30)
#define SLOTS (1u << 16) /* blocks; a build has about 20 000, and a block may begin at several addresses */

static uint64_t address[SLOTS], count[SLOTS], before[SLOTS], stretch[SLOTS];
static FILE *out;

/* The no-op is nopl with this displacement, whose last byte says what begins or ends. */
static const uint8_t mark[] = {0x0f, 0x1f, 0x80, 'X', 'L', 'P'};
enum what { STRETCH = 'S', STRETCH_ENDS = 's', FIGURE_ENDS = 'f' };

/* The slot of an address: its own, or a free one; the last slot has what finds none. */
static uint64_t *slot(uint64_t at)
{
    uint32_t first = (uint32_t)(at * 0x9e3779b97f4a7c15ull >> 48) % (SLOTS - 1);

    for (uint32_t i = 0, n = first; i < SLOTS - 1; i++, n = (n + 1) % (SLOTS - 1)) {
        if (!address[n])
            address[n] = at;
        if (address[n] == at)
            return &count[n];
    }
    return &count[SLOTS - 1];
}

static void marked(unsigned vcpu, void *data)
{
    switch ((enum what)(uintptr_t)data) {
    case STRETCH:
        memcpy(before, count, sizeof(before));
        break;
    case STRETCH_ENDS:
        for (uint32_t i = 0; i < SLOTS; i++)
            stretch[i] = count[i] - before[i];
        break;
    case FIGURE_ENDS:
        for (uint32_t i = 0; i < SLOTS; i++)
            if (stretch[i])
                fprintf(out, "%llx %llu ", (unsigned long long)address[i], (unsigned long long)stretch[i]);
        fputc('\n', out);
        fflush(out);
        break;
    }
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    uint64_t at = qemu_plugin_tb_vaddr(tb);
    size_t length = qemu_plugin_tb_n_insns(tb);

    if (at - XEN_START < XEN_SIZE) {
        qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, slot(at), length);
        return;
    }
    for (size_t i = 0; i < length; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        const uint8_t *bytes;

        if (qemu_plugin_insn_size(insn) != sizeof(mark) + 1)
            continue;
        bytes = qemu_plugin_insn_data(insn);
        if (!memcmp(bytes, mark, sizeof(mark)))
            qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, QEMU_PLUGIN_CB_NO_REGS,
                                                   (void *)(uintptr_t)bytes[sizeof(mark)]);
    }
}

/* One argument: out=FILE, which gets a line for each figure: address and instructions of each block. */
__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info,
                                                               int argc, char **argv)
{
    if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w"))) {
        fprintf(stderr, "profile: wants out=FILE, which can be written\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
