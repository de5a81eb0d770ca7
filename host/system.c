#define _GNU_SOURCE
#include "system.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "file.h"

double system_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The first number of a small file; `absent` where there is none ("max" in a container's limits). */
static double read_number(const char *path, double absent) {
    double value = absent;
    FILE *f = fopen(path, "r");
    if (f) {
        if (fscanf(f, "%lf", &value) != 1)
            value = absent;
        fclose(f);
    }
    return value;
}

int system_cpu_count(void) {
    cpu_set_t set;
    int n = !sched_getaffinity(0, sizeof set, &set) ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    double quota = -1, period = 100000;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f) {
        if (fscanf(f, "%lf %lf", &quota, &period) < 1)
            quota = -1;
        fclose(f);
    } else {
        quota = read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1);
        period = read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000);
    }
    if (quota > 0 && period > 0 && quota / period < n)
        n = (int)(quota / period + 0.999);
    return n < 1 ? 1 : n;
}

static uint64_t meminfo(const char *key) {
    char line[128];
    uint64_t kib = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, key, strlen(key)))
            kib = strtoull(line + strlen(key), NULL, 10);
    if (f)
        fclose(f);
    return kib << 10;
}

/* A counter of a group's memory.stat, in bytes; 0 if there is none. */
static uint64_t group_stat(const char *group, const char *key) {
    char path[PATH_MAX + 32], line[128];
    uint64_t value = 0;
    snprintf(path, sizeof path, "%s/memory.stat", group);
    FILE *f = fopen(path, "r");
    size_t n = strlen(key);
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, key, n) && line[n] == ' ')
            value = strtoull(line + n, NULL, 10);
    if (f)
        fclose(f);
    return value;
}

typedef struct Group {
    uint64_t limit, left; /* the tightest limit met so far, and the least that is left under any */
} Group;

/* Takes the limit of one group into account. Its file cache can be dropped, so it counts as left. */
static void group_look(Group *g, const char *group, const char *limit_name, const char *used_name) {
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", group, limit_name);
    double limit = read_number(path, 0);
    if (limit <= 0 || limit > 9e18)
        return;
    snprintf(path, sizeof path, "%s/%s", group, used_name);
    double used = read_number(path, 0) - (double)group_stat(group, "inactive_file") - (double)group_stat(group, "active_file");
    uint64_t left = limit > used ? (uint64_t)(limit - (used > 0 ? used : 0)) : 0;
    g->limit = !g->limit || limit < (double)g->limit ? (uint64_t)limit : g->limit;
    g->left = left < g->left ? left : g->left;
}

/* This process's control group and all above it, of version 2 or 1. Within a container their paths may begin at its own root. */
static Group container_limit(void) {
    Group g = {0, UINT64_MAX};
    FILE *f = fopen("/proc/self/cgroup", "r");
    char line[PATH_MAX], group[PATH_MAX + 32];
    while (f && fgets(line, sizeof line, f)) {
        char *path = strrchr(line, ':');
        int two = !strncmp(line, "0::", 3);
        if (!path || (!two && !strstr(line, ":memory:")))
            continue;
        path[strcspn(path, "\n")] = 0;
        for (char *end = path + strlen(path); end; end = strrchr(path + 1, '/')) {
            *end = 0;
            snprintf(group, sizeof group, "/sys/fs/cgroup%s%s", two ? "" : "/memory", path + 1);
            if (two)
                group_look(&g, group, "memory.max", "memory.current");
            else
                group_look(&g, group, "memory.limit_in_bytes", "memory.usage_in_bytes");
        }
    }
    if (f)
        fclose(f);
    group_look(&g, "/sys/fs/cgroup", "memory.max", "memory.current");
    group_look(&g, "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes");
    return g;
}

uint64_t system_total_ram(void) {
    uint64_t total = meminfo("MemTotal:"), limit = container_limit().limit;
    return limit && limit < total ? limit : total;
}

uint64_t system_available_ram(void) {
    uint64_t available = meminfo("MemAvailable:"), left = container_limit().left;
    return left < available ? left : available;
}

uint64_t system_rss(int peak) {
    struct rusage usage;
    if (peak)
        return getrusage(RUSAGE_SELF, &usage) ? 0 : (uint64_t)usage.ru_maxrss << 10;
    unsigned long long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f) {
        if (fscanf(f, "%llu %llu", &pages, &resident) != 2)
            resident = 0;
        fclose(f);
    }
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

const char *system_cpu_model(void) {
    static char model[128];
    char line[256];
    if (*model)
        return model;
    snprintf(model, sizeof model, "unknown processor");
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (!strncmp(line, "model name", 10) && colon) {
            line[strcspn(line, "\n")] = 0;
            snprintf(model, sizeof model, "%s", colon + 2);
            break;
        }
    }
    if (f)
        fclose(f);
    return model;
}

Status system_mkdirs(const char *path) {
    if (!*path)
        return fail(ERR_IO, "a directory without a name");
    char *copy = strdup(path);
    struct stat st;
    if (!copy)
        return fail(ERR_MEMORY, "out of memory");
    Status status = OK;
    for (char *p = copy + 1; status == OK; p++) {
        char c = *p;
        if (c && c != '/')
            continue;
        *p = 0;
        if (!mkdir(copy, 0777))
            status = file_sync_directory(copy);
        else if (errno != EEXIST || stat(copy, &st) || !S_ISDIR(st.st_mode))
            status = fail(ERR_IO, "%s: %s", copy, strerror(errno == EEXIST ? ENOTDIR : errno));
        *p = c;
        if (!c)
            break;
    }
    free(copy);
    return status;
}

