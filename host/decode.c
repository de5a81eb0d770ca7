/* A decoder is a chain of stages. Each takes tokens in pieces and gives tokens in pieces: put() adds to the current token,
 * end() ends it. What a stage must know as a whole waits in its own text. */
#include "decode.h"

#include "bpe.h"
#include "component.h"
#include "json.h"
#include "utf8.h"
#include "word_text.h"

typedef enum Kind { BYTE_LEVEL, METASPACE, BYTE_FALLBACK, FUSE, STRIP, REPLACE, SPACES, WORDPIECE, WORD_ENDS } Kind;

typedef struct Stage {
    Kind kind;
    int keep_first;      /* METASPACE: the first token keeps its leading spaces (prepend_scheme never) */
    char mark[4];        /* METASPACE, STRIP: the character */
    size_t mark_length;
    int64_t start, stop; /* STRIP: how many at most */
    Pattern pattern;     /* REPLACE */
    char *content;       /* REPLACE; WORDPIECE: what continues a word; WORD_ENDS: what ends one */
    int cleanup;         /* WORDPIECE */
} Stage;

struct Decoder {
    Stage stages[COMPONENT_LIMIT];
    int count;
};

typedef struct State {
    Bytes text;     /* of the current token, or of what waits */
    int64_t tokens; /* ended so far */
    int64_t cut;    /* STRIP: characters cut from this token's start; -1 once another character came */
    int64_t held;   /* STRIP: marks at the end of this token that may have to go */
} State;

struct Decoding {
    const Decoder *decoder;
    Bytes *out;
    State states[];
};

/* --- loading ------------------------------------------------------------------------------------------------------ */

static Status read_mark(const char *mark, const char *what, Stage *s) {
    s->mark_length = strlen(mark);
    if (s->mark_length == 0 || s->mark_length != (size_t)utf8_length(*mark))
        return fail(ERR_FORMAT, "%s: a decoder's character '%.40s' is not one", what, mark);
    memcpy(s->mark, mark, s->mark_length);
    return OK;
}

static Status read_strip(const cJSON *spec, const char *what, Stage *s) {
    s->kind = STRIP;
    if (!json_integer(json_get(spec, "start"), &s->start) || !json_integer(json_get(spec, "stop"), &s->stop) ||
        s->start < 0 || s->stop < 0)
        return fail(ERR_FORMAT, "%s: the decoder Strip without start and stop", what);
    Status status = read_mark(component_text(spec, "content", ""), what, s);
    return status == OK ? component_keys(spec, "content start stop", what) : status;
}

static Status read_replace(const cJSON *spec, const char *what, Stage *s) {
    s->kind = REPLACE;
    s->content = strdup(component_text(spec, "content", ""));
    Status status = s->content ? pattern_load(json_get(spec, "pattern"), what, &s->pattern)
                               : fail(ERR_MEMORY, "no memory for a tokenizer");
    return status == OK ? component_keys(spec, "pattern content", what) : status;
}

static Status read_affix(const cJSON *spec, Kind kind, const char *what, Stage *s) {
    int pieces = kind == WORDPIECE;
    s->kind = kind;
    s->cleanup = component_flag(spec, "cleanup", 1);
    s->content = strdup(component_text(spec, pieces ? "prefix" : "suffix", pieces ? "##" : "</w>"));
    if (!s->content)
        return fail(ERR_MEMORY, "no memory for a tokenizer");
    if (!pieces && !*s->content)
        return fail(ERR_UNSUPPORTED, "%s: the decoder BPEDecoder with an empty suffix", what);
    return component_keys(spec, pieces ? "prefix cleanup" : "suffix", what);
}

static Status read_stage(const cJSON *spec, const char *type, const char *what, Stage *s) {
    if (!strcmp(type, "Strip"))
        return read_strip(spec, what, s);
    if (!strcmp(type, "Replace"))
        return read_replace(spec, what, s);
    if (!strcmp(type, "WordPiece"))
        return read_affix(spec, WORDPIECE, what, s);
    if (!strcmp(type, "BPEDecoder"))
        return read_affix(spec, WORD_ENDS, what, s);
    if (!strcmp(type, "Metaspace")) {
        s->kind = METASPACE;
        const char *scheme = component_text(spec, "prepend_scheme", NULL);
        s->keep_first = scheme ? !strcmp(scheme, "never") : !component_flag(spec, "add_prefix_space", 1);
        Status status = read_mark(component_text(spec, "replacement", "\xE2\x96\x81"), what, s);
        return status == OK ? component_keys(spec, "replacement add_prefix_space prepend_scheme split str_rep", what) : status;
    }
    if (!strcmp(type, "ByteLevel"))
        s->kind = BYTE_LEVEL;
    else if (!strcmp(type, "ByteFallback"))
        s->kind = BYTE_FALLBACK;
    else if (!strcmp(type, "Fuse"))
        s->kind = FUSE;
    else
        return fail(ERR_UNSUPPORTED, "%s: the decoder '%s' is not supported", what, type);
    return component_keys(spec, s->kind == BYTE_LEVEL ? "add_prefix_space trim_offsets use_regex" : "", what);
}

