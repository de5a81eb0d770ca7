#include "added.h"

#include <stdlib.h>
#include <string.h>

#include "unicode.h"
#include "utf8.h"

/* A trie in one array: the children of a node are a list of siblings. */
typedef struct Node {
    int32_t child, sibling, token; /* -1: none */
    unsigned char byte;
} Node;

struct AddedSet {
    Node *nodes; /* nodes[0] is the root */
    int32_t count, capacity;
    AddedToken *tokens;
    int32_t token_count;
    uint8_t begins[256]; /* bytes that a token begins with */
};

static Status add_node(AddedSet *s, unsigned char byte, int32_t *out) {
    if (s->count == s->capacity) {
        if (s->capacity > INT32_MAX / 4)
            return fail(ERR_FORMAT, "too many added tokens");
        int32_t capacity = 2 * s->capacity + 64;
        Node *nodes = realloc(s->nodes, (size_t)capacity * sizeof *nodes);
        if (!nodes)
            return fail(ERR_MEMORY, "no memory for added tokens");
        s->nodes = nodes;
        s->capacity = capacity;
    }
    s->nodes[s->count] = (Node){-1, -1, -1, byte};
    *out = s->count++;
    return OK;
}

Status added_open(AddedSet **out) {
    int32_t root;
    AddedSet *s = calloc(1, sizeof *s);
    Status status = s ? add_node(s, 0, &root) : fail(ERR_MEMORY, "no memory for added tokens");
    if (status != OK)
        added_free(s), s = NULL;
    *out = s;
    return status;
}

static int32_t find_child(const AddedSet *s, int32_t node, unsigned char byte) {
    int32_t child = s->nodes[node].child;
    while (child >= 0 && s->nodes[child].byte != byte)
        child = s->nodes[child].sibling;
    return child;
}

Status added_put(AddedSet *s, const char *text, size_t n, AddedToken token) {
    int32_t node = 0;
    if (n == 0)
        return OK;
    for (size_t i = 0; i < n; i++) {
        int32_t child = find_child(s, node, (unsigned char)text[i]);
        if (child < 0) {
            Status status = add_node(s, (unsigned char)text[i], &child);
            if (status != OK)
                return status;
            s->nodes[child].sibling = s->nodes[node].child;
            s->nodes[node].child = child;
        }
        node = child;
    }
    AddedToken *tokens = realloc(s->tokens, ((size_t)s->token_count + 1) * sizeof *tokens);
    if (!tokens)
        return fail(ERR_MEMORY, "no memory for added tokens");
    s->tokens = tokens;
    s->tokens[s->token_count] = token;
    s->nodes[node].token = s->token_count++;
    s->begins[(unsigned char)*text] = 1;
    return OK;
}

/* The longest token at p, and its length; NULL if there is none. */
static const AddedToken *longest(const AddedSet *s, const char *p, size_t n, size_t *length) {
    int32_t node = 0, token = -1;
    for (size_t i = 0; i < n && (node = find_child(s, node, (unsigned char)p[i])) >= 0; i++)
        if (s->nodes[node].token >= 0) {
            token = s->nodes[node].token;
            *length = i + 1;
        }
    return token < 0 ? NULL : &s->tokens[token];
}

static int class_before(const char *text, size_t at) {
    int length;
    return at > 0 ? char_classes[utf8_read(utf8_back(text + at), &length)] : 0;
}

static int class_after(const char *text, size_t n, size_t at) {
    int length;
    return at < n ? char_classes[utf8_read(text + at, &length)] : 0;
}

const AddedToken *added_next(const AddedSet *s, const char *text, size_t n, int special, size_t *from, size_t covered,
                             size_t *start, size_t *end) {
    size_t length;
    for (size_t i = *from; i < n; i++) {
        if (!s->begins[(unsigned char)text[i]])
            continue;
        const AddedToken *t = longest(s, text + i, n - i, &length);
        if (!t)
            continue;
        size_t first = i, last = i + length;
        i = last - 1; /* one that is refused still hides those that begin inside it */
        if (t->special && !special)
            continue;
        if (t->single_word && ((class_before(text, first) | class_after(text, n, last)) & CHAR_WORD))
            continue;
        *from = last;
        if (t->lstrip)
            while (first > covered && class_before(text, first) & CHAR_SPACE)
                first = (size_t)(utf8_back(text + first) - text);
        if (t->rstrip && last < covered) /* white space that the one before took: not looked at again and again */
            last = covered;
        if (t->rstrip)
            while (class_after(text, n, last) & CHAR_SPACE)
                last += (size_t)utf8_length(text[last]);
        *start = t->lstrip && first < covered ? covered : first;
        *end = last;
        return t;
    }
    *from = n;
    return NULL;
}

int added_empty(const AddedSet *s) { return s->token_count == 0; }

void added_free(AddedSet *s) {
    if (!s)
        return;
    free(s->nodes);
    free(s->tokens);
    free(s);
}
