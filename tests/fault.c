/* Faults at chosen system calls, for a program that is started with this in LD_PRELOAD.
 * ONN_FAULT=CALL:N:ACTION   CALL: mkostemp, write, fsync, rename, unlink, rmdir, mkdir, pread, or pwrite and pread_back of a file without
 *   a name; N: which one, from 1.
 *   ACTION: kill (before the call), tear (half a write, then killed), short (one byte is moved; 4096 by pwrite and pread_back), EINTR,
 *   EINVAL or EBADMSG (once), or ENOSPC, EIO: from that call on, as a full or broken disk stays so.
 * ONN_FAULT_LOG=FILE        one line for each such call, to learn what there is to choose from. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct { const char *call; int seen; } calls[] = {{"mkostemp", 0}, {"write", 0}, {"fsync", 0}, {"rename", 0}, {"unlink", 0}, {"rmdir", 0}, {"mkdir", 0},
                                               {"pwrite", 0}, {"pread", 0}, {"pread_back", 0}};

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is(const char *action, const char *what) { return action && !strcmp(action, what); }

/* What is to happen at this call: NULL, or the action. Errors are put into errno. */
static const char *next(const char *call) {
    const char *log = getenv("ONN_FAULT_LOG"), *plan = getenv("ONN_FAULT");
    int n = 0, wanted = 0;
    char name[16];
    static _Thread_local char action[16];
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (is(call, calls[i].call))
            n = __atomic_add_fetch(&calls[i].seen, 1, __ATOMIC_RELAXED); /* readers are threads */
    if (log) {
        int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        char line[32];
        int length = snprintf(line, sizeof line, "%s\n", call);
        if (REAL(write)(fd, line, (size_t)length) != length)
            abort();
        close(fd);
    }
    if (!plan || sscanf(plan, "%15[^:]:%d:%15s", name, &wanted, action) != 3 || strcmp(name, call))
        return NULL;
    int disk = is(action, "ENOSPC") || is(action, "EIO");
    if (n != wanted && !(disk && n > wanted))
        return NULL;
    if (is(action, "kill"))
        raise(SIGKILL);
    errno = is(action, "ENOSPC") ? ENOSPC : is(action, "EIO") ? EIO : is(action, "EINTR") ? EINTR : is(action, "EBADMSG") ? EBADMSG
            : is(action, "EINVAL") ? EINVAL : 0;
    return action;
}

static int fails(const char *call) { return next(call) && errno; }

int mkostemp(char *path, int flags) { return fails("mkostemp") ? -1 : REAL(mkostemp)(path, flags); }
int fsync(int fd) { return fails("fsync") ? -1 : REAL(fsync)(fd); }
int rename(const char *from, const char *to) { return fails("rename") ? -1 : REAL(rename)(from, to); }
int unlink(const char *path) { return fails("unlink") ? -1 : REAL(unlink)(path); }
int rmdir(const char *path) { return fails("rmdir") ? -1 : REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { return access(path, F_OK) && fails("mkdir") ? -1 : REAL(mkdir)(path, mode); }

ssize_t write(int fd, const void *data, size_t bytes) {
    struct stat st;
    if (fd <= 2 || fstat(fd, &st) || !S_ISREG(st.st_mode))
        return REAL(write)(fd, data, bytes);
    const char *action = next("write");
    if (is(action, "tear")) {
        ssize_t half = REAL(write)(fd, data, bytes / 2);
        (void)half;
        raise(SIGKILL);
    }
    if (is(action, "short"))
        return REAL(write)(fd, data, bytes > 1);
    return action && errno ? -1 : REAL(write)(fd, data, bytes);
}

static int nameless(int fd) {
    struct stat st;
    return !fstat(fd, &st) && S_ISREG(st.st_mode) && !st.st_nlink;
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) {
    const char *action = nameless(fd) ? next("pwrite") : NULL;
    if (is(action, "short"))
        return REAL(pwrite)(fd, data, bytes > 4096 ? 4096 : bytes, at);
    return action && errno ? -1 : REAL(pwrite)(fd, data, bytes, at);
}

ssize_t pread(int fd, void *data, size_t bytes, off_t at) {
    int back = nameless(fd);
    const char *action = next(back ? "pread_back" : "pread");
    if (is(action, "short"))
        return REAL(pread)(fd, data, back && bytes > 4096 ? 4096 : back ? bytes : bytes > 1, at);
    return action && errno ? -1 : REAL(pread)(fd, data, bytes, at);
}