static Status read_stages(Decoder *d, const cJSON *spec, const char *what) {
    const char *type;
    Status status = component_type(spec, "decoder", what, &type);
    if (status != OK)
        return status;
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_get(spec, "decoders"), *item;
        if (!cJSON_IsArray(list))
            return fail(ERR_FORMAT, "%s: a Sequence without a list of decoders", what);
        status = component_keys(spec, "decoders", what);
        cJSON_ArrayForEach(item, list)
            if (status == OK)
                status = read_stages(d, item, what);
        return status;
    }
    if (d->count == COMPONENT_LIMIT)
        return fail(ERR_UNSUPPORTED, "%s: more than %d decoders", what, COMPONENT_LIMIT);
    return read_stage(spec, type, what, &d->stages[d->count++]);
}

Status decoder_load(const cJSON *spec, const char *what, Decoder **out) {
    *out = NULL;
    Decoder *d = calloc(1, sizeof *d);
    if (!d)
        return fail(ERR_MEMORY, "no memory for a tokenizer");
    Status status = OK;
    if (spec && !cJSON_IsNull(spec))
        status = read_stages(d, spec, what);
    else
        d->stages[d->count++].kind = SPACES;
    if (status == OK)
        *out = d;
    else
        decoder_free(d);
    return status;
}

void decoder_free(Decoder *d) {
    if (!d)
        return;
    for (int i = 0; i < d->count; i++) {
        pattern_free(&d->stages[i].pattern);
        free(d->stages[i].content);
    }
    free(d);
}

/* --- the chain ---------------------------------------------------------------------------------------------------- */

static Status put(Decoding *g, int at, const char *p, size_t n);
static Status end(Decoding *g, int at);

static Status put_token(Decoding *g, int at, const char *p, size_t n) {
    Status status = put(g, at, p, n);
    return status == OK ? end(g, at) : status;
}

/* A token in the byte-level alphabet gives its bytes, any other itself; complete characters go on. */
static Status byte_level_end(Decoding *g, int at, size_t token_start) {
    Bytes *text = &g->states[at].text;
    size_t spelt = 0, n = text->length - token_start;
    char *token = text->data ? text->data + token_start : "", *to = token;
    for (int length; spelt < n; spelt += (size_t)length)
        if (byte_level_byte(utf8_read(token + spelt, &length)) < 0)
            break;
    if (spelt == n) {
        for (size_t i = 0; i < n;) {
            int length;
            *to++ = (char)byte_level_byte(utf8_read(token + i, &length));
            i += (size_t)length;
        }
        text->length = (size_t)(to - token) + token_start;
    }
    size_t done = 0;
    Status status = OK;
    while (done < text->length && status == OK) {
        size_t good = utf8_valid(text->data + done, text->length - done);
        status = good ? put(g, at + 1, text->data + done, good) : OK;
        done += good;
        int bad = done < text->length ? utf8_step(text->data + done, text->length - done) : 0;
        if (bad == 0)
            break;
        if (status == OK)
            status = put(g, at + 1, UTF8_REPLACEMENT, 3);
        done += (size_t)-bad;
    }
    if (done > 0)
        memmove(text->data, text->data + done, text->length - done);
    text->length -= done;
    return status;
}

static Status metaspace_put(Decoding *g, int at, const Stage *s, const char *p, size_t n) {
    Status status = OK;
    while (n > 0 && status == OK) {
        const char *mark = memmem(p, n, s->mark, s->mark_length);
        size_t before = mark ? (size_t)(mark - p) : n, used = mark ? before + s->mark_length : n;
        if (before)
            status = put(g, at + 1, p, before);
        if (mark && status == OK && (s->keep_first || g->states[at].tokens > 0))
            status = put(g, at + 1, " ", 1);
        p += used, n -= used;
    }
    return status;
}

