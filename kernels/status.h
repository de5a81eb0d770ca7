/* Status: what every fallible C function returns, with a message set where the facts are known. */
#ifndef ONN_STATUS_H
#define ONN_STATUS_H

typedef enum Status {
    OK = 0,
    ERR_ARGUMENT,    /* the caller's mistake: shapes, dtypes, ranges */
    ERR_MEMORY,      /* over budget or out of memory; nothing was changed */
    ERR_IO,          /* the operating system refused: open, read, write, fsync */
    ERR_FORMAT,      /* a file is not what it says it is */
    ERR_UNSUPPORTED, /* a right request that this build or device cannot serve */
    ERR_INTERRUPTED  /* a signal asked to stop */
} Status;

/* fail() : sets this thread's message and returns `code`, so that `return fail(ERR_IO, ...)` reads well. */
Status fail(Status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* status_message() : the text of this thread's last failure; never NULL. */
const char *status_message(void);

/* status_name() : "io", "format", ...: the third value of `nil, message, code` in Lua. */
const char *status_name(Status code);

#endif
