#define _GNU_SOURCE
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file.h"
#include "json.h"

#define LIMIT_INDEX ((size_t)64 << 20) /* bytes of an index: 300,000 tensors take about 30 MB */

typedef struct Shard {
    char *path;
    int fd;
    struct stat opened; /* size and time of change when the header was read */
    Header header;
} Shard;

struct Store {
    Shard *shards;
    size_t shard_count;
    const Entry **entries; /* of all shards, by name */
    size_t count;
    int owners; /* besides the first */
};

static int by_name(const void *a, const void *b) {
    return strcmp((*(const Entry *const *)a)->name, (*(const Entry *const *)b)->name);
}

static Status add_shard(Store *s, const char *path) {
    Shard *grown = realloc(s->shards, (s->shard_count + 1) * sizeof *grown);
    if (!grown)
        return fail(ERR_MEMORY, "out of memory");
    s->shards = grown;
    Shard *shard = &s->shards[s->shard_count];
    *shard = (Shard){.fd = -1, .path = strdup(path)};
    if (!shard->path)
        return fail(ERR_MEMORY, "out of memory");
    s->shard_count++;
    uint64_t size;
    Status status = file_open(path, &shard->fd, &size);
    if (status == OK && fstat(shard->fd, &shard->opened))
        status = fail(ERR_IO, "%s: %s", path, strerror(errno));
    return status == OK ? safetensors_header(shard->fd, path, size, &shard->header) : status;
}

/* All shards' entries in one sorted list; a name that two shards hold is refused. */
static Status gather(Store *s) {
    for (size_t i = 0; i < s->shard_count; i++)
        s->count += s->shards[i].header.count;
    if (!(s->entries = calloc(s->count + 1, sizeof *s->entries)))
        return fail(ERR_MEMORY, "out of memory");
    size_t n = 0;
    for (size_t i = 0; i < s->shard_count; i++)
        for (size_t e = 0; e < s->shards[i].header.count; e++) {
            s->shards[i].header.entries[e].shard = (int)i;
            s->entries[n++] = &s->shards[i].header.entries[e];
        }
    qsort(s->entries, s->count, sizeof *s->entries, by_name);
    for (size_t i = 1; i < s->count; i++)
        if (!strcmp(s->entries[i - 1]->name, s->entries[i]->name))
            return fail(ERR_FORMAT, "tensor '%.200s' is in both %s and %s", s->entries[i]->name, store_path(s, s->entries[i - 1]),
                        store_path(s, s->entries[i]));
    return OK;
}

/* A shard's name must be a plain relative path that stays beneath the directory. */
static int safe_name(const char *name) {
    if (!*name || *name == '/')
        return 0;
    for (const char *p = name; p; p = strchr(p, '/')) {
        p += *p == '/';
        if (!strncmp(p, "..", 2) && (p[2] == '/' || !p[2]))
            return 0;
    }
    return 1;
}

static int beneath(const char *path, const char *directory) {
    size_t n = strlen(directory);
    return !strncmp(path, directory, n) && (path[n] == '/' || !strcmp(directory, "/"));
}

/* A shard that is a link must lead to a file beneath the model's directory, or, from a snapshot of the hub cache
 * (models--org--name/snapshots/REVISION), to one beneath the blobs beside it. */
static Status check_link(const char *path, const char *directory) {
    char *real = realpath(path, NULL), *root = NULL, *blobs = NULL;
    Status status = OK;
    if (!real || !(root = realpath(directory, NULL))) {
        status = fail(ERR_IO, "%s: %s", real ? directory : path, strerror(errno));
    } else if (!beneath(real, root)) {
        char *snapshots = strrchr(root, '/');
        *snapshots = 0;
        char *last = strrchr(root, '/');
        if (last && !strcmp(last, "/snapshots")) {
            *last = 0;
            if (asprintf(&blobs, "%s/blobs", root) < 0)
                blobs = NULL;
        }
        if (!blobs || !beneath(real, blobs))
            status = fail(ERR_FORMAT, "%s: a link out of the model's directory, to %s", path, real);
    }
    free(blobs);
    free(root);
    free(real);
    return status;
}