static Status strip_put(Decoding *g, int at, const Stage *s, const char *p, size_t n) {
    State *state = &g->states[at];
    Status status = OK;
    for (size_t length; n > 0 && status == OK; p += length, n -= length) {
        length = (size_t)utf8_length(*p);
        if (length == s->mark_length && !memcmp(p, s->mark, length)) {
            if (state->cut >= 0 && state->cut < s->start)
                state->cut++;
            else if (state->held < s->stop)
                state->cut = -1, state->held++;
            else
                state->cut = -1, status = put(g, at + 1, p, length);
            continue;
        }
        state->cut = -1;
        for (; state->held > 0 && status == OK; state->held--)
            status = put(g, at + 1, s->mark, s->mark_length);
        if (status == OK)
            status = put(g, at + 1, p, length);
    }
    return status;
}

/* Gives what no later piece of the token can change: with `all` everything. A regular expression may look anywhere. */
static Status replace(Decoding *g, int at, const Stage *s, int all) {
    Bytes *text = &g->states[at].text;
    size_t done = 0, n = text->length;
    int found;
    Match m = {0};
    Status status = OK;
    if (s->pattern.regex && !all)
        return OK;
    while (status == OK && (status = pattern_next(&s->pattern, text->data ? text->data : "", n, &m, &found)) == OK && found) {
        if (m.start > done)
            status = put(g, at + 1, text->data + done, m.start - done);
        if (status == OK && *s->content)
            status = put(g, at + 1, s->content, strlen(s->content));
        done = m.end;
    }
    size_t keep = all ? 0 : s->pattern.length - 1, stop = n - done > keep ? n - keep : done;
    while (stop > done && stop < n && ((unsigned char)text->data[stop] & 0xC0) == 0x80)
        stop--;
    if (stop > done && status == OK)
        status = put(g, at + 1, text->data + done, stop - done);
    if (stop > 0 && n > stop)
        memmove(text->data, text->data + stop, n - stop);
    text->length = n - stop;
    return status;
}

