#include "tokenizer.h"

#include "added.h"
#include "bpe.h"
#include "component.h"
#include "decode.h"
#include "json.h"
#include "normalize.h"
#include "postprocess.h"
#include "pretokenize.h"
#include "unigram.h"
#include "utf8.h"
#include "wordpiece.h"

struct Tokenizer {
    Vocab vocab;           /* the model's tokens and the added ones */
    uint8_t *special;      /* by id */
    char **normal;         /* by id: an added token as the normalizer leaves it, which is what it decodes to; NULL: as it is */
    AddedSet *raw, *after; /* added tokens found in the text as it is, and in the normalized text */
    Normalizer *normalizer;
    PreTokenizer *pretokenizer;
    Bpe *bpe; /* the model: one of these three */
    WordPiece *wordpiece;
    Unigram *unigram;
    PostProcessor *postprocessor;
    Decoder *decoder;
    Ids prefix;
};

struct TokenStream {
    const Tokenizer *tokenizer;
    Decoding *decoding;
    int skip_special;
};

/* --- loading ------------------------------------------------------------------------------------------------------ */

typedef enum ModelKind { BPE, WORDPIECE, WORD_LEVEL, UNIGRAM, UNKNOWN } ModelKind;

/* Old files name no type; what they hold tells it. */
static ModelKind guess_kind(const cJSON *model) {
    if (json_get(model, "merges"))
        return BPE;
    if (cJSON_IsArray(json_get(model, "vocab")))
        return UNIGRAM;
    if (json_get(model, "max_input_chars_per_word"))
        return WORDPIECE;
    return json_get(model, "unk_token") ? WORD_LEVEL : UNKNOWN;
}

static Status model_kind(const cJSON *model, const char *what, ModelKind *out) {
    static const char *const names[] = {"BPE", "WordPiece", "WordLevel", "Unigram"};
    const cJSON *type = json_get(model, "type");
    if (!cJSON_IsObject(model))
        return fail(ERR_FORMAT, "%s: no tokenizer.json: it has no model", what);
    *out = cJSON_IsString(type) ? UNKNOWN : guess_kind(model);
    for (int i = 0; cJSON_IsString(type) && i < 4; i++)
        if (!strcmp(type->valuestring, names[i]))
            *out = (ModelKind)i;
    if (*out != UNKNOWN)
        return OK;
    if (cJSON_IsString(type))
        return fail(ERR_UNSUPPORTED, "%s: the model '%s' is not supported, only BPE, WordPiece, WordLevel and Unigram", what,
                    type->valuestring);
    return fail(ERR_UNSUPPORTED, "%s: the model has no type, and neither merges nor what other models have", what);
}

static Status load_vocab(Tokenizer *t, const cJSON *model, const char *what) {
    const cJSON *vocab = json_get(model, "vocab"), *item;
    if (!cJSON_IsObject(vocab))
        return fail(ERR_FORMAT, "%s: the model has no vocabulary", what);
    Status status = vocab_reserve(&t->vocab, (size_t)cJSON_GetArraySize(vocab));
    cJSON_ArrayForEach(item, vocab) {
        int64_t id;
        if (status == OK && !json_integer(item, &id))
            status = fail(ERR_FORMAT, "%s: token '%.200s' has no number", what, item->string);
        if (status == OK)
            status = vocab_add(&t->vocab, item->string, strlen(item->string), id, what);
    }
    return status;
}

static Status load_model(Tokenizer *t, const cJSON *model, const char *what) {
    ModelKind kind = UNKNOWN;
    Status status = model_kind(model, what, &kind);
    if (status == OK && kind != UNIGRAM)
        status = load_vocab(t, model, what);
    if (status != OK)
        return status;
    if (kind == BPE)
        return bpe_load(model, &t->vocab, pretokenizer_bytes(t->pretokenizer), what, &t->bpe);
    pretokenizer_spell(t->pretokenizer);
    return kind == UNIGRAM ? unigram_load(model, &t->vocab, what, &t->unigram)
                           : wordpiece_load(model, &t->vocab, kind == WORD_LEVEL, what, &t->wordpiece);
}

/* The file's id serves for nothing: like the reference, a token that the vocabulary lacks takes the next id after it. */
static Status number_added(Tokenizer *t, const cJSON *item, const char *what, int32_t *next) {
    const char *text = component_text(item, "content", NULL);
    int64_t id;
    if (!text || !json_integer(json_get(item, "id"), &id))
        return fail(ERR_FORMAT, "%s: an added token without content and id", what);
    size_t n = strlen(text);
    Status status = component_keys(item, "id content single_word lstrip rstrip normalized special", what);
    if (status != OK || n == 0 || vocab_find(&t->vocab, text, n) >= 0)
        return status;
    return vocab_add(&t->vocab, text, n, (*next)++, what);
}