/* Every shard that the map names, once. */
static Status add_shards(Store *s, const cJSON *map, const char *directory, const char *index) {
    Status status = OK;
    for (const cJSON *c = map->child; c && status == OK; c = c->next) {
        if (!cJSON_IsString(c) || !safe_name(c->valuestring))
            return fail(ERR_FORMAT, "%s: tensor '%.200s' should name a file beneath the model's directory, found '%.200s'", index, c->string,
                        cJSON_IsString(c) ? c->valuestring : "something else");
        char *path;
        if (asprintf(&path, "%s/%s", directory, c->valuestring) < 0)
            return fail(ERR_MEMORY, "out of memory");
        size_t i = s->shard_count;
        while (i && strcmp(s->shards[i - 1].path, path)) /* neighbours in the map mostly share their shard: look at the last first */
            i--;
        if (!i)
            status = check_link(path, directory);
        if (!i && status == OK)
            status = add_shard(s, path);
        free(path);
    }
    return status;
}

static size_t position(const Store *s, const char *name);

/* The map and the shards must name the same tensors, each in the same file. */
static Status compare(const Store *s, const cJSON *map, const char *directory, const char *index) {
    char *mapped = calloc(s->count + 1, 1);
    Status status = mapped ? OK : fail(ERR_MEMORY, "out of memory");
    for (const cJSON *c = map->child; c && status == OK; c = c->next) {
        size_t i = position(s, c->string);
        const char *at = i < s->count ? store_path(s, s->entries[i]) + strlen(directory) + 1 : NULL;
        if (!at || strcmp(at, c->valuestring))
            status = fail(ERR_FORMAT, "%s: tensor '%.200s' is not in %s%s%s", index, c->string, c->valuestring, at ? " but in " : "", at ? at : "");
        else
            mapped[i] = 1;
    }
    for (size_t i = 0; i < s->count && status == OK; i++)
        if (!mapped[i])
            status = fail(ERR_FORMAT, "%s: tensor '%.200s' of %s is not in the index", index, s->entries[i]->name, store_path(s, s->entries[i]));
    free(mapped);
    return status;
}

static Status open_index(Store *s, const char *directory, const char *index) {
    cJSON *root = NULL;
    Status status = json_read(index, LIMIT_INDEX, &root);
    if (status != OK)
        return status;
    const cJSON *map = json_get(root, "weight_map");
    if (!cJSON_IsObject(map) || !map->child)
        status = fail(ERR_FORMAT, "%s: no 'weight_map' that maps tensors to files", index);
    if (status == OK)
        status = add_shards(s, map, directory, index);
    if (status == OK)
        status = gather(s);
    if (status == OK)
        status = compare(s, map, directory, index);
    cJSON_Delete(root);
    return status;
}

static int has_suffix(const char *name, const char *suffix) {
    size_t n = strlen(name), m = strlen(suffix);
    return n >= m && !strcmp(name + n - m, suffix);
}

/* A directory without what we read: says what it holds instead. */
static Status nothing_to_open(const char *directory) {
    char pickle[256] = "", other[256] = "";
    DIR *d = opendir(directory);
    /* cppcheck-suppress readdirCalled ; safe where each thread has its own DIR, and readdir_r is deprecated */
    for (struct dirent *e; d && (e = readdir(d));) {
        if (has_suffix(e->d_name, ".bin") || has_suffix(e->d_name, ".pt") || has_suffix(e->d_name, ".pth"))
            snprintf(pickle, sizeof pickle, "%s", e->d_name);
        if (has_suffix(e->d_name, ".safetensors") || has_suffix(e->d_name, ".gguf"))
            snprintf(other, sizeof other, "%s", e->d_name);
    }
    if (d)
        closedir(d);
    if (*pickle && !*other)
        return fail(ERR_FORMAT, "%s: holds %s, a pickle that could run code when read; save it as safetensors "
                                "(model.save_pretrained(DIR, safe_serialization=True))", directory, pickle);
    return fail(ERR_IO, "%s: neither model.safetensors nor model.safetensors.index.json is there%s%s", directory,
                *other ? ", but " : "", other);
}

