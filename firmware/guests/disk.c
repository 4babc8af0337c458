/*
 * The frontend of a block device, first honest, then lying. Linux's backend is drivers/block/xen-blkback.
 * The ring: xen/include/public/io/ring.h, io/blkif.h. The states: io/xenbus.h.
 */
#include "payload.h"

#define HOME "device/vbd/51712/" /* xvda */
#define SECTOR 512u
#define WORDS (SECTOR / sizeof(u32))
#define ENTRIES 32
#define SECONDS(n) ((n) * 1000000000ull)
#define NO_ANSWER 1 /* no status of the protocol */

enum { REF_RING = 16, REF_PAGE, REF_READONLY, REF_FOREIGN, REF_FREE, LAST_REF };
enum { GONE, INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED };
enum { READ, OKAY = 0, ERROR = -1, NOT_SUPPORTED = -2 };

struct request {
    u8 operation, segment_count;
    u16 handle;
    u64 id, sector;
    struct {
        u32 ref;
        u8 first, last;
    } segments[11];
};
struct response {
    u64 id;
    u8 operation;
    s16 status;
};
struct ring {
    u32 req_prod, req_event, rsp_prod, rsp_event;
    u8 pad[48];
    union {
        struct request request;
        struct response response;
    } entries[ENTRIES];
};
_Static_assert(sizeof(struct request) == (sizeof(ulong) == 8 ? 112 : 108), "request");
_Static_assert(sizeof(struct response) == (sizeof(ulong) == 8 ? 16 : 12), "response");

typedef u32 page_t[PAGE / sizeof(u32)];
static page_t table_page __attribute__((aligned(4096)));
static page_t ring_page __attribute__((aligned(4096)));
static page_t pages[5] __attribute__((aligned(4096))); /* the second and the fourth are granted */
static volatile struct grant_entry_v1 *const table = (void *)table_page;
static volatile struct ring *const ring = (void *)ring_page;
static u32 port, answered, beats;
static u16 backend;
static u32 sectors;
static char backend_state[128];

static void grant(u32 ref, const void *page, u16 domain, u16 flags)
{
    table[ref].domid = domain;
    table[ref].frame = platform_frame(page);
    memory_barrier();
    table[ref].flags = GTF_permit_access | flags;
}

/* 0: the other domain still maps it. */
static int grant_end(u32 ref)
{
    u16 flags = table[ref].flags & ~(GTF_reading | GTF_writing);

    return __sync_bool_compare_and_swap(&table[ref].flags, flags, 0);
}

static u32 read_number(const char *path)
{
    char text[12], *c = text;
    u32 number = 0;

    for (xenbus_read(path, text, sizeof(text)); *c >= '0' && *c <= '9'; c++)
        number = number * 10 + *c - '0';
    return number;
}

static int is_backend(u32 state)
{
    u64 until = system_time() + SECONDS(60);

    while (read_number(backend_state) != state) {
        if (system_time() > until)
            return 0;
        wait_ports(0, 0, system_time() + SECONDS(1) / 20);
    }
    return 1;
}

/* `name` below the backend's home. */
static u32 backend_number(const char *name)
{
    char path[sizeof(backend_state)];
    ulong n = length(backend_state) - length("state");

    memcpy(path, backend_state, n);
    memcpy(path + n, name, length(name) + 1);
    return read_number(path);
}

static int find_backend(void)
{
    long n = xenbus_read(HOME "backend", backend_state, sizeof(backend_state) - 16);

    if (n <= 0)
        return 0;
    memcpy(backend_state + n, "/state", 7);
    backend = read_number(HOME "backend-id");
    return 1;
}

static int connect(void)
{
    struct evtchn_alloc_unbound unbound = {DOMID_SELF, backend, 0};

    if (!is_backend(INIT_WAIT))
        return 0;
    memset(ring_page, 0, PAGE);
    ring->req_event = ring->rsp_event = 1;
    answered = 0;
    grant(REF_RING, ring_page, backend, 0);
    if (call2(event_channel_op, EVTCHNOP_alloc_unbound, &unbound))
        return 0;
    port = unbound.port;
    xenbus_write_number(HOME "ring-ref", REF_RING);
    xenbus_write_number(HOME "event-channel", port);
    xenbus_write(HOME "protocol", sizeof(ulong) == 8 ? "x86_64-abi" : "x86_32-abi");
    xenbus_write_number(HOME "state", INITIALISED);
    if (!is_backend(CONNECTED))
        return 0;
    sectors = backend_number("sectors");
    xenbus_write_number(HOME "state", CONNECTED);
    return 1;
}