/* The byte of a token <0xHH>; -1 if it is none. */
static int byte_of(const char *p, size_t n) {
    int byte = 0;
    if (n != 6 || memcmp(p, "<0x", 3) || p[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        int digit = p[i] >= '0' && p[i] <= '9' ? p[i] - '0' : (p[i] | 32) >= 'a' && (p[i] | 32) <= 'f' ? (p[i] | 32) - 'a' + 10 : -1;
        if (digit < 0)
            return -1;
        byte = byte * 16 + digit;
    }
    return byte;
}

/* The run of bytes before text[run]: one token if it is UTF-8, else a replacement for each byte. */
static Status flush_bytes(Decoding *g, int at, size_t run) {
    const char *bytes = g->states[at].text.data;
    if (run == 0)
        return OK;
    if (utf8_valid(bytes, run) == run)
        return put_token(g, at + 1, bytes, run);
    Status status = OK;
    for (size_t i = 0; i < run && status == OK; i++)
        status = put_token(g, at + 1, UTF8_REPLACEMENT, 3);
    return status;
}

/* The stage's text is the run of bytes, `held` of them, then the current token. */
static Status byte_fallback_end(Decoding *g, int at) {
    State *state = &g->states[at];
    size_t run = (size_t)state->held, n = state->text.length - run;
    const char *token = state->text.data ? state->text.data + run : "";
    int byte = byte_of(token, n);
    if (byte >= 0) {
        state->text.data[run] = (char)byte;
        state->text.length = run + 1;
        state->held++;
        return OK;
    }
    Status status = flush_bytes(g, at, run);
    if (status == OK)
        status = put_token(g, at + 1, token, n);
    state->text.length = 0;
    state->held = 0;
    return status;
}

static Status wordpiece_end(Decoding *g, int at, const Stage *s) {
    State *state = &g->states[at];
    Status status = word_text(&state->text, s->content, state->tokens == 0, s->cleanup);
    if (status == OK)
        status = put_token(g, at + 1, state->text.data ? state->text.data : "", state->text.length);
    state->text.length = 0;
    state->tokens++;
    return status;
}

/* The ends of words in the token before are spaces as another came; in the last one they are nothing. state->cut is the length
 * of the token before, which waits in front of the current one. */
static Status word_ends_flush(Decoding *g, int at, const Stage *s, const char *space) {
    State *state = &g->states[at];
    size_t before = (size_t)state->cut;
    Bytes token = {0};
    if (state->tokens == 0)
        return OK;
    Status status = bytes_append(&token, state->text.data, before);
    if (status == OK)
        status = word_replace(&token, s->content, space);
    if (status == OK)
        status = put_token(g, at + 1, token.data ? token.data : "", token.length);
    bytes_free(&token);
    if (before)
        memmove(state->text.data, state->text.data + before, state->text.length - before);
    state->text.length -= before;
    return status;
}

static Status word_ends_end(Decoding *g, int at, const Stage *s) {
    Status status = word_ends_flush(g, at, s, " ");
    g->states[at].cut = (int64_t)g->states[at].text.length;
    g->states[at].tokens++;
    return status;
}

static Status put(Decoding *g, int at, const char *p, size_t n) {
    if (at == g->decoder->count)
        return bytes_append(g->out, p, n);
    const Stage *s = &g->decoder->stages[at];
    State *state = &g->states[at];
    switch (s->kind) {
    case METASPACE: return metaspace_put(g, at, s, p, n);
    case STRIP: return strip_put(g, at, s, p, n);
    case FUSE: return put(g, at + 1, p, n);
    case SPACES: return put(g, at + 1, p, n);
    case BYTE_LEVEL:
        if (state->held < 0) /* where the token starts */
            state->held = (int64_t)state->text.length;
        return bytes_append(&state->text, p, n);
    case WORDPIECE:
    case WORD_ENDS:
    case BYTE_FALLBACK: return bytes_append(&state->text, p, n);
    case REPLACE: {
        Status status = bytes_append(&state->text, p, n);
        return status == OK ? replace(g, at, s, 0) : status;
    }
    }
    return OK;
}

static Status end(Decoding *g, int at) {
    if (at == g->decoder->count)
        return OK;
    const Stage *s = &g->decoder->stages[at];
    State *state = &g->states[at];
    Status status = OK;
    switch (s->kind) {
    case FUSE: return OK;
    case BYTE_LEVEL:
        status = byte_level_end(g, at, state->held < 0 ? state->text.length : (size_t)state->held);
        state->held = -1;
        return status;
    case BYTE_FALLBACK: return byte_fallback_end(g, at);
    case WORDPIECE: return wordpiece_end(g, at, s);
    case WORD_ENDS: return word_ends_end(g, at, s);
    case REPLACE: status = replace(g, at, s, 1); break;
    case STRIP: state->cut = state->held = 0; break;
    case METASPACE:
    case SPACES: break;
    }
    state->tokens++;
    return status == OK ? end(g, at + 1) : status;
}

/* --- one text ----------------------------------------------------------------------------------------------------- */

static void reset(Decoding *g) {
    for (int i = 0; i < g->decoder->count; i++) {
        State *state = &g->states[i];
        state->text.length = 0;
        state->tokens = state->cut = 0;
        state->held = g->decoder->stages[i].kind == BYTE_LEVEL ? -1 : 0;
    }
}

Status decoding_open(const Decoder *d, Decoding **out) {
    Decoding *g = calloc(1, sizeof *g + (size_t)d->count * sizeof g->states[0]);
    *out = g;
    if (!g)
        return fail(ERR_MEMORY, "no memory to decode");
    g->decoder = d;
    reset(g);
    return OK;
}

Status decoding_push(Decoding *g, const char *token, size_t n, Bytes *out) {
    const Stage *first = &g->decoder->stages[0];
    g->out = out;
    if (g->decoder->count && first->kind == SPACES && g->states[0].tokens > 0) {
        Status status = bytes_append(out, " ", 1);
        if (status != OK)
            return status;
    }
    return put_token(g, 0, token, n);
}

Status decoding_finish(Decoding *g, Bytes *out) {
    Status status = OK;
    g->out = out;
    for (int i = 0; i < g->decoder->count && status == OK; i++) {
        State *state = &g->states[i];
        switch (g->decoder->stages[i].kind) {
        case BYTE_LEVEL:
            if (state->text.length) /* the beginning of a character that never came */
                status = put(g, i + 1, UTF8_REPLACEMENT, 3);
            if (status == OK)
                status = end(g, i + 1);
            break;
        case BYTE_FALLBACK: status = flush_bytes(g, i, (size_t)state->held); break;
        case FUSE: status = end(g, i + 1); break;
        case WORD_ENDS: status = word_ends_flush(g, i, &g->decoder->stages[i], ""); break;
        default: break;
        }
    }
    reset(g);
    return status;
}

void decoding_free(Decoding *g) {
    if (!g)
        return;
    for (int i = 0; i < g->decoder->count; i++)
        bytes_free(&g->states[i].text);
    free(g);
}
