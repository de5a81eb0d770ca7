/* A word is cut where no merge can ever join its symbols, each part's answer is remembered if it is short, and a part that
 * is not remembered is merged: by looking for the lowest rank in a short array, or with a heap over a linked list. */
#include "bpe.h"

#include <stdio.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "json.h"
#include "merges.h"
#include "unicode.h"
#include "utf8.h"

enum { SHORT_PART = 48, CACHE_SLOTS = 1 << 16, CACHE_BYTES = 26, CACHE_IDS = 9 };

/* One remembered word: a cache line. */
typedef struct Remembered {
    int32_t ids[CACHE_IDS];
    uint8_t length, count; /* length 0: empty */
    char bytes[CACHE_BYTES];
} Remembered;

typedef struct Node {
    int32_t symbol, previous, next; /* -1 at the ends */
    int32_t rank;                   /* of the pair with the next; NO_RANK if they do not merge, or the node is gone */
} Node;

struct Bpe {
    const Vocab *vocab;
    Merges *merges;
    Remembered *cache;
    int bytes, ignore_merges, fuse_unk;
    int32_t limit;             /* the model's tokens have ids below; added tokens come later */
    int32_t unk;               /* -1: characters that are unknown vanish */
    int32_t byte_symbol[256];  /* bytes mode: the symbol of each byte, -1 unknown */
    int32_t fallback[256];     /* tokens <0x00>..<0xFF>; all -1 without byte_fallback */
    int32_t *pages[(CHAR_COUNT >> 8)]; /* characters' symbols by (c >> 8), (c & 255) */
    Ids symbols;               /* scratch */
    Node *nodes;
    uint64_t *heap;
    size_t node_capacity;
    Bytes spelt;
};

/* --- loading ------------------------------------------------------------------------------------------------------ */

static Status fill_pages(Bpe *b) {
    for (int32_t id = 0; id < b->vocab->limit; id++) {
        size_t n;
        const char *text = vocab_text(b->vocab, id, &n);
        if (!text || n == 0 || (size_t)utf8_length(*text) != n)
            continue;
        int length;
        uint32_t c = utf8_read(text, &length);
        int32_t **page = &b->pages[c >> 8];
        if (!*page) {
            if (!(*page = malloc(256 * sizeof **page)))
                return fail(ERR_MEMORY, "no memory for a tokenizer");
            memset(*page, -1, 256 * sizeof **page);
        }
        (*page)[c & 255] = id;
    }
    return OK;
}

static int32_t symbol_of(const Bpe *b, uint32_t c) {
    const int32_t *page = b->pages[c >> 8];
    return page ? page[c & 255] : -1;
}

static Status read_settings(Bpe *b, const cJSON *model, const char *what) {
    const cJSON *unk = NULL, *item;
    int byte_fallback = 0;
    b->unk = -1;
    cJSON_ArrayForEach(item, model) {
        const char *key = item->string;
        if (!strcmp(key, "unk_token"))
            unk = item;
        else if (!strcmp(key, "byte_fallback"))
            byte_fallback = cJSON_IsTrue(item);
        else if (!strcmp(key, "fuse_unk"))
            b->fuse_unk = cJSON_IsTrue(item);
        else if (!strcmp(key, "ignore_merges"))
            b->ignore_merges = cJSON_IsTrue(item);
        else if (!strcmp(key, "dropout")) {
            if (cJSON_IsNumber(item) && item->valuedouble != 0)
                return fail(ERR_UNSUPPORTED, "%s: BPE dropout %g; only exact encoding is supported", what, item->valuedouble);
        } else if (!strcmp(key, "continuing_subword_prefix") || !strcmp(key, "end_of_word_suffix")) {
            if (cJSON_IsString(item) && *item->valuestring)
                return fail(ERR_UNSUPPORTED, "%s: %s '%s' is not supported", what, key, item->valuestring);
        } else if (strcmp(key, "type") && strcmp(key, "vocab") && strcmp(key, "merges"))
            return fail(ERR_UNSUPPORTED, "%s: unknown BPE setting '%s'", what, key);
    }
    if (cJSON_IsString(unk)) {
        b->unk = vocab_find(b->vocab, unk->valuestring, strlen(unk->valuestring));
        if (b->unk < 0 && *unk->valuestring)
            return fail(ERR_FORMAT, "%s: unk_token '%s' is not in the vocabulary", what, unk->valuestring);
    }
    memset(b->fallback, -1, sizeof b->fallback);
    for (int byte = 0; byte_fallback && byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", byte);
        b->fallback[byte] = vocab_find(b->vocab, name, 6);
    }
    return OK;
}