static Status load_added_token(Tokenizer *t, const cJSON *item, int32_t id, const char *what) {
    const char *text = component_text(item, "content", ""), *pattern;
    size_t n = strlen(text), pattern_length;
    AddedToken token = {.id = id,
                        .special = t->special[id] != 0,
                        .lstrip = component_flag(item, "lstrip", 0) != 0,
                        .rstrip = component_flag(item, "rstrip", 0) != 0,
                        .single_word = component_flag(item, "single_word", 0) != 0};
    if (!component_flag(item, "normalized", 1))
        return added_put(t->raw, text, n, token);
    int from_start;
    Status status = normalizer_run(t->normalizer, text, n, &pattern, &pattern_length, &from_start);
    if (status == OK && !pattern_length)
        status = fail(ERR_UNSUPPORTED, "%s: the normalizer leaves nothing of the added token '%.200s'", what, text);
    if (status == OK && (pattern_length != n || memcmp(pattern, text, n)) &&
        !(t->normal[id] = strndup(pattern, pattern_length)))
        status = fail(ERR_MEMORY, "no memory for added tokens");
    return status == OK ? added_put(t->after, pattern, pattern_length, token) : status;
}

static Status load_added(Tokenizer *t, const cJSON *list, const char *what) {
    const cJSON *item;
    int32_t next = (int32_t)t->vocab.count;
    Status status = added_open(&t->raw);
    if (status == OK)
        status = added_open(&t->after);
    cJSON_ArrayForEach(item, list)
        if (status == OK)
            status = number_added(t, item, what, &next);
    size_t limit = (size_t)t->vocab.limit + 1;
    const cJSON **last = calloc(limit, sizeof *last); /* of a token that stands there twice the later one counts */
    t->special = calloc(limit, 1);
    t->normal = calloc(limit, sizeof *t->normal);
    if (status == OK && (!last || !t->special || !t->normal))
        status = fail(ERR_MEMORY, "no memory for a tokenizer");
    for (int pass = 0; pass < 2 && status == OK; pass++)
        cJSON_ArrayForEach(item, list) {
            const char *text = component_text(item, "content", "");
            int32_t id = *text ? vocab_find(&t->vocab, text, strlen(text)) : -1;
            if (id < 0 || status != OK)
                continue;
            if (pass == 0) {
                last[id] = item;
                t->special[id] |= component_flag(item, "special", 0) != 0;
            } else if (last[id] == item) {
                status = load_added_token(t, item, id, what);
            }
        }
    free(last);
    return status;
}

Status tokenizer_load(const char *json, size_t n, const char *what, Tokenizer **out) {
    cJSON *root = NULL;
    *out = NULL;
    Tokenizer *t = calloc(1, sizeof *t);
    Status status = t ? json_parse(json, n, what, &root) : fail(ERR_MEMORY, "no memory for a tokenizer");
    if (status == OK)
        status = component_keys(root, "version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder model",
                                what);
    if (status == OK)
        status = normalizer_load(json_get(root, "normalizer"), what, &t->normalizer);
    if (status == OK)
        status = pretokenizer_load(json_get(root, "pre_tokenizer"), what, &t->pretokenizer);
    if (status == OK)
        status = load_model(t, json_get(root, "model"), what);
    if (status == OK)
        status = load_added(t, json_get(root, "added_tokens"), what);
    if (status == OK)
        status = postprocessor_load(json_get(root, "post_processor"), &t->vocab, what, &t->postprocessor);
    if (status == OK)
        status = postprocessor_prefix(t->postprocessor, &t->prefix);
    if (status == OK)
        status = decoder_load(json_get(root, "decoder"), what, &t->decoder);
    cJSON_Delete(root);
    if (status == OK)
        *out = t;
    else
        tokenizer_free(t);
    return status;
}

void tokenizer_free(Tokenizer *t) {
    if (!t)
        return;
    for (int32_t id = 0; t->normal && id < t->vocab.limit; id++)
        free(t->normal[id]);
    vocab_free(&t->vocab);
    free(t->special);
    free(t->normal);
    added_free(t->raw);
    added_free(t->after);
    normalizer_free(t->normalizer);
    pretokenizer_free(t->pretokenizer);
    bpe_free(t->bpe);
    wordpiece_free(t->wordpiece);
    unigram_free(t->unigram);
    postprocessor_free(t->postprocessor);
    decoder_free(t->decoder);
    ids_free(&t->prefix);
    free(t);
}

/* --- encoding ----------------------------------------------------------------------------------------------------- */

typedef struct Encoding {
    Tokenizer *tokenizer;
    Ids *out;
    int special;
} Encoding;

static Status word(void *context, const char *text, size_t n) {
    Encoding *e = context;
    Tokenizer *t = e->tokenizer;
    if (t->bpe)
        return bpe_encode(t->bpe, text, n, e->out);
    return t->unigram ? unigram_encode(t->unigram, text, n, e->out) : wordpiece_encode(t->wordpiece, text, n, e->out);
}

typedef Status (*Between)(Encoding *e, const char *text, size_t n, int at_start);

