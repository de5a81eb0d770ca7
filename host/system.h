/* The machine and its file tree, for bindings: no Lua here. Every Status carries a message with the path. */
#ifndef ONN_SYSTEM_H
#define ONN_SYSTEM_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

double system_now(void);                      /* seconds, monotonic */
int system_cpu_count(void);                   /* processors this process may use: affinity and container quota */
uint64_t system_total_ram(void);              /* bytes, container limit included */
uint64_t system_available_ram(void);          /* bytes that can be taken now, container limit included */
uint64_t system_rss(int peak);                /* resident bytes of this process, now or at its highest */
const char *system_cpu_model(void);           /* "AMD EPYC", ...; never NULL */
Status system_mkdirs(const char *path);       /* with its parents; an existing directory is fine */
Status system_remove_tree(const char *path);  /* nothing there is fine; symbolic links are removed, not followed */
Status system_hash_file(const char *path, char hex[17]); /* XXH3, 64 bits */

/* A child process: its standard output and error are gathered (at most 64 MiB each); after `timeout` seconds it is killed. */
typedef struct Child {
    int status, signal, timed_out; /* exit status, or the signal that ended it */
    char *output, *errors;         /* free() both */
    size_t output_length, errors_length;
} Child;
Status system_spawn(char *const *argv, double timeout, Child *out);

#endif