Status bpe_load(const cJSON *model, const Vocab *vocab, int bytes, const char *what, Bpe **out) {
    *out = NULL;
    Bpe *b = calloc(1, sizeof *b);
    if (!b)
        return fail(ERR_MEMORY, "no memory for a tokenizer");
    b->vocab = vocab;
    b->limit = vocab->limit;
    b->bytes = bytes;
    b->cache = calloc(CACHE_SLOTS, sizeof *b->cache);
    Status status = b->cache ? read_settings(b, model, what) : fail(ERR_MEMORY, "no memory for a tokenizer");
    if (status == OK)
        status = fill_pages(b);
    for (int byte = 0; byte < 256; byte++)
        b->byte_symbol[byte] = symbol_of(b, byte_level_char((unsigned char)byte));
    if (status == OK)
        status = merges_load(json_get(model, "merges"), vocab, b->unk, what, &b->merges);
    if (status == OK)
        *out = b;
    else
        bpe_free(b);
    return status;
}

/* --- symbols ------------------------------------------------------------------------------------------------------ */

/* True if byte tokens can stand for all bytes of a character. */
static int falls_back(const Bpe *b, const char *p, int length) {
    for (int i = 0; i < length; i++)
        if (b->fallback[(unsigned char)p[i]] < 0)
            return 0;
    return 1;
}

typedef struct Character {
    int32_t symbol; /* -1: not in the vocabulary */
    int length;     /* bytes of the word */
} Character;

static inline Character character_at(const Bpe *b, const char *p) {
    if (b->bytes)
        return (Character){b->byte_symbol[(unsigned char)*p], 1};
    Character c;
    uint32_t code = utf8_read(p, &c.length);
    c.symbol = symbol_of(b, code);
    return c;
}

/* spelling() : the UTF-8 of a character of a word, as the vocabulary would have it. @return : its length. */
static int spelling(const Bpe *b, const char *p, int length, char out[4]) {
    if (b->bytes)
        return utf8_write(out, byte_level_char((unsigned char)*p));
    memcpy(out, p, (size_t)length);
    return length;
}

/* Leaves the symbols of a part in b->symbols. An unknown token waits until a known character or the end, so that
 * neighbours can be fused into one; byte tokens do not end the wait, as in the reference. */
static Status read_symbols(Bpe *b, const char *p, size_t n) {
    int waiting = 0;
    b->symbols.count = 0;
    Status status = ids_reserve(&b->symbols, n + 1);
    for (const char *end = p + n; p < end && status == OK;) {
        Character c = character_at(b, p);
        char spelt[4];
        int length;
        if (c.symbol >= 0) {
            if (waiting)
                status = ids_push(&b->symbols, b->unk);
            waiting = 0;
            if (status == OK)
                status = ids_push(&b->symbols, c.symbol);
        } else if (length = spelling(b, p, c.length, spelt), falls_back(b, spelt, length)) {
            for (int i = 0; i < length && status == OK; i++)
                status = ids_push(&b->symbols, b->fallback[(unsigned char)spelt[i]]);
        } else if (b->unk >= 0) {
            if (waiting && !b->fuse_unk)
                status = ids_push(&b->symbols, b->unk);
            waiting = 1;
        }
        p += c.length;
    }
    return status == OK && waiting ? ids_push(&b->symbols, b->unk) : status;
}

/* --- merging ------------------------------------------------------------------------------------------------------ */