/* Gives added tokens' ids and hands on the text between them. */
static Status split(Encoding *e, const AddedSet *set, const char *text, size_t n, int at_start, Between between) {
    size_t from = 0, covered = 0, start, end;
    const AddedToken *token;
    Status status = OK;
    while (status == OK && !added_empty(set) && (token = added_next(set, text, n, e->special, &from, covered, &start, &end))) {
        if (start > covered)
            status = between(e, text + covered, start - covered, at_start && covered == 0);
        if (status == OK && start < end)
            status = ids_push(e->out, token->id);
        covered = start < end ? end : covered;
    }
    return status == OK && n > covered ? between(e, text + covered, n - covered, at_start && covered == 0) : status;
}

static Status normalized_piece(Encoding *e, const char *text, size_t n, int at_start) {
    return pretokenizer_run(e->tokenizer->pretokenizer, text, n, at_start, word, e);
}

static Status raw_piece(Encoding *e, const char *text, size_t n, int at_start) {
    int from_start;
    Status status = normalizer_run(e->tokenizer->normalizer, text, n, &text, &n, &from_start);
    return status == OK ? split(e, e->tokenizer->after, text, n, at_start && from_start, normalized_piece) : status;
}

Status tokenizer_encode(Tokenizer *t, const char *text, size_t n, int flags, Ids *out) {
    Bytes repaired = {0};
    Encoding e = {t, out, (flags & ENCODE_SPECIAL) != 0};
    Status status = OK;
    if (flags & ENCODE_BOS)
        status = ids_append(out, t->prefix.data, t->prefix.count);
    if (status == OK)
        status = ids_reserve(out, n / 4 + 16);
    if (status == OK && utf8_valid(text, n) < n) {
        status = utf8_repair(text, n, &repaired);
        text = repaired.data, n = repaired.length;
    }
    if (status == OK)
        status = split(&e, t->raw, text, n, 1, raw_piece);
    bytes_free(&repaired);
    return status;
}

Status tokenizer_encode_framed(Tokenizer *t, const char *a, size_t a_length, const char *b, size_t b_length, int flags, Ids *out,
                               Ids *types) {
    Ids ids[2] = {{0}, {0}};
    Status status = tokenizer_encode(t, a, a_length, flags & ENCODE_SPECIAL, &ids[0]);
    if (status == OK && b)
        status = tokenizer_encode(t, b, b_length, flags & ENCODE_SPECIAL, &ids[1]);
    if (status == OK)
        status = postprocessor_run(t->postprocessor, &ids[0], b ? &ids[1] : NULL, out, types);
    ids_free(&ids[0]);
    ids_free(&ids[1]);
    return status;
}

/* --- decoding ----------------------------------------------------------------------------------------------------- */

Status tokenizer_stream(const Tokenizer *t, int skip_special, TokenStream **out) {
    TokenStream *s = *out = calloc(1, sizeof *s);
    if (!s)
        return fail(ERR_MEMORY, "no memory to decode");
    *s = (TokenStream){t, NULL, skip_special};
    Status status = decoding_open(t->decoder, &s->decoding);
    if (status != OK)
        free(s), *out = NULL;
    return status;
}

Status token_stream_push(TokenStream *s, int32_t id, Bytes *out) {
    size_t n;
    const char *text = vocab_text(&s->tokenizer->vocab, id, &n);
    if (!text)
        return OK;
    if (s->tokenizer->normal[id]) { /* special by its own text then, as in the reference */
        text = s->tokenizer->normal[id], n = strlen(text);
        id = vocab_find(&s->tokenizer->vocab, text, n);
    }
    if (s->skip_special && tokenizer_special(s->tokenizer, id))
        return OK;
    return decoding_push(s->decoding, text, n, out);
}

Status token_stream_finish(TokenStream *s, Bytes *out) { return decoding_finish(s->decoding, out); }

void token_stream_free(TokenStream *s) {
    if (!s)
        return;
    decoding_free(s->decoding);
    free(s);
}

Status tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t count, int skip_special, Bytes *out) {
    TokenStream *s;
    Status status = tokenizer_stream(t, skip_special, &s);
    for (size_t i = 0; i < count && status == OK; i++)
        status = token_stream_push(s, ids[i], out);
    if (status == OK)
        status = token_stream_finish(s, out);
    token_stream_free(s);
    return status;
}

/* --- questions ---------------------------------------------------------------------------------------------------- */

int32_t tokenizer_id(const Tokenizer *t, const char *text, size_t n) { return vocab_find(&t->vocab, text, n); }
const char *tokenizer_token(const Tokenizer *t, int64_t id, size_t *n) { return vocab_text(&t->vocab, id, n); }
int tokenizer_special(const Tokenizer *t, int64_t id) { return id >= 0 && id < t->vocab.limit && t->special[id]; }
int32_t tokenizer_size(const Tokenizer *t) { return t->vocab.limit; }
const Ids *tokenizer_prefix(const Tokenizer *t) { return &t->prefix; }
