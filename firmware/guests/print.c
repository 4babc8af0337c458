/* Text to the PV console ring, waiting for space, and the few functions a C library would give. */
#include "payload.h"

typedef __builtin_va_list va_list;
int echo;

u32 divide(u64 *number, u32 by)
{
    u32 high = *number >> 32, low = *number, remainder = high % by;

    high /= by;
    __asm__("divl %4" : "=a"(low), "=d"(remainder) : "0"(low), "1"(remainder), "rm"(by));
    *number = (u64)high << 32 | low;
    return remainder;
}

void *memset(void *to, int value, ulong count)
{
    for (char *p = to; count--;)
        *p++ = value;
    return to;
}

void *memcpy(void *to, const void *from, ulong count)
{
    char *p = to;

    for (const char *q = from; count--;)
        *p++ = *q++;
    return to;
}

int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

ulong length(const char *text)
{
    ulong n = 0;

    while (text[n])
        n++;
    return n;
}

struct sink {
    char *at, *end;
};

static void put(struct sink *sink, char c)
{
    if (sink->at < sink->end)
        *sink->at++ = c;
}

static void put_number(struct sink *sink, u64 value, u32 base, int width, char fill)
{
    char digits[24];
    int n = 0;

    do
        digits[n++] = "0123456789abcdef"[divide(&value, base)];
    while (value);
    while (width-- > n)
        put(sink, fill);
    while (n)
        put(sink, digits[--n]);
}

/* printf's %s %d %u %x %c %% with l and ll, width and leading zero. */
static void format_list(struct sink *sink, const char *format, va_list list)
{
    for (; *format; format++) {
        int width = 0, longs = 0;
        char fill = ' ';
        u64 value;

        if (*format != '%') {
            put(sink, *format);
            continue;
        }
        if (*++format == '0')
            fill = '0';
        for (; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + *format - '0';
        for (; *format == 'l'; format++)
            longs++;
        switch (*format) {
        case 's':
            for (const char *s = __builtin_va_arg(list, const char *); *s; s++)
                put(sink, *s);
            break;
        case 'c':
            put(sink, __builtin_va_arg(list, int));
            break;
        case 'd': {
            long number = longs ? __builtin_va_arg(list, long) : __builtin_va_arg(list, int);

            if (number < 0)
                put(sink, '-');
            put_number(sink, number < 0 ? -(u64)number : (u64)number, 10, width, fill);
            break;
        }
        case 'u':
        case 'x':
            value = longs > 1    ? __builtin_va_arg(list, u64)
                    : longs == 1 ? __builtin_va_arg(list, ulong)
                                 : __builtin_va_arg(list, u32);
            put_number(sink, value, *format == 'u' ? 10 : 16, width, fill);
            break;
        default:
            put(sink, *format);
        }
    }
}

void format_list_into(char *to, unsigned size, const char *format, va_list list)
{
    struct sink sink = {to, to + size - 1};

    format_list(&sink, format, list);
    *sink.at = 0;
}

void format_into(char *to, unsigned size, const char *format, ...)
{
    va_list list;

    __builtin_va_start(list, format);
    format_list_into(to, size, format, list);
    __builtin_va_end(list);
}

static void console_write(const char *text, u32 count)
{
    while (count) {
        u32 produced = console_ring->out_prod, room = sizeof(console_ring->out) - (produced - console_ring->out_cons);

        if (!room) {
            wait_ports(&console_port, 1, system_time() + 10000000);
            continue;
        }
        for (; count && room; count--, room--)
            console_ring->out[produced++ % sizeof(console_ring->out)] = *text++;
        memory_barrier();
        console_ring->out_prod = produced;
        port_notify(console_port);
    }
}

void print(const char *format, ...)
{
    static char line[512];
    struct sink sink = {line, line + sizeof(line)};
    va_list list;

    __builtin_va_start(list, format);
    format_list(&sink, format, list);
    __builtin_va_end(list);
    if (echo)
        call3(console_io, CONSOLEIO_write, sink.at - line, line);
    if (console_ring)
        console_write(line, sink.at - line);
}

void print_flush(void)
{
    u64 enough = system_time() + 2000000000;

    while (*(volatile u32 *)&console_ring->out_cons != console_ring->out_prod && system_time() < enough)
        wait_ports(&console_port, 1, system_time() + 5000000);
}