static int disconnect(void)
{
    int is_closed;

    xenbus_write_number(HOME "state", CLOSING);
    is_backend(CLOSING);
    xenbus_write_number(HOME "state", CLOSED);
    is_closed = is_backend(CLOSED);
    call2(event_channel_op, EVTCHNOP_close, &port);
    return is_closed;
}

/* The status of the one answer to this request; NO_ANSWER: there is none, or another one, or more. */
static int ask(const struct request *request, u64 patience)
{
    u64 until = system_time() + patience;
    static u64 id;
    volatile struct response *response = &ring->entries[answered % ENTRIES].response;
    struct request *slot = (struct request *)&ring->entries[ring->req_prod % ENTRIES].request;

    *slot = *request;
    slot->id = ++id;
    memory_barrier();
    ring->req_prod++;
    ring->rsp_event = answered + 1;
    memory_barrier();
    port_notify(port);
    while (ring->rsp_prod == answered && system_time() < until)
        wait_ports(&port, 1, system_time() + SECONDS(1) / 10);
    memory_barrier();
    if (ring->rsp_prod != answered + 1)
        return NO_ANSWER;
    answered++;
    return response->id == id && response->operation == request->operation ? response->status : NO_ANSWER;
}

static struct request reading(u32 ref, u64 sector)
{
    return (struct request){.operation = READ, .segment_count = 1, .sector = sector, .segments = {{ref, 0, 7}}};
}

/* Each word of the disk holds its own number, counted from 1. Returns how many words of the page do not. */
static u32 wrong_words(const u32 *page, u64 sector)
{
    u32 wrong = 0;

    for (u32 i = 0; i < PAGE / sizeof(u32); i++)
        wrong += page[i] != (u32)(sector * WORDS + i + 1);
    return wrong;
}

static void blank(void)
{
    memset(pages, 0x5a, sizeof(pages));
}

/* How many words of a page are not as blank() left them. */
static u32 touched(const u32 *page)
{
    u32 changed = 0;

    for (u32 i = 0; i < PAGE / sizeof(u32); i++)
        changed += page[i] != 0x5a5a5a5a;
    return changed;
}

static int honest(const char *name, u64 sector)
{
    struct request request = reading(REF_PAGE, sector);
    u32 wrong, around;
    int status;

    blank();
    status = ask(&request, SECONDS(20));
    wrong = wrong_words(pages[1], sector);
    around = touched(pages[0]) + touched(pages[2]);
    if (name || status || wrong || around)
        result(name ? name : "disk-beat", !status && !wrong && !around, "status=%d sector=%llu wrong=%u around=%u",
               status, sector, wrong, around);
    return !status && !wrong && !around;
}

void disk_work(void)
{
    long error = grant_frame_map(table_page);

    if (error || !find_backend() || !connect()) {
        result("disk", 0, "error=%ld no backend, or it does not connect: %s", error, backend_state);
        return;
    }
    result("disk", sectors >= 64, "sectors=%u backend=%u port=%u", sectors, backend, port);
    grant(REF_PAGE, pages[1], backend, 0);
    grant(REF_READONLY, pages[3], backend, GTF_readonly);
    grant(REF_FOREIGN, pages[3], backend + 1, 0);
    honest("disk-read", 8);
}

void disk_beat(void)
{
    if (sectors)
        honest(0, ++beats * 8 % (sectors - 8));
}

/* The backend must answer with this status, and touch nothing. */
static void lie(const char *name, struct request request, int wanted)
{
    u32 changed = 0;
    int status;

    blank();
    status = ask(&request, SECONDS(20));
    for (u32 i = 0; i < sizeof(pages) / PAGE; i++)
        changed += touched(pages[i]);
    result(name, status == wanted && !changed, "status=%d want=%d words changed=%u", status, wanted, changed);
}

