#include "status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[1024] = "no error";

Status fail(Status code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    for (char *p = message; *p; p++) /* names come from files: a line end or an escape in one must not reach the terminal */
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    return code;
}

const char *status_message(void) { return message; }

const char *status_name(Status code) {
    switch (code) {
    case OK: return "ok";
    case ERR_ARGUMENT: return "argument";
    case ERR_MEMORY: return "memory";
    case ERR_IO: return "io";
    case ERR_FORMAT: return "format";
    case ERR_UNSUPPORTED: return "unsupported";
    case ERR_INTERRUPTED: return "interrupted";
    }
    return "unknown";
}