static Status open_directory(Store *s, const char *directory) {
    char *whole = NULL, *index = NULL;
    struct stat st;
    Status status = OK;
    if (asprintf(&whole, "%s/model.safetensors", directory) < 0)
        whole = NULL;
    if (asprintf(&index, "%s/model.safetensors.index.json", directory) < 0)
        index = NULL;
    if (!whole || !index) {
        status = fail(ERR_MEMORY, "out of memory");
    } else if (!stat(index, &st)) {
        status = open_index(s, directory, index);
    } else if (!lstat(whole, &st)) {
        status = add_shard(s, whole);
        if (status == OK)
            status = gather(s);
    } else {
        status = nothing_to_open(directory);
    }
    free(whole);
    free(index);
    return status;
}

Status store_open(const char *path, Store **out) {
    struct stat st;
    *out = NULL;
    if (stat(path, &st))
        return fail(ERR_IO, "%s: %s", path, strerror(errno));
    Store *s = calloc(1, sizeof *s);
    if (!s)
        return fail(ERR_MEMORY, "out of memory");
    Status status;
    if (S_ISDIR(st.st_mode)) {
        status = open_directory(s, path);
    } else {
        status = add_shard(s, path);
        if (status == OK)
            status = gather(s);
    }
    if (status != OK) {
        store_close(s);
        return status;
    }
    *out = s;
    return OK;
}

Store *store_hold(Store *s) {
    s->owners++;
    return s;
}

void store_close(Store *s) {
    if (!s || s->owners-- > 0)
        return;
    for (size_t i = 0; i < s->shard_count; i++) {
        if (s->shards[i].fd >= 0)
            close(s->shards[i].fd);
        safetensors_free(&s->shards[i].header);
        free(s->shards[i].path);
    }
    free(s->shards);
    free(s->entries);
    free(s);
}

size_t store_count(const Store *s) { return s->count; }
const Entry *store_entry(const Store *s, size_t i) { return s->entries[i]; }
const char *store_path(const Store *s, const Entry *e) { return s->shards[e->shard].path; }

/* Index of `name` in the sorted entries, or their count. */
static size_t position(const Store *s, const char *name) {
    size_t low = 0, high = s->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = strcmp(name, s->entries[middle]->name);
        if (!order)
            return middle;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return s->count;
}

const Entry *store_find(const Store *s, const char *name) {
    size_t i = position(s, name);
    return i < s->count ? s->entries[i] : NULL;
}

char *const *store_metadata(const Store *s, size_t *pairs) {
    *pairs = s->shard_count ? s->shards[0].header.metadata_count : 0;
    return s->shard_count ? s->shards[0].header.metadata : NULL;
}

Status store_check(const Store *s, const Entry *e) {
    const Shard *shard = &s->shards[e->shard];
    struct stat now;
    if (fstat(shard->fd, &now))
        return fail(ERR_IO, "%s: %s", shard->path, strerror(errno));
    if (now.st_size != shard->opened.st_size || now.st_mtim.tv_sec != shard->opened.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != shard->opened.st_mtim.tv_nsec)
        return fail(ERR_IO, "%s: the file has changed since it was opened (%llu bytes then, %llu now); tensor '%.200s' was not read", shard->path,
                    (unsigned long long)shard->opened.st_size, (unsigned long long)now.st_size, e->name);
    return OK;
}

