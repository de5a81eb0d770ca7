/* with: kernels/status.c host/json.c host/file.c host/safetensors.c host/store.c */
/* Any bytes as a safetensors file: refused with a message, or every tensor lies within the file, tiles it, and can be read.
 * The first byte of an input chooses: 'r' takes the rest as the file, all others put the right length before a header, which ends at
 * the first '|'. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store.h"

static void check(const Store *s, uint64_t size) {
    uint64_t data = 0;
    for (size_t i = 0; i < store_count(s); i++) {
        const Entry *e = store_entry(s, i);
        uint64_t bytes = safetensors_element(e->dtype);
        for (int d = 0; d < e->dims; d++)
            if (e->shape[d] < 0 || __builtin_mul_overflow(bytes, (uint64_t)e->shape[d], &bytes))
                abort();
        char *buffer = malloc(e->bytes + 1);
        if (!buffer || bytes != e->bytes || e->offset > size || e->bytes > size - e->offset || store_find(s, e->name) != e ||
            store_read(s, e, 0, buffer, e->bytes) != OK || store_read(s, e, 1, buffer, e->bytes) == OK)
            abort();
        free(buffer);
        data += e->bytes;
    }
    if (data > size - 8)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int fd = -1;
    static char path[64];
    Store *s;
    if (fd < 0) {
        fd = memfd_create("fuzz", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (!size)
        return 0;
    const uint8_t *bar = *data != 'r' ? memchr(data, '|', size) : NULL;
    uint64_t header = bar ? (uint64_t)(bar - data - 1) : 0, at = 0;
    if (ftruncate(fd, 0))
        abort();
    if (bar) {
        if (pwrite(fd, &header, 8, 0) != 8 || pwrite(fd, data + 1, header, 8) != (ssize_t)header)
            abort();
        at = 8 + header;
        size -= header + 1;
        data = bar;
    }
    if (pwrite(fd, data + 1, size - 1, (off_t)at) != (ssize_t)(size - 1))
        abort();
    size += at - 1;
    if (store_open(path, &s) == OK) {
        check(s, size);
        store_close(s);
    } else if (s || !strstr(status_message(), path)) {
        abort();
    }
    return 0;
}
