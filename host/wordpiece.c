#include "wordpiece.h"

#include <stdlib.h>
#include <string.h>

#include "component.h"
#include "json.h"
#include "trie.h"

struct WordPiece {
    const Vocab *vocab;
    int whole_words;
    int32_t limit;     /* the model's tokens have ids below; added tokens come later */
    int32_t unk;       /* -1: not in the vocabulary */
    int32_t continued; /* the trie's node behind the prefix of what does not begin a word; -1 if no token has it */
    int64_t longest;   /* characters of a word that is still cut */
    Trie trie;
    char *unk_token, *what;
};

static int32_t behind(const Trie *t, const char *prefix) {
    int32_t node = 0;
    for (; *prefix && node >= 0; prefix++)
        node = trie_step(t, node, *prefix);
    return node;
}

Status wordpiece_load(const cJSON *model, const Vocab *vocab, int whole_words, const char *what, WordPiece **out) {
    const cJSON *longest = json_get(model, "max_input_chars_per_word");
    const char *unk = component_text(model, "unk_token", "[UNK]");
    *out = NULL;
    Status status = component_keys(
        model, whole_words ? "vocab unk_token" : "vocab unk_token continuing_subword_prefix max_input_chars_per_word", what);
    if (status != OK)
        return status;
    WordPiece *w = calloc(1, sizeof *w);
    if (!w)
        return fail(ERR_MEMORY, "no memory for a tokenizer");
    w->vocab = vocab;
    w->whole_words = whole_words;
    w->limit = vocab->limit;
    w->unk = vocab_find(vocab, unk, strlen(unk));
    w->unk_token = strdup(unk);
    w->what = strdup(what);
    w->longest = 100;
    if (!w->unk_token || !w->what)
        status = fail(ERR_MEMORY, "no memory for a tokenizer");
    else if (longest && (!json_integer(longest, &w->longest) || w->longest < 0))
        status = fail(ERR_FORMAT, "%s: max_input_chars_per_word is no number of characters", what);
    else if (!whole_words)
        status = trie_add_vocab(&w->trie, vocab);
    w->continued = behind(&w->trie, component_text(model, "continuing_subword_prefix", "##"));
    if (status == OK)
        *out = w;
    else
        wordpiece_free(w);
    return status;
}

static Status push_unknown(const WordPiece *w, Ids *out) {
    return w->unk >= 0 ? ids_push(out, w->unk)
                       : fail(ERR_FORMAT, "%s: the text needs the unknown token '%.200s', which the vocabulary lacks", w->what,
                              w->unk_token);
}

static int too_long(const WordPiece *w, const char *word, size_t n) {
    int64_t characters = 0;
    for (size_t i = 0; i < n && characters <= w->longest; i++)
        characters += ((unsigned char)word[i] & 0xC0) != 0x80;
    return characters > w->longest;
}

Status wordpiece_encode(const WordPiece *w, const char *word, size_t n, Ids *out) {
    if (w->whole_words) {
        int32_t id = vocab_find(w->vocab, word, n);
        return id >= 0 && id < w->limit ? ids_push(out, id) : push_unknown(w, out);
    }
    if (too_long(w, word, n))
        return push_unknown(w, out);
    size_t before = out->count, length = 0;
    for (size_t i = 0; i < n; i += length) {
        int32_t node = i ? w->continued : 0, id = node < 0 ? -1 : trie_longest(&w->trie, node, word + i, n - i, &length);
        if (id < 0) {
            out->count = before;
            return push_unknown(w, out);
        }
        Status status = ids_push(out, id);
        if (status != OK)
            return status;
    }
    return OK;
}

void wordpiece_free(WordPiece *w) {
    if (!w)
        return;
    trie_free(&w->trie);
    free(w->unk_token);
    free(w->what);
    free(w);
}