Status store_read(const Store *s, const Entry *e, uint64_t offset, void *buffer, size_t bytes) {
    const Shard *shard = &s->shards[e->shard];
    if (offset > e->bytes || bytes > e->bytes - offset)
        return fail(ERR_ARGUMENT, "%s: tensor '%.200s' holds %llu bytes", shard->path, e->name, (unsigned long long)e->bytes);
    char what[512];
    Status status = store_check(s, e);
    snprintf(what, sizeof what, "%s: tensor '%.100s'", shard->path, e->name);
    return status == OK ? file_read_at(shard->fd, what, e->offset + offset, buffer, bytes) : status;
}

int store_reopen(const Store *s, const Entry *e, int flags) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", s->shards[e->shard].fd);
    return open(path, flags | O_CLOEXEC);
}

struct StoreWriter {
    Writer *file;
    cJSON *header;
    uint64_t declared, written;
    int begun;
};

Status store_writer_open(const char *path, StoreWriter **out) {
    StoreWriter *w = calloc(1, sizeof *w);
    *out = NULL;
    if (!w || !(w->header = cJSON_CreateObject())) {
        free(w);
        return fail(ERR_MEMORY, "out of memory");
    }
    Status status = writer_open(path, &w->file);
    if (status != OK) {
        cJSON_Delete(w->header);
        free(w);
        return status;
    }
    *out = w;
    return OK;
}

Status store_writer_metadata(StoreWriter *w, const char *key, const char *value) {
    cJSON *metadata = cJSON_GetObjectItemCaseSensitive(w->header, "__metadata__");
    if (!metadata)
        metadata = cJSON_AddObjectToObject(w->header, "__metadata__");
    return cJSON_AddStringToObject(metadata, key, value) ? OK : fail(ERR_MEMORY, "out of memory");
}

Status store_writer_declare(StoreWriter *w, const char *name, const char *dtype, int dims, const int64_t *shape) {
    cJSON *item = cJSON_AddObjectToObject(w->header, name), *sizes, *offsets;
    uint64_t bytes = safetensors_element(dtype);
    if (!item || !cJSON_AddStringToObject(item, "dtype", dtype) || !(sizes = cJSON_AddArrayToObject(item, "shape")) ||
        !(offsets = cJSON_AddArrayToObject(item, "data_offsets")))
        return fail(ERR_MEMORY, "out of memory");
    for (int i = 0; i < dims; i++) {
        bytes *= (uint64_t)shape[i];
        cJSON_AddItemToArray(sizes, cJSON_CreateNumber((double)shape[i]));
    }
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)w->declared));
    w->declared += bytes;
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)w->declared));
    return OK;
}

static Status begin(StoreWriter *w) {
    unsigned char head[8];
    w->begun = 1;
    char *text = cJSON_PrintUnformatted(w->header);
    if (!text)
        return fail(ERR_MEMORY, "out of memory");
    size_t length = strlen(text), padded = (length + 7) / 8 * 8;
    for (int i = 0; i < 8; i++)
        head[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    Status status = writer_put(w->file, head, 8);
    if (status == OK)
        status = writer_put(w->file, text, length);
    if (status == OK)
        status = writer_put(w->file, "       ", padded - length);
    cJSON_free(text);
    return status;
}

Status store_writer_put(StoreWriter *w, const void *data, size_t bytes) {
    Status status = w->begun ? OK : begin(w);
    w->written += bytes;
    return status == OK ? writer_put(w->file, data, bytes) : status;
}

Status store_writer_commit(StoreWriter *w) {
    Status status = w->begun ? OK : begin(w);
    if (status == OK && w->written != w->declared)
        status = fail(ERR_ARGUMENT, "%llu bytes were declared, %llu written", (unsigned long long)w->declared, (unsigned long long)w->written);
    if (status == OK)
        status = writer_commit(w->file);
    else
        writer_abort(w->file);
    cJSON_Delete(w->header);
    free(w);
    return status;
}

void store_writer_abort(StoreWriter *w) {
    if (!w)
        return;
    writer_abort(w->file);
    cJSON_Delete(w->header);
    free(w);
}
