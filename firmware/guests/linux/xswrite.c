/*
 * Writes a node of xenstore: xswrite PATH VALUE. A relative PATH is below the guest's own home.
 * The message is that of xen/include/public/io/xs_wire.h: type, request, transaction, length; path, NUL, value.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { XS_WRITE = 11, XS_ERROR = 16, HEADER = 16, ROOM = 1024 };

int main(int argc, char **argv)
{
    char message[HEADER + ROOM] = {0};
    uint32_t head[4] = {XS_WRITE, 1, 0, 0};

    if (argc != 3 || strlen(argv[1]) + 1 + strlen(argv[2]) > ROOM)
        return 2;
    head[3] = strlen(argv[1]) + 1 + strlen(argv[2]);
    memcpy(message, head, HEADER);
    strcpy(message + HEADER, argv[1]);
    memcpy(message + HEADER + strlen(argv[1]) + 1, argv[2], strlen(argv[2]));

    int bus = open("/dev/xen/xenbus", O_RDWR);
    if (bus < 0 || write(bus, message, HEADER + head[3]) < 0 || read(bus, head, HEADER) != HEADER) {
        perror("xswrite");
        return 1;
    }
    ssize_t length = read(bus, message, head[3] < ROOM ? head[3] : ROOM);
    if (head[0] != XS_ERROR)
        return 0;
    fprintf(stderr, "xswrite: %s: %.*s\n", argv[1], (int)(length > 0 ? length : 0), message);
    return 1;
}
