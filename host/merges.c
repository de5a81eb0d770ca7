#include "merges.h"

#include "utf8.h"

typedef struct Sides {
    const char *text[2];
    size_t length[2];
} Sides;

static Status read_sides(const cJSON *item, const char *what, Sides *s) {
    if (cJSON_IsString(item)) {
        const char *text = item->valuestring, *space = strchr(text, ' ');
        if (!space || strchr(space + 1, ' '))
            return fail(ERR_FORMAT, "%s: the merge '%.200s' is no pair", what, text);
        *s = (Sides){{text, space + 1}, {(size_t)(space - text), strlen(space + 1)}};
        return OK;
    }
    const cJSON *left = cJSON_IsArray(item) ? item->child : NULL, *right = left ? left->next : NULL;
    if (!cJSON_IsString(left) || !cJSON_IsString(right) || right->next)
        return fail(ERR_FORMAT, "%s: a merge is neither a string nor a pair of strings", what);
    *s = (Sides){{left->valuestring, right->valuestring}, {strlen(left->valuestring), strlen(right->valuestring)}};
    return OK;
}

static Status token_id(const Vocab *vocab, const char *text, size_t n, const char *what, int32_t *id) {
    *id = vocab_find(vocab, text, n);
    if (*id < 0)
        return fail(ERR_FORMAT, "%s: the merges need a token '%.*s' that the vocabulary lacks", what,
                    (int)(n < 200 ? n : 200), text);
    return OK;
}

static void put(Merges *m, int32_t left, int32_t right, int32_t rank) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right, slot = merges_hash(left, right) >> m->shift;
    while (m->pairs[slot].key != NO_PAIR && m->pairs[slot].key != key)
        slot = (slot + 1) & m->slot_mask;
    m->pairs[slot] = (Pair){key, rank}; /* of a pair that stands there twice the later one counts */
}

/* Marks the seam of a merge. A text's symbols are single characters, byte tokens or the unknown token; the latter two have
 * no single character at the seam, so a merge that they could take part in marks every seam. */
static void mark(Merges *m, const Vocab *vocab, const Sides *s, size_t words, int special) {
    if (special) {
        memset(m->joins, -1, words * sizeof *m->joins);
        return;
    }
    const char *end = s->text[0] + s->length[0], *last = utf8_back(end);
    int32_t left = vocab_find(vocab, last, (size_t)(end - last));
    int32_t right = vocab_find(vocab, s->text[1], (size_t)utf8_length(s->text[1][0]));
    if (left >= 0 && right >= 0) {
        uint64_t bit = merges_hash(left, right) >> m->joins_shift;
        m->joins[bit >> 6] |= (uint64_t)1 << (bit & 63);
    }
}

static int log2_above(size_t n) {
    int bits = 8;
    while (((size_t)1 << bits) <= n)
        bits++;
    return bits;
}

Status merges_load(const cJSON *list, const Vocab *vocab, const char *prefix, int32_t unk, const char *what, Merges **out) {
    Bytes joined = {0};
    size_t dropped = strlen(prefix);
    Status status = OK;
    *out = NULL;
    if (!cJSON_IsArray(list))
        return fail(ERR_FORMAT, "%s: the BPE model has no list of merges", what);
    size_t count = (size_t)cJSON_GetArraySize(list);
    if (count > INT32_MAX / 8)
        return fail(ERR_FORMAT, "%s: %zu merges", what, count);
    int bits = log2_above(2 * count), joins_bits = log2_above(count) + 4;
    size_t words = (size_t)1 << (joins_bits - 6);
    Merges *m = calloc(1, sizeof *m);
    if (!m)
        return fail(ERR_MEMORY, "no memory for merges");
    m->shift = 64 - bits;
    m->slot_mask = ((uint64_t)1 << bits) - 1;
    m->joins_shift = 64 - joins_bits;
    m->pairs = malloc(((size_t)1 << bits) * sizeof *m->pairs);
    m->result = malloc((count + 1) * sizeof *m->result);
    m->left = malloc((count + 1) * sizeof *m->left);
    m->right = malloc((count + 1) * sizeof *m->right);
    m->joins = calloc(words, sizeof *m->joins);
    if (!m->pairs || !m->left || !m->right || !m->result || !m->joins) {
        status = fail(ERR_MEMORY, "no memory for merges");
        goto done;
    }
    for (uint64_t i = 0; i <= m->slot_mask; i++)
        m->pairs[i].key = NO_PAIR;
    int32_t rank = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        Sides s = {0};
        int32_t left, right, result;
        if (cJSON_IsString(item) && !strncmp(item->valuestring, "#version", 8))
            continue; /* the head line of a merges.txt */
        if ((status = read_sides(item, what, &s)) != OK ||
            (status = token_id(vocab, s.text[0], s.length[0], what, &left)) != OK ||
            (status = token_id(vocab, s.text[1], s.length[1], what, &right)) != OK)
            goto done;
        if (s.length[1] < dropped || strncmp(s.text[1], prefix, dropped)) {
            status = fail(ERR_FORMAT, "%s: the right side of the merge '%.*s' '%.*s' does not begin with '%.40s'", what,
                          (int)(s.length[0] < 100 ? s.length[0] : 100), s.text[0],
                          (int)(s.length[1] < 100 ? s.length[1] : 100), s.text[1], prefix);
            goto done;
        }
        joined.length = 0;
        if ((status = bytes_append(&joined, s.text[0], s.length[0])) != OK ||
            (status = bytes_append(&joined, s.text[1] + dropped, s.length[1] - dropped)) != OK ||
            (status = token_id(vocab, joined.data ? joined.data : "", joined.length, what, &result)) != OK)
            goto done;
        put(m, left, right, rank);
        m->left[rank] = left, m->right[rank] = right;
        m->result[rank++] = result;
        m->count = rank;
        int special = left == unk || right == unk || !s.length[0] || !s.length[1] || strstr(s.text[0], "<0x") != NULL ||
                      strstr(s.text[1], "<0x") != NULL;
        mark(m, vocab, &s, words, special);
    }
done:
    bytes_free(&joined);
    if (status == OK)
        *out = m;
    else
        merges_free(m);
    return status;
}

void merges_free(Merges *m) {
    if (!m)
        return;
    free(m->pairs);
    free(m->left);
    free(m->right);
    free(m->result);
    free(m->joins);
    free(m);
}
