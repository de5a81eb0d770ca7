/* A word is cut where no merge can ever join its symbols, each part's answer is remembered if it is short, and a part that
 * is not remembered is merged. */
#include "bpe.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "component.h"
#include "json.h"
#include "merging.h"
#include "unicode.h"
#include "utf8.h"

enum { CACHE_SLOTS = 1 << 16, CACHE_BYTES = 26, CACHE_IDS = 9 };

/* One remembered word: a cache line. */
typedef struct Remembered {
    int32_t ids[CACHE_IDS];
    uint8_t length, count; /* length 0: empty */
    char bytes[CACHE_BYTES];
} Remembered;

struct Bpe {
    const Vocab *vocab;
    Merges *merges;
    Remembered *cache;
    int bytes, ignore_merges, fuse_unk;
    char *prefix, *suffix; /* of every symbol but a word's first, and of its last; "" for none */
    int affixed;           /* one of them is not "": what a character's symbol is depends on its place */
    int32_t limit;             /* the model's tokens have ids below; added tokens come later */
    int32_t unk;               /* -1: characters that are unknown vanish */
    int32_t byte_symbol[256];  /* bytes mode: the symbol of each byte, -1 unknown */
    int32_t fallback[256];     /* tokens <0x00>..<0xFF>; all -1 without byte_fallback */
    int32_t *pages[(CHAR_COUNT >> 8)]; /* characters' symbols by (c >> 8), (c & 255) */
    Ids symbols;               /* scratch */
    Merging merging;
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
        else if (strcmp(key, "type") && strcmp(key, "vocab") && strcmp(key, "merges") && strcmp(key, "dropout") &&
                 strcmp(key, "continuing_subword_prefix") && strcmp(key, "end_of_word_suffix"))
            return fail(ERR_UNSUPPORTED, "%s: unknown BPE setting '%s'", what, key);
    }
    if (cJSON_IsString(unk)) {
        b->unk = vocab_find(b->vocab, unk->valuestring, strlen(unk->valuestring));
        if (b->unk < 0 && *unk->valuestring)
            return fail(ERR_FORMAT, "%s: unk_token '%s' is not in the vocabulary", what, unk->valuestring);
    }
    for (int byte = 0; byte < 256; byte++)
        b->fallback[byte] = byte_fallback ? vocab_byte(b->vocab, byte) : -1;
    b->prefix = strdup(component_text(model, "continuing_subword_prefix", ""));
    b->suffix = strdup(component_text(model, "end_of_word_suffix", ""));
    b->affixed = b->prefix && b->suffix && (*b->prefix || *b->suffix);
    return b->prefix && b->suffix ? OK : fail(ERR_MEMORY, "no memory for a tokenizer");
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
        status = merges_load(json_get(model, "merges"), vocab, b->prefix, b->unk, what, &b->merges);
    if (status == OK)
        *out = b;
    else
        bpe_free(b);
    return status;
}

/* --- symbols ------------------------------------------------------------------------------------------------------ */

/* True if byte tokens can stand for all bytes of a symbol. */
static int falls_back(const Bpe *b, const char *p, size_t length) {
    for (size_t i = 0; i < length; i++)
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

/* Leaves in b->spelt a character with what its place in the word asks for, and gives its symbol. */
static Status affix(Bpe *b, const char *p, int length, int first, int last, int32_t *symbol) {
    char spelt[4];
    size_t n = (size_t)spelling(b, p, length, spelt);
    b->spelt.length = 0;
    Status status = first ? OK : bytes_append(&b->spelt, b->prefix, strlen(b->prefix));
    if (status == OK)
        status = bytes_append(&b->spelt, spelt, n);
    if (status == OK && last)
        status = bytes_append(&b->spelt, b->suffix, strlen(b->suffix));
    int32_t id = status == OK ? vocab_find(b->vocab, b->spelt.data, b->spelt.length) : -1;
    *symbol = id < b->limit ? id : -1;
    return status;
}

/* Leaves the symbols of a part in b->symbols. An unknown token waits until a known character or the end, so that
 * neighbours can be fused into one; byte tokens do not end the wait, as in the reference. */
static Status read_symbols(Bpe *b, const char *p, size_t n) {
    int waiting = 0;
    b->symbols.count = 0;
    Status status = ids_reserve(&b->symbols, n + 1);
    for (const char *start = p, *end = p + n; p < end && status == OK;) {
        Character c = character_at(b, p);
        char plain[4];
        const char *spelt = plain;
        size_t length = 0;
        if (b->affixed) {
            if ((status = affix(b, p, c.length, p == start, p + c.length == end, &c.symbol)) != OK)
                return status;
            spelt = b->spelt.data, length = b->spelt.length;
        } else if (c.symbol < 0) {
            length = (size_t)spelling(b, p, c.length, plain);
        }
        if (c.symbol >= 0) {
            if (waiting)
                status = ids_push(&b->symbols, b->unk);
            waiting = 0;
            if (status == OK)
                status = ids_push(&b->symbols, c.symbol);
        } else if (falls_back(b, spelt, length)) {
            for (size_t i = 0; i < length && status == OK; i++)
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
        if (status == OK)
            status = merging_run(&b->merging, b->merges, &b->symbols);
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
    if (n <= CACHE_BYTES || b->affixed)
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
        int32_t first = c.symbol, last = first;
        if (c.symbol < 0) {
            char spelt[4];
            int length = spelling(b, p, c.length, spelt);
            if (falls_back(b, spelt, (size_t)length)) {
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
    free(b->prefix);
    free(b->suffix);
    merging_free(&b->merging);
    ids_free(&b->symbols);
    bytes_free(&b->spelt);
    free(b);
}
