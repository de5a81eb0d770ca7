/* Viterbi's search over a trie, as Hugging Face's `tokenizers` does it: an unknown character costs the lowest score less 10,
 * unknown neighbours are one token, and of equal sums the one that was found first stays. */
#include "unigram.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "component.h"
#include "json.h"
#include "trie.h"
#include "utf8.h"

#define UNKNOWN_PENALTY 10.0

/* The best way to a place in the text; later the way back, forwards. */
typedef struct Path {
    double score;
    int32_t start; /* of the token that ends here; -1: no way here yet */
    int32_t id;    /* of that token */
    int32_t end;   /* of the token that starts here, on the best way to the end */
} Path;

struct Unigram {
    const Vocab *vocab;
    Trie trie;
    double *scores; /* by id */
    double unknown_score;
    int32_t limit, unk; /* the model's tokens have ids below `limit`; unk -1: none */
    int32_t fallback[256]; /* tokens <0x00>..<0xFF>; -1 where absent, all without byte_fallback */
    Path *paths;
    size_t capacity;
    char *what;
};

/* --- loading ------------------------------------------------------------------------------------------------------ */

static Status load_vocab(Unigram *u, Vocab *vocab, const cJSON *list, const char *what) {
    const cJSON *item;
    if (!cJSON_IsArray(list))
        return fail(ERR_FORMAT, "%s: the Unigram model has no list of tokens and scores", what);
    size_t count = (size_t)cJSON_GetArraySize(list);
    Status status = vocab_reserve(vocab, count);
    if (status != OK)
        return status;
    u->scores = malloc((count + 1) * sizeof *u->scores);
    if (!u->scores)
        return fail(ERR_MEMORY, "no memory for a vocabulary");
    double lowest = INFINITY;
    int32_t id = 0;
    cJSON_ArrayForEach(item, list) {
        const cJSON *token = cJSON_IsArray(item) ? item->child : NULL, *score = token ? token->next : NULL;
        if (!cJSON_IsString(token) || !cJSON_IsNumber(score) || score->next)
            return fail(ERR_FORMAT, "%s: entry %d of the Unigram vocabulary is no token with its score", what, id);
        size_t n = strlen(token->valuestring);
        u->scores[id] = score->valuedouble;
        lowest = score->valuedouble < lowest ? score->valuedouble : lowest;
        if ((status = vocab_add_again(vocab, token->valuestring, n, id, what)) != OK ||
            (status = trie_add(&u->trie, token->valuestring, n, id)) != OK)
            return status;
        id++;
    }
    u->unknown_score = lowest - UNKNOWN_PENALTY;
    u->limit = id;
    return OK;
}

Status unigram_load(const cJSON *model, Vocab *vocab, const char *what, Unigram **out) {
    const cJSON *unk = json_get(model, "unk_id");
    int64_t id = -1;
    *out = NULL;
    Status status = component_keys(model, "vocab unk_id byte_fallback", what);
    if (status != OK)
        return status;
    Unigram *u = calloc(1, sizeof *u);
    if (!u || !(u->what = strdup(what)))
        status = fail(ERR_MEMORY, "no memory for a tokenizer");
    if (status == OK)
        status = load_vocab(u, vocab, json_get(model, "vocab"), what);
    if (status == OK && unk && !cJSON_IsNull(unk) && (!json_integer(unk, &id) || id < 0 || id >= u->limit))
        status = fail(ERR_FORMAT, "%s: unk_id is not the number of a token", what);
    for (int byte = 0; status == OK && byte < 256; byte++)
        u->fallback[byte] = component_flag(model, "byte_fallback", 0) ? vocab_byte(vocab, byte) : -1;
    if (status != OK) {
        unigram_free(u);
        return status;
    }
    u->vocab = vocab;
    u->unk = (int32_t)id;
    *out = u;
    return OK;
}

/* --- encoding ----------------------------------------------------------------------------------------------------- */

static void offer(Path *path, double score, size_t start, int32_t id) {
    if (path->start < 0 || score > path->score)
        *path = (Path){score, (int32_t)start, id, 0};
}

static Status reserve(Unigram *u, size_t n) {
    if (n > INT32_MAX / 4)
        return fail(ERR_UNSUPPORTED, "a word of more than %d bytes", INT32_MAX / 4);
    if (n >= u->capacity) {
        size_t capacity = n + n / 2 + 256;
        Path *paths = realloc(u->paths, capacity * sizeof *paths);
        if (!paths)
            return fail(ERR_MEMORY, "no memory to encode a text of %zu bytes", n);
        u->paths = paths;
        u->capacity = capacity;
    }
    for (size_t i = 0; i <= n; i++)
        u->paths[i] = (Path){0, -1, 0, 0};
    return OK;
}

/* Fills the paths from left to right. */
static Status search(Unigram *u, const char *text, size_t n) {
    Path *paths = u->paths;
    for (size_t start = 0; start < n;) {
        size_t width = (size_t)utf8_length(text[start]);
        int32_t node = 0, known = 0;
        for (size_t i = start; i < n && (node = trie_step(&u->trie, node, text[i])) >= 0; i++) {
            int32_t id = u->trie.values[node];
            if (id < 0)
                continue;
            offer(&paths[i + 1], u->scores[id] + paths[start].score, start, id);
            known |= i + 1 - start == width;
        }
        if (!known) {
            if (u->unk < 0)
                return fail(ERR_FORMAT, "%s: the text has characters that the vocabulary lacks, and there is no unk_id", u->what);
            offer(&paths[start + width], u->unknown_score + paths[start].score, start, u->unk);
        }
        start += width;
    }
    return OK;
}

/* Neighbours that are unknown, as one: a token after all, bytes, or the unknown token. */
static Status push_unknown(const Unigram *u, const char *text, size_t n, Ids *out) {
    int32_t id = vocab_find(u->vocab, text, n);
    if (id >= 0 && id < u->limit)
        return ids_push(out, id);
    size_t known = 0;
    while (known < n && u->fallback[(unsigned char)text[known]] >= 0)
        known++;
    if (known < n)
        return ids_push(out, u->unk);
    Status status = OK;
    for (size_t i = 0; i < n && status == OK; i++)
        status = ids_push(out, u->fallback[(unsigned char)text[i]]);
    return status;
}

Status unigram_encode(Unigram *u, const char *text, size_t n, Ids *out) {
    Status status = reserve(u, n);
    if (status == OK)
        status = search(u, text, n);
    if (status != OK)
        return status;
    Path *paths = u->paths;
    for (int32_t end = (int32_t)n; end > 0; end = paths[end].start)
        paths[paths[end].start].end = end;
    for (size_t at = 0; at < n && status == OK;) {
        size_t end = (size_t)paths[at].end;
        if (paths[end].id != u->unk) {
            status = ids_push(out, paths[end].id);
        } else {
            while (end < n && paths[paths[end].end].id == u->unk)
                end = (size_t)paths[end].end;
            status = push_unknown(u, text + at, end - at, out);
        }
        at = end;
    }
    return status;
}

void unigram_free(Unigram *u) {
    if (!u)
        return;
    trie_free(&u->trie);
    free(u->scores);
    free(u->paths);
    free(u->what);
    free(u);
}