static size_t merge_short(const Merges *merges, int32_t *symbol, size_t n) {
    int32_t rank[SHORT_PART];
    for (size_t i = 0; i + 1 < n; i++)
        rank[i] = merges_rank(merges, symbol[i], symbol[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == NO_RANK)
            break;
        symbol[best] = merges_result(merges, rank[best]);
        memmove(symbol + best + 1, symbol + best + 2, (n - best - 2) * sizeof *symbol);
        n--;
        memmove(rank + best, rank + best + 1, (n - best) * sizeof *rank);
        if (best > 0)
            rank[best - 1] = merges_rank(merges, symbol[best - 1], symbol[best]);
        if (best + 1 < n)
            rank[best] = merges_rank(merges, symbol[best], symbol[best + 1]);
    }
    return n;
}

/* The heap holds rank << 32 | position, smallest first; an entry whose rank is not its node's any more is stale. */
static void sink(uint64_t *heap, size_t n, size_t i) {
    uint64_t moving = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= moving)
            break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

static void rise(uint64_t *heap, size_t i) {
    uint64_t moving = heap[i];
    for (; i > 0 && heap[(i - 1) / 2] > moving; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = moving;
}

static Status reserve_nodes(Bpe *b, size_t n) {
    if (n > INT32_MAX / 2)
        return fail(ERR_UNSUPPORTED, "a word of more than %d symbols", INT32_MAX / 2);
    if (n <= b->node_capacity)
        return OK;
    free(b->nodes);
    free(b->heap);
    b->node_capacity = 0;
    b->nodes = malloc(n * sizeof *b->nodes);
    b->heap = malloc(2 * n * sizeof *b->heap); /* n pairs; each of n - 1 merges takes one and adds at most two */
    if (!b->nodes || !b->heap)
        return fail(ERR_MEMORY, "no memory for a word of %zu symbols", n);
    b->node_capacity = n;
    return OK;
}

static Status merge_long(Bpe *b) {
    int32_t *symbol = b->symbols.data;
    size_t n = b->symbols.count, pairs = 0;
    Status status = reserve_nodes(b, n);
    if (status != OK)
        return status;
    Node *node = b->nodes;
    uint64_t *heap = b->heap;
    for (size_t i = 0; i < n; i++) {
        int last = i + 1 == n;
        int32_t rank = last ? NO_RANK : merges_rank(b->merges, symbol[i], symbol[i + 1]);
        node[i] = (Node){symbol[i], (int32_t)i - 1, last ? -1 : (int32_t)i + 1, rank};
        if (rank != NO_RANK)
            heap[pairs++] = (uint64_t)rank << 32 | i;
    }
    for (size_t i = pairs / 2; i-- > 0;)
        sink(heap, pairs, i);
    while (pairs > 0) {
        uint64_t top = heap[0];
        heap[0] = heap[--pairs];
        if (pairs)
            sink(heap, pairs, 0);
        int32_t rank = (int32_t)(top >> 32), at = (int32_t)(top & UINT32_MAX), gone = node[at].next;
        if (node[at].rank != rank)
            continue;
        node[at].symbol = merges_result(b->merges, rank);
        node[at].next = node[gone].next;
        node[gone].rank = NO_RANK;
        node[gone].symbol = -1;
        if (node[at].next >= 0)
            node[node[at].next].previous = at;
        for (int32_t left = at, k = 0; k < 2; left = node[at].previous, k++) { /* the new pairs to the right and left */
            if (left < 0 || node[left].next < 0) {
                if (left >= 0)
                    node[left].rank = NO_RANK;
                continue;
            }
            node[left].rank = merges_rank(b->merges, node[left].symbol, node[node[left].next].symbol);
            if (node[left].rank != NO_RANK) {
                heap[pairs] = (uint64_t)node[left].rank << 32 | (uint32_t)left;
                rise(heap, pairs++);
            }
        }
    }
    size_t kept = 0;
    for (int32_t i = 0; i >= 0; i = node[i].next)
        symbol[kept++] = node[i].symbol;
    b->symbols.count = kept;
    return OK;
}

/* --- words -------------------------------------------------------------------------------------------------------- */

/* The id of a whole word that is a token itself; -1 if it is none. */
static Status whole_token(Bpe *b, const char *word, size_t n, int32_t *id) {
    Status status = OK;
    *id = -1;
    if (!b->bytes) {
        *id = vocab_find(b->vocab, word, n);
        *id = *id < b->limit ? *id : -1;
        return OK;
    }
    b->spelt.length = 0;
    status = bytes_reserve(&b->spelt, 2 * n);
    if (status != OK)
        return status;
    for (size_t i = 0; i < n; i++)
        b->spelt.length += (size_t)utf8_write(b->spelt.data + b->spelt.length, byte_level_char((unsigned char)word[i]));
    *id = vocab_find(b->vocab, b->spelt.data, b->spelt.length);
    *id = *id < b->limit ? *id : -1;
    return OK;
}

/* One part: `whole` if it is all of a word, which ignore_merges asks. */
static Status encode_part(Bpe *b, const char *p, size_t n, int whole, Ids *out) {
    Remembered *slot = NULL;
    Status status;
    if (n <= CACHE_BYTES && (whole || !b->ignore_merges)) {
        slot = &b->cache[XXH3_64bits(p, n) & (CACHE_SLOTS - 1)];
        if (slot->length == n && !memcmp(slot->bytes, p, n))
            return ids_append(out, slot->ids, slot->count);
    }
    int32_t id = -1;
    if (whole && b->ignore_merges) {
        status = whole_token(b, p, n, &id);
        if (status != OK)
            return status;
    }
    if (id >= 0) {
        b->symbols.count = 0;
        status = ids_push(&b->symbols, id);
    } else {
        status = read_symbols(b, p, n);
        if (status == OK && b->symbols.count <= SHORT_PART)
            b->symbols.count = merge_short(b->merges, b->symbols.data, b->symbols.count);
        else if (status == OK)
            status = merge_long(b);
    }
    if (status == OK && slot && b->symbols.count <= CACHE_IDS) {
        memcpy(slot->bytes, p, n);
        if (b->symbols.count)
            memcpy(slot->ids, b->symbols.data, b->symbols.count * sizeof *slot->ids);
        slot->length = (uint8_t)n;
        slot->count = (uint8_t)b->symbols.count;
    }
    return status == OK ? ids_append(out, b->symbols.data, b->symbols.count) : status;
}

Status bpe_encode(Bpe *b, const char *word, size_t n, Ids *out) {
    if (n <= CACHE_BYTES)
        return encode_part(b, word, n, 1, out);
    if (b->ignore_merges) {
        int32_t id;
        Status status = whole_token(b, word, n, &id);
        if (status != OK || id >= 0)
            return status == OK ? ids_push(out, id) : status;
    }
    const char *end = word + n, *start = word;
    int32_t left = -1; /* the symbol before p; -1 where nothing may be cut: at the start, and while an unknown one waits */
    for (const char *p = word; p < end;) {
        Character c = character_at(b, p);
        int32_t first = c.symbol, last = c.symbol;
        if (c.symbol < 0) {
            char spelt[4];
            int length = spelling(b, p, c.length, spelt);
            if (falls_back(b, spelt, length)) {
                first = b->fallback[(unsigned char)spelt[0]];
                last = left < 0 && p > word ? -1 : b->fallback[(unsigned char)spelt[length - 1]];
            }
        }
        if (left >= 0 && first >= 0 && !merges_joins(b->merges, left, first)) {
            Status status = encode_part(b, start, (size_t)(p - start), 0, out);
            if (status != OK)
                return status;
            start = p;
        }
        left = last;
        p += c.length;
    }
    return encode_part(b, start, (size_t)(end - start), 0, out);
}

void bpe_free(Bpe *b) {
    if (!b)
        return;
    for (size_t i = 0; i < sizeof b->pages / sizeof *b->pages; i++)
        free(b->pages[i]);
    merges_free(b->merges);
    free(b->cache);
    free(b->nodes);
    free(b->heap);
    ids_free(&b->symbols);
    bytes_free(&b->spelt);
    free(b);
}
