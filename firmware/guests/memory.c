/*
 * All free memory filled with a pattern of seed, page and generation, and looked after. The dirtier goes round and
 * round with a cursor: pages before it are one generation ahead, so no page needs a note of its own.
 */
#include "payload.h"

#define NOTE_PAGES (1UL << 20) /* 4 GiB: more is left alone */
#define SLICE 64
#define LAST 256 /* pages that were written last are those that a migration loses */

static ulong away[NOTE_PAGES / LONG_BITS]; /* pages given back to Xen */
static ulong total, cursor, slice, seed;
static u32 generation;
static int filled;
static ulong balloon_base, balloon_pages;
ulong memory_pages;
u64 memory_sum;

static ulong pfn_of(ulong index)
{
    for (unsigned i = 0; i < free_count; i++) {
        ulong pages = free_ranges[i].end - free_ranges[i].first;

        if (index < pages)
            return free_ranges[i].first + index;
        index -= pages;
    }
    return 0;
}

static void count_total(void)
{
    total = 0;
    for (unsigned i = 0; i < free_count; i++)
        total += free_ranges[i].end - free_ranges[i].first;
    if (total > NOTE_PAGES)
        total = NOTE_PAGES;
}

static int is_away(ulong index)
{
    return away[index / LONG_BITS] >> index % LONG_BITS & 1;
}

static ulong first_word(ulong pfn, u32 its_generation)
{
    u32 x = seed ^ pfn * 0x9e3779b1u ^ its_generation * 0x85ebca6bu;

    x ^= x >> 15;
    x *= 0x2c1b3c6du;
    x ^= x >> 12;
#ifdef __x86_64__
    return (ulong)x << 32 | (u32)(x * 0x297a2d39u);
#else
    return x;
#endif
}

/* Do it to pages index..end (one generation); 1 when an error was found and printed. */
static int run(ulong index, ulong end, u32 its_generation, int write)
{
    const ulong step = (ulong)0x9e3779b97f4a7c15ull | 1;

    while (index < end) {
        ulong pfn = pfn_of(index), count = 1;
        ulong *word;

        if (is_away(index)) {
            index++;
            continue;
        }
        while (index + count < end && count < WINDOW && !is_away(index + count) && pfn_of(index + count) == pfn + count)
            count++;
        word = window(pfn, count);
        for (ulong page = 0; page < count; page++) {
            ulong value = first_word(pfn + page, its_generation);

            for (ulong i = 0; i < PAGE / sizeof(ulong); i++, word++, value += step) {
                memory_sum += *word;
                if (write)
                    *word = value;
                else if (*word != value) {
                    result("memory", 0, "addr=0x%lx want=0x%lx got=0x%lx generation=%u",
                           (pfn + page) * PAGE + i * sizeof(ulong), value, *word, its_generation);
                    window_close();
                    return 1;
                }
            }
        }
        index += count;
        memory_pages += count;
    }
    window_close();
    return 0;
}

static int verify(ulong from, ulong end)
{
    ulong middle = cursor < from ? from : cursor > end ? end : cursor;

    return run(from, middle, generation + 1, 0) || run(middle, end, generation, 0);
}

int memory_verify(void)
{
    memory_pages = memory_sum = 0;
    return filled && verify(0, total);
}

struct range largest_free(void)
{
    struct range found = free_ranges[0];

    for (unsigned i = 1; i < free_count; i++)
        if (free_ranges[i].end - free_ranges[i].first > found.end - found.first)
            found = free_ranges[i];
    return found;
}

long page_give(ulong pfn)
{
    long done = pages_give(pfn, 1);

    return done == 1 ? 0 : done < 0 ? done : -1;
}

long page_take(ulong pfn)
{
    long done = pages_take(pfn, 1);

    return done == 1 ? 0 : done < 0 ? done : -1;
}

int memory_work(void)
{
    int bad;

    count_total();
    seed = option("seed", 1);
    run(0, total, generation, 1);
    filled = 1;
    bad = memory_verify();
    if (!bad)
        result("memory", 1, "mib=%lu pages=%lu seed=%lu sum=0x%llx", total / 256, total, seed, memory_sum);
    return bad;
}

void memory_beat(u32 dirty_kib)
{
    static int broken; /* one report is enough */

    if (!filled || broken)
        return;
    broken = verify(cursor < LAST ? 0 : cursor - LAST, cursor);
    for (ulong pages = (dirty_kib + 3) / 4; pages;) {
        ulong count = pages < total - cursor ? pages : total - cursor;

        run(cursor, cursor + count, generation + 1, 1);
        cursor += count;
        pages -= count;
        if (cursor == total)
            cursor = 0, generation++;
    }
    if (total) {
        ulong count = SLICE < total - slice ? SLICE : total - slice;

        broken = broken || verify(slice, slice + count);
        slice = (slice + count) % total;
    }
}

static int read_target(ulong *pages)
{
    char text[24];
    ulong kib = 0;

    if (xenbus_read("memory/target", text, sizeof(text)) <= 0)
        return 0;
    for (char *c = text; *c >= '0' && *c <= '9'; c++)
        kib = kib * 10 + *c - '0';
    *pages = kib / 4;
    return 1;
}