static void lie_about_requests(void)
{
    struct request request;

    lie("lie-free-reference", reading(REF_FREE, 8), ERROR);
    lie("lie-far-reference", reading(0x7fffffff, 8), ERROR);
    lie("lie-readonly", reading(REF_READONLY, 8), ERROR);
    lie("lie-of-another-domain", reading(REF_FOREIGN, 8), ERROR);
    lie("lie-beyond-the-end", reading(REF_PAGE, sectors), ERROR);
    lie("lie-across-the-end", reading(REF_PAGE, sectors - 4), ERROR);
    lie("lie-far-sector", reading(REF_PAGE, ~3ull), ERROR);
    request = reading(REF_PAGE, 8);
    request.segment_count = 255;
    lie("lie-255-segments", request, ERROR);
    request.segment_count = 0;
    lie("lie-no-segment", request, ERROR);
    request.segment_count = 2; /* the second one does not exist: the first is mapped, and must be unmapped again */
    request.segments[1].ref = REF_FREE, request.segments[1].last = 7;
    lie("lie-half", request, ERROR);
    request = reading(REF_PAGE, 8);
    request.segments[0].last = 200;
    lie("lie-beyond-the-page", request, ERROR);
    request.segments[0].first = 5, request.segments[0].last = 2;
    lie("lie-backwards", request, ERROR);
    request = reading(REF_PAGE, 8);
    request.operation = 99;
    lie("lie-operation", request, NOT_SUPPORTED);
}

/* All grants are taken back within `patience`. */
static void end_all(const char *name, u64 patience)
{
    u64 until = system_time() + patience;
    u32 held;

    for (;;) {
        held = 0;
        for (u32 ref = REF_RING; ref < LAST_REF; ref++)
            if (!grant_end(ref))
                held |= 1u << (ref - REF_RING);
        if (!held || system_time() >= until)
            break;
        wait_ports(0, 0, system_time() + SECONDS(1) / 20);
    }
    result(name, !held, "held=0x%x", held);
}

void lies_work(void)
{
    struct request request = reading(REF_PAGE, 8);
    int status;

    if (!sectors)
        return;
    lie_about_requests();
    honest("disk-after-lies", 16);
    blank();
    ring->req_prod += 1000; /* more than the ring has room for: the backend may not believe any of it */
    memory_barrier();
    port_notify(port);
    status = ask(&request, SECONDS(3));
    result("lie-index", status == NO_ANSWER && !touched(pages[1]), "status=%d want=%d responses=%u of %u", status,
           NO_ANSWER, ring->rsp_prod, answered);
    result("disk-closed", disconnect(), "state=%u", read_number(backend_state));
    end_all("grants-ended", 0);
    xenbus_write_number(HOME "state", INITIALISING);
    if (!connect()) {
        result("disk-again", 0, "state=%u", read_number(backend_state));
        return;
    }
    grant(REF_PAGE, pages[1], backend, 0);
    honest("disk-again", 24);
}

/*
 * The backend's domain dies: Xen ends its mappings, and its end of the event channel. The toolstack removes the domain's
 * nodes from xenstore first.
 */
void orphan_work(void)
{
    struct evtchn_status status = {.dom = DOMID_SELF, .port = port};
    u64 until;
    long error;

    if (!sectors)
        return;
    print("XL orphan INFO waits\n");
    if (!is_backend(GONE)) {
        result("orphan-port", 0, "the backend lives: state=%u", read_number(backend_state));
        return;
    }
    until = system_time() + SECONDS(60);
    while (!(error = call2(event_channel_op, EVTCHNOP_status, &status)) && status.status != EVTCHNSTAT_unbound &&
           system_time() < until)
        wait_ports(0, 0, system_time() + SECONDS(1) / 20);
    result("orphan-port", !error && status.status == EVTCHNSTAT_unbound && (u16)status.detail[0] == backend,
           "error=%ld status=%u want=%u domain=%u want=%u", error, status.status, EVTCHNSTAT_unbound,
           (u16)status.detail[0], backend);
    expect("orphan-send", call2(event_channel_op, EVTCHNOP_send, &port), 0);
    end_all("orphan-grants", SECONDS(60));
    sectors = 0; /* no more reads */
}
