/*
 * Maps COUNT huge pages of hugetlbfs, holds them against a pattern and asks the kernel what lies under the mapping.
 * Usage: hugecheck DIRECTORY COUNT SIZE_KIB; prints the project's result line, status 0 when all is well.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned long kernel_page_kib(const void *at)
{
    char line[512];
    unsigned long from, to, kib = 0;
    int inside = 0;
    FILE *maps = fopen("/proc/self/smaps", "r");

    while (maps && fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            inside = from <= (unsigned long)at && (unsigned long)at < to;
        else if (inside && sscanf(line, "KernelPageSize: %lu kB", &kib) == 1)
            break;
    }
    if (maps)
        fclose(maps);
    return kib;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    size_t kib = strtoul(argv[3], NULL, 10), count = strtoul(argv[2], NULL, 10), size = count * kib * 1024;
    size_t bad = 0, words = size / sizeof(uint64_t);
    char path[256];

    snprintf(path, sizeof(path), "%s/check", argv[1]);
    int file = open(path, O_CREAT | O_RDWR, 0600);
    uint64_t *memory = file < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (!count || memory == MAP_FAILED) {
        printf("XL hugetlb-%zu FAIL cannot map pages=%zu: %m\n", kib, count);
        return 1;
    }
    for (size_t i = 0; i < words; i++)
        memory[i] = i * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < words; i++)
        bad += memory[i] != i * 0x9e3779b97f4a7c15u + 1;
    unsigned long found = kernel_page_kib(memory);
    int passed = !bad && found == kib;
    printf("XL hugetlb-%zu %s KernelPageSize=%lu pages=%zu bad_words=%zu\n", kib, passed ? "PASS" : "FAIL", found,
           count, bad);
    unlink(path);
    return !passed;
}