void balloon_start(void)
{
    count_total();
    if (!read_target(&balloon_base))
        result("balloon", 0, "no memory/target");
}

/* Pages go from the end of memory, and come back in the opposite order. */
void balloon_adjust(void)
{
    ulong target, wanted, before = balloon_pages;
    long error = 0;

    if (!balloon_base || !read_target(&target))
        return;
    wanted = target < balloon_base ? balloon_base - target : 0;
    if (wanted > total)
        wanted = total;
    while (balloon_pages < wanted && !error) {
        ulong index = total - 1 - balloon_pages;

        error = page_give(pfn_of(index));
        if (!error) {
            away[index / LONG_BITS] |= 1UL << index % LONG_BITS;
            balloon_pages++;
        }
    }
    while (balloon_pages > wanted && !error) {
        ulong index = total - balloon_pages;

        error = page_take(pfn_of(index));
        if (!error) {
            away[index / LONG_BITS] &= ~(1UL << index % LONG_BITS);
            balloon_pages--;
            if (filled)
                run(index, index + 1, index < cursor ? generation + 1 : generation, 1);
        }
    }
    if (balloon_pages != before || error)
        print("XL balloon INFO pages=%lu error=%ld\n", balloon_pages, error);
}

/*
 * Pages of the address range first_kib.. of kib (0: to the end of memory) go to Xen, one each step_kib; take_work() gets
 * them back. What is left, and what comes back, is looked at: the pattern is whole, and nothing is lost.
 */
static ulong given;

ulong given_pages(void)
{
    return given;
}

static long owned(void)
{
    u16 domain = DOMID_SELF;

    return call2(memory_op, XENMEM_current_reservation, &domain);
}

static void range_of(ulong *first, ulong *end, ulong *step)
{
    *step = option("step_kib", 4) / 4;
    *first = option("first_kib", 0) / 4;
    *end = option("kib", 0) ? *first + option("kib", 0) / 4 : total;
    *step = *step ? *step : 1;
    *first = *first < total ? *first : total;
    *end = *end < total ? *end : total;
}

void give_work(void)
{
    ulong first, end, step;
    long before, error = 0;

    count_total();
    range_of(&first, &end, &step);
    before = owned();
    for (ulong index = first; index < end && !error; index += step) {
        error = page_give(pfn_of(index));
        if (!error) {
            away[index / LONG_BITS] |= 1UL << index % LONG_BITS;
            given++;
        }
    }
    if (memory_verify())
        return;
    result("give", !error && given && owned() == before - (long)given, "pages=%lu error=%ld owned=%ld->%ld verified=%lu", given,
           error, before, owned(), memory_pages);
}

void take_work(void)
{
    ulong first, end, step, pages = given;
    long before = owned(), error = 0;

    range_of(&first, &end, &step);
    for (ulong index = first; index < end && !error; index += step) {
        error = page_take(pfn_of(index));
        if (!error) {
            away[index / LONG_BITS] &= ~(1UL << index % LONG_BITS);
            given--;
            if (filled)
                run(index, index + 1, index < cursor ? generation + 1 : generation, 1);
        }
    }
    if (memory_verify())
        return;
    result("take", !error && !given && owned() == before + (long)pages, "pages=%lu error=%ld owned=%ld->%ld verified=%lu",
           pages, error, before, owned(), memory_pages);
}

/*
 * A guest that may have more memory than it owns, on demand. `kib=` (8 MiB) of its memory are pages that begin with zeros
 * and go on with a pattern. All other memory is read. To serve that, Xen takes pages of zeros back, and must look at them to
 * their end: p2m_pod_zero_check() and its brother for 2 MiB, xen/arch/x86/mm/p2m-pod.c.
 */
#define HEAD 128 /* bytes: Xen's first look */
#define SUPERPAGE 512ul

static ulong demand_value(ulong pfn, ulong i)
{
    return i < HEAD / sizeof(ulong) ? 0 : first_word(pfn, 0) + i;
}

void demand_work(void)
{
    struct range free = largest_free();
    ulong first = (free.first + SUPERPAGE - 1) / SUPERPAGE * SUPERPAGE, end = first + option("kib", 8192) / 4;
    ulong found = 0, bad = 0;
    long before = owned();

    for (ulong pfn = first; pfn < end; pfn++) {
        ulong *word = window(pfn, 1);

        for (ulong i = HEAD / sizeof(ulong); i < PAGE / sizeof(ulong); i++)
            word[i] = demand_value(pfn, i);
    }
    for (ulong pfn = end; pfn < free.end; pfn++)
        found |= *(volatile ulong *)window(pfn, 1);
    for (ulong pfn = first; pfn < end; pfn++) {
        ulong *word = window(pfn, 1), i = 0;

        while (i < PAGE / sizeof(ulong) && word[i] == demand_value(pfn, i))
            i++;
        bad += i < PAGE / sizeof(ulong);
    }
    result("demand", end < free.end && !found && !bad && owned() == before,
           "pages=%lu lost=%lu others=0x%lx touched_mib=%lu owned=%ld->%ld", end - first, bad, found,
           (free.end - first) / 256, before, owned());
}
