/*
 * Blocks of a disk, past every cache. `blocks write DEVICE SEED FILE` writes them one after the other, and notes in FILE
 * how many the disk has acknowledged; `blocks read DEVICE SEED COUNT` says whether so many are there as they were written.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, WORDS = BLOCK / sizeof(uint32_t), EACH = 32 };

static uint32_t data[WORDS] __attribute__((aligned(BLOCK)));

static uint32_t word(uint32_t seed, uint32_t block, uint32_t i)
{
    return (block * WORDS + i) * 2654435761u ^ seed;
}

static int write_all(int disk, uint32_t seed, const char *name)
{
    int notes = open(name, O_WRONLY | O_CREAT, 0644);
    uint32_t block;

    for (block = 0;; block++) {
        char text[12];
        int n = snprintf(text, sizeof(text), "%u\n", block);

        if (pwrite(notes, text, n, 0) != n)
            return 1;
        if (block % EACH == 0) {
            printf("XL acknowledged INFO blocks=%u\n", block);
            fflush(stdout);
        }
        for (uint32_t i = 0; i < WORDS; i++)
            data[i] = word(seed, block, i);
        if (pwrite(disk, data, BLOCK, (off_t)block * BLOCK) != BLOCK || fdatasync(disk))
            break;
    }
    printf("XL acknowledged INFO blocks=%u, then an error: %m\n", block);
    return 0;
}

static int read_all(int disk, uint32_t seed, uint32_t count)
{
    uint32_t lost = 0, first = 0;

    for (uint32_t block = 0; block < count; block++) {
        int wrong = pread(disk, data, BLOCK, (off_t)block * BLOCK) != BLOCK;

        for (uint32_t i = 0; i < WORDS; i++)
            wrong |= data[i] != word(seed, block, i);
        if (wrong && !lost++)
            first = block;
    }
    printf("XL kept %s blocks=%u lost=%u first=%u\n", lost || !count ? "FAIL" : "PASS", count, lost, first);
    return lost || !count;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;

    int is_write = !strcmp(argv[1], "write");
    int disk = open(argv[2], O_DIRECT | (is_write ? O_RDWR : O_RDONLY));
    uint32_t seed = strtoul(argv[3], NULL, 0);

    if (disk < 0) {
        printf("XL %s FAIL %s: %m\n", is_write ? "acknowledged" : "kept", argv[2]);
        return 1;
    }
    return is_write ? write_all(disk, seed, argv[4]) : read_all(disk, seed, strtoul(argv[4], NULL, 0));
}