Status system_remove_tree(const char *path) {
    struct stat st;
    if (lstat(path, &st))
        return errno == ENOENT ? OK : fail(ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return unlink(path) ? fail(ERR_IO, "%s: %s", path, strerror(errno)) : OK;
    DIR *d = opendir(path);
    if (!d)
        return fail(ERR_IO, "%s: %s", path, strerror(errno));
    Status status = OK;
    /* cppcheck-suppress readdirCalled ; safe: the DIR is ours alone, and readdir_r is deprecated */
    for (struct dirent *e; status == OK && (e = readdir(d));) {
        char *inner;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        if (asprintf(&inner, "%s/%s", path, e->d_name) < 0) {
            status = fail(ERR_MEMORY, "out of memory");
        } else {
            status = system_remove_tree(inner);
            free(inner);
        }
    }
    closedir(d);
    if (status == OK && rmdir(path))
        status = fail(ERR_IO, "%s: %s", path, strerror(errno));
    return status;
}

Status system_hash_file(const char *path, char hex[17]) {
    int fd;
    uint64_t size;
    enum { STEP = 1 << 20 };
    Status status = file_open(path, &fd, &size);
    if (status != OK)
        return status;
    char *buffer = malloc(STEP);
    XXH3_state_t *state = XXH3_createState();
    if (!buffer || !state)
        status = fail(ERR_MEMORY, "out of memory");
    else
        XXH3_64bits_reset(state);
    for (uint64_t at = 0; status == OK && at < size;) {
        size_t n = size - at < STEP ? (size_t)(size - at) : STEP;
        status = file_read_at(fd, path, at, buffer, n);
        if (status == OK)
            XXH3_64bits_update(state, buffer, n);
        at += n;
    }
    if (status == OK)
        snprintf(hex, 17, "%016llx", (unsigned long long)XXH3_64bits_digest(state));
    XXH3_freeState(state);
    free(buffer);
    close(fd);
    return status;
}

static Status append(char **text, size_t *length, size_t *room, const char *data, size_t n) {
    enum { LIMIT = 64 << 20 };
    if (*length + n > LIMIT)
        return fail(ERR_IO, "a child process wrote more than %d bytes", LIMIT);
    if (*length + n + 1 > *room) {
        size_t wanted = (*length + n + 1) * 2;
        char *grown = realloc(*text, wanted);
        if (!grown)
            return fail(ERR_MEMORY, "out of memory");
        *text = grown;
        *room = wanted;
    }
    memcpy(*text + *length, data, n);
    *length += n;
    (*text)[*length] = 0;
    return OK;
}

static void run_child(char *const *argv, int out, int err) {
    int null = open("/dev/null", O_RDONLY);
    sigset_t none;
    dup2(null, 0), dup2(out, 1), dup2(err, 2);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    execvp(argv[0], argv);
    fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

Status system_spawn(char *const *argv, double timeout, Child *c) {
    int out[2] = {-1, -1}, err[2] = {-1, -1}, state = 0;
    size_t room[2] = {0, 0};
    *c = (Child){0};
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) {
        if (out[0] >= 0)
            close(out[0]), close(out[1]);
        return fail(ERR_IO, "pipe: %s", strerror(errno));
    }
    pid_t pid = fork();
    if (!pid)
        run_child(argv, out[1], err[1]);
    close(out[1]), close(err[1]);
    Status status = pid < 0 ? fail(ERR_IO, "fork: %s", strerror(errno)) : OK;
    double end = system_now() + timeout;
    struct pollfd fds[2] = {{.fd = out[0], .events = POLLIN}, {.fd = err[0], .events = POLLIN}};
    while (status == OK && (fds[0].fd >= 0 || fds[1].fd >= 0)) {
        double left = timeout > 0 ? end - system_now() : 1;
        if (left <= 0) {
            c->timed_out = 1;
            break;
        }
        if (poll(fds, 2, left > 1 ? 1000 : (int)(left * 1000) + 1) < 0 && errno != EINTR)
            status = fail(ERR_IO, "poll: %s", strerror(errno));
        for (int i = 0; i < 2 && status == OK; i++) {
            char buffer[65536];
            if (fds[i].fd < 0 || !fds[i].revents)
                continue;
            ssize_t n = read(fds[i].fd, buffer, sizeof buffer);
            if (n > 0)
                status = append(i ? &c->errors : &c->output, i ? &c->errors_length : &c->output_length, &room[i], buffer, (size_t)n);
            else if (n == 0 || errno != EINTR)
                fds[i].fd = -1;
        }
    }
    close(out[0]), close(err[0]);
    if (pid > 0) {
        if (status != OK || c->timed_out)
            kill(pid, SIGKILL);
        while (waitpid(pid, &state, 0) < 0 && errno == EINTR)
            ;
        c->status = WIFEXITED(state) ? WEXITSTATUS(state) : -1;
        c->signal = WIFSIGNALED(state) ? WTERMSIG(state) : 0;
    }
    if (status != OK)
        free(c->output), free(c->errors), *c = (Child){0};
    return status;
}
