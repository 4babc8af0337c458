/* A small xenstore client: one request at a time, watch events noted as they come by. */
#include "payload.h"

static u32 request;
static int changed;

static void store_wait(void)
{
    wait_ports(&store_port, 1, system_time() + 1000000000);
}

static void send(const void *data, ulong count)
{
    const char *from = data;

    while (count) {
        u32 produced = store_ring->req_prod;
        u32 room = XENSTORE_RING_SIZE - (produced - *(volatile u32 *)&store_ring->req_cons);

        if (!room) {
            port_notify(store_port);
            store_wait();
            continue;
        }
        for (; count && room; count--, room--)
            store_ring->req[produced++ % XENSTORE_RING_SIZE] = *from++;
        memory_barrier();
        store_ring->req_prod = produced;
    }
}

static void receive(void *data, ulong count)
{
    char *to = data;

    while (count) {
        u32 consumed = store_ring->rsp_cons, there = *(volatile u32 *)&store_ring->rsp_prod - consumed;

        if (!there) {
            store_wait();
            continue;
        }
        memory_barrier();
        for (; count && there; count--, there--)
            *to++ = store_ring->rsp[consumed++ % XENSTORE_RING_SIZE];
        memory_barrier();
        store_ring->rsp_cons = consumed;
        port_notify(store_port);
    }
}

/* One message in; 1 when it answers `wanted`. At most size - 1 bytes of its text are kept. */
static int take_message(u32 wanted, struct xsd_sockmsg *header, char *into, unsigned size)
{
    static char text[XENSTORE_PAYLOAD_MAX + 1];
    ulong kept;

    receive(header, sizeof(*header));
    if (header->len > XENSTORE_PAYLOAD_MAX) {
        print("XL xenbus FAIL a message of %u bytes\n", header->len);
        crash();
    }
    receive(text, header->len);
    if (header->type == XS_WATCH_EVENT) {
        changed = 1;
        return 0;
    }
    if (header->req_id != wanted || !wanted)
        return 0;
    kept = header->len < size ? header->len : size - 1;
    memcpy(into, text, kept);
    into[kept] = 0;
    return 1;
}

/* `first` goes out with its NUL, `second` (may be NULL) without unless `terminated`. */
static long transact(u32 type, const char *first, const char *second, int terminated, char *into, unsigned size)
{
    ulong first_length = length(first) + 1, second_length = second ? length(second) + terminated : 0;
    struct xsd_sockmsg header = {type, ++request, 0, first_length + second_length};

    if (!store_ring)
        return -1;
    send(&header, sizeof(header));
    send(first, first_length);
    send(second, second_length);
    port_notify(store_port);
    while (!take_message(request, &header, into, size))
        ;
    return header.type == XS_ERROR ? -1 : (long)header.len;
}

long xenbus_read(const char *path, char *into, unsigned size)
{
    long count = transact(XS_READ, path, 0, 0, into, size);

    if (count < 0)
        into[0] = 0;
    return count;
}

long xenbus_write(const char *path, const char *value)
{
    char answer[32];

    return transact(XS_WRITE, path, value, 0, answer, sizeof(answer));
}

long xenbus_write_number(const char *path, u32 number)
{
    char text[12];

    format_into(text, sizeof(text), "%u", number);
    return xenbus_write(path, text);
}

void xenbus_watch(const char *path)
{
    char answer[32];

    if (transact(XS_WATCH, path, "w", 1, answer, sizeof(answer)) < 0)
        print("XL xenbus INFO no watch on %s: %s\n", path, answer);
}

void xenbus_start(int resumed)
{
    if (resumed) /* half an answer to the former life may lie there */
        store_ring->rsp_cons = store_ring->rsp_prod;
    xenbus_write("control/feature-suspend", "1");
    xenbus_write("control/feature-poweroff", "1");
    xenbus_write("control/feature-reboot", "1");
    xenbus_watch("control/shutdown");
    xenbus_watch("memory/target");
    changed = 1;
}

void xenbus_poll(void)
{
    struct xsd_sockmsg header;
    char nothing[1];

    while (store_ring && *(volatile u32 *)&store_ring->rsp_prod != store_ring->rsp_cons)
        take_message(0, &header, nothing, sizeof(nothing));
}

int xenbus_changed(void)
{
    int was = changed;

    changed = 0;
    return was;
}
