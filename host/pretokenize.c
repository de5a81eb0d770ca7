#include "pretokenize.h"

#include "bpe.h"
#include "component.h"
#include "json.h"
#include "scan.h"
#include "scripts.h"
#include "unicode.h"
#include "utf8.h"

typedef enum Behavior { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS } Behavior;
static const char *const behaviors[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};

typedef enum StepKind { BYTE_LEVEL, SPLIT, DIGITS, METASPACE, WHITESPACE, WHITESPACE_SPLIT, PUNCTUATION, BERT, SCRIPTS,
                        FIXED_LENGTH } StepKind;
typedef enum Prepend { NEVER, FIRST, ALWAYS } Prepend;

typedef struct Step {
    StepKind kind;
    Behavior behavior;
    int invert;  /* Split: what the pattern finds is kept, what lies between are the delimiters */
    int scanner; /* Split, ByteLevel: as scan_known() says; 0 none */
    int spell;   /* ByteLevel: a later step wants characters of the byte-level alphabet */
    int split;   /* Metaspace */
    Prepend prepend;
    char mark[4]; /* Metaspace: the character for a space */
    int mark_length;
    int64_t width; /* FixedLength: characters */
    Pattern pattern;
    Bytes text; /* the step's own spelling of its text */
} Step;

struct PreTokenizer {
    Step steps[COMPONENT_LIMIT];
    int count;
    int bytes;
};

/* --- loading ------------------------------------------------------------------------------------------------------ */

static Status read_behavior(const cJSON *spec, const char *fallback, const char *what, Behavior *out) {
    const char *name = component_text(spec, "behavior", fallback);
    for (int i = 0; name && i < 5; i++)
        if (!strcmp(name, behaviors[i])) {
            *out = (Behavior)i;
            return OK;
        }
    return fail(ERR_UNSUPPORTED, "%s: unknown behavior '%s' of a pre-tokenizer", what, name ? name : "");
}

static Status read_byte_level(const cJSON *spec, const char *what, Step *s) {
    s->kind = BYTE_LEVEL;
    s->prepend = component_flag(spec, "add_prefix_space", 1) ? ALWAYS : NEVER;
    s->scanner = component_flag(spec, "use_regex", 1) ? -1 : 0;
    return component_keys(spec, "add_prefix_space trim_offsets use_regex", what);
}

static Status read_split(const cJSON *spec, const char *what, Step *s) {
    s->kind = SPLIT;
    s->invert = component_flag(spec, "invert", 0);
    Status status = component_keys(spec, "pattern behavior invert", what);
    if (status == OK)
        status = read_behavior(spec, NULL, what, &s->behavior);
    const char *regex = component_text(json_get(spec, "pattern"), "Regex", NULL);
    if (regex && !s->invert && s->behavior == ISOLATED)
        s->scanner = scan_known(regex);
    return status == OK && !s->scanner ? pattern_load(json_get(spec, "pattern"), what, &s->pattern) : status;
}

static Status read_metaspace(const cJSON *spec, const char *what, Step *s) {
    s->kind = METASPACE;
    s->behavior = MERGED_WITH_NEXT;
    s->split = component_flag(spec, "split", 1);
    const char *scheme = component_text(spec, "prepend_scheme", NULL);
    const char *mark = component_text(spec, "replacement", "\xE2\x96\x81");
    if (!scheme)
        scheme = component_flag(spec, "add_prefix_space", 1) ? "always" : "never"; /* files before prepend_scheme */
    if (strcmp(scheme, "never") && strcmp(scheme, "first") && strcmp(scheme, "always"))
        return fail(ERR_UNSUPPORTED, "%s: unknown prepend_scheme '%s'", what, scheme);
    s->prepend = *scheme == 'n' ? NEVER : *scheme == 'f' ? FIRST : ALWAYS;
    s->mark_length = (int)strlen(mark);
    if (s->mark_length == 0 || s->mark_length != utf8_length(*mark))
        return fail(ERR_FORMAT, "%s: the replacement of Metaspace is not one character", what);
    memcpy(s->mark, mark, (size_t)s->mark_length);
    return component_keys(spec, "replacement add_prefix_space prepend_scheme split str_rep", what);
}

static Status read_step(const cJSON *spec, const char *type, const char *what, Step *s) {
    if (!strcmp(type, "ByteLevel"))
        return read_byte_level(spec, what, s);
    if (!strcmp(type, "Split"))
        return read_split(spec, what, s);
    if (!strcmp(type, "Metaspace"))
        return read_metaspace(spec, what, s);
    if (!strcmp(type, "Digits")) {
        s->kind = DIGITS;
        s->behavior = component_flag(spec, "individual_digits", 0) ? ISOLATED : CONTIGUOUS;
        return component_keys(spec, "individual_digits", what);
    }
    if (!strcmp(type, "Punctuation")) {
        s->kind = PUNCTUATION;
        Status status = read_behavior(spec, "Isolated", what, &s->behavior);
        return status == OK ? component_keys(spec, "behavior", what) : status;
    }
    if (!strcmp(type, "CharDelimiterSplit")) {
        const char *delimiter = component_text(spec, "delimiter", "");
        s->kind = SPLIT;
        s->behavior = REMOVED;
        s->pattern.length = strlen(delimiter);
        if (!s->pattern.length || s->pattern.length != (size_t)utf8_length(*delimiter))
            return fail(ERR_FORMAT, "%s: the delimiter of CharDelimiterSplit is not one character", what);
        if (!(s->pattern.literal = strdup(delimiter)))
            return fail(ERR_MEMORY, "no memory for a tokenizer");
        return component_keys(spec, "delimiter", what);
    }
    if (!strcmp(type, "FixedLength")) {
        s->kind = FIXED_LENGTH;
        s->width = 5;
        if (json_get(spec, "length") && (!json_integer(json_get(spec, "length"), &s->width) || s->width < 1))
            return fail(ERR_FORMAT, "%s: the length of FixedLength is no number of characters", what);
        return component_keys(spec, "length", what);
    }
    if (!strcmp(type, "Whitespace"))
        s->kind = WHITESPACE;
    else if (!strcmp(type, "UnicodeScripts"))
        s->kind = SCRIPTS;
    else if (!strcmp(type, "WhitespaceSplit"))
        s->kind = WHITESPACE_SPLIT;
    else if (!strcmp(type, "BertPreTokenizer"))
        s->kind = BERT;
    else
        return fail(ERR_UNSUPPORTED, "%s: the pre-tokenizer '%s' is not supported", what, type);
    return component_keys(spec, "", what);
}

/* A sequence inside a sequence does what its members would do in its place. JSON's own depth bounds the recursion. */
static Status read_steps(PreTokenizer *t, const cJSON *spec, const char *what) {
    const char *type;
    Status status = component_type(spec, "pre-tokenizer", what, &type);
    if (status != OK)
        return status;
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_get(spec, "pretokenizers"), *item;
        if (!cJSON_IsArray(list))
            return fail(ERR_FORMAT, "%s: a Sequence without a list of pre-tokenizers", what);
        status = component_keys(spec, "pretokenizers", what);
        cJSON_ArrayForEach(item, list)
            if (status == OK)
                status = read_steps(t, item, what);
        return status;
    }
    if (t->count == COMPONENT_LIMIT)
        return fail(ERR_UNSUPPORTED, "%s: more than %d pre-tokenizers", what, COMPONENT_LIMIT);
    return read_step(spec, type, what, &t->steps[t->count++]);
}

Status pretokenizer_load(const cJSON *spec, const char *what, PreTokenizer **out) {
    *out = NULL;
    PreTokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return fail(ERR_MEMORY, "no memory for a tokenizer");
    unicode_open();
    Status status = spec && !cJSON_IsNull(spec) ? read_steps(t, spec, what) : OK;
    t->bytes = t->count > 0 && t->steps[t->count - 1].kind == BYTE_LEVEL;
    for (int i = 0; i + 1 < t->count; i++) {
        t->steps[i].spell = t->steps[i].kind == BYTE_LEVEL;
        if (t->steps[i].spell && t->bytes)
            status = fail(ERR_UNSUPPORTED, "%s: two ByteLevel pre-tokenizers", what);
    }
    if (status == OK)
        *out = t;
    else
        pretokenizer_free(t);
    return status;
}

int pretokenizer_bytes(const PreTokenizer *t) { return t->bytes; }

void pretokenizer_spell(PreTokenizer *t) {
    if (t->bytes)
        t->steps[t->count - 1].spell = 1;
    t->bytes = 0;
}

void pretokenizer_free(PreTokenizer *t) {
    if (!t)
        return;
    for (int i = 0; i < t->count; i++) {
        pattern_free(&t->steps[i].pattern);
        bytes_free(&t->steps[i].text);
    }
    free(t);
}

/* --- cutting ------------------------------------------------------------------------------------------------------ */

typedef struct Run {
    PreTokenizer *tokenizer;
    WordSink sink;
    void *context;
} Run;

static Status take(const Run *r, int step, const char *p, size_t n, int at_start);

/* Pieces of one text come in order, each a delimiter or not; what they become follows the behavior. */
typedef struct Cutter {
    const Run *run;
    const char *text;
    int step, at_start;
    Behavior behavior;
    size_t start, end;              /* the piece that waits for what follows */
    int waits, matched, was_delimiter; /* matched: the piece that waits is a delimiter */
} Cutter;

static Status give(const Cutter *c, size_t start, size_t end) {
    return take(c->run, c->step + 1, c->text + start, end - start, c->at_start && start == 0);
}

static Status cut(Cutter *c, size_t start, size_t end, int delimiter) {
    int joins = 0;
    switch (c->behavior) {
    case REMOVED: return delimiter ? OK : give(c, start, end);
    case ISOLATED: return give(c, start, end);
    case MERGED_WITH_PREVIOUS: joins = delimiter && !c->was_delimiter; break;
    case MERGED_WITH_NEXT: joins = !delimiter && c->matched; break;
    case CONTIGUOUS: joins = delimiter == c->matched; break;
    }
    Status status = OK;
    if (c->waits && !joins)
        status = give(c, c->start, c->end);
    if (!c->waits || !joins)
        c->start = start;
    c->end = end;
    c->waits = 1;
    c->matched = c->was_delimiter = delimiter;
    return status;
}

static Status cut_end(const Cutter *c) { return c->waits ? give(c, c->start, c->end) : OK; }

static Status cut_pattern(Cutter *c, const Pattern *pattern, int invert, size_t n) {
    size_t done = 0;
    int found;
    Match m = {0};
    Status status;
    while ((status = pattern_next(pattern, c->text, n, &m, &found)) == OK && found) {
        if (m.start > done && (status = cut(c, done, m.start, invert)) != OK)
            return status;
        if ((status = cut(c, m.start, m.end, !invert)) != OK)
            return status;
        done = m.end;
    }
    if (status == OK && done < n)
        status = cut(c, done, n, invert);
    return status == OK ? cut_end(c) : status;
}

/* Numbers as Unicode 17 has them. */
static int is_numeric(uint32_t c) {
    return (char_classes[c] & CHAR_NUMBER) || (c >= 0x11DE0 && c <= 0x11DE9) || (c >= 0x16FF4 && c <= 0x16FF6);
}

static int is_delimiter(StepKind kind, uint32_t c) {
    switch (kind) {
    case DIGITS: return is_numeric(c);
    case PUNCTUATION: return char_classes[c] & CHAR_PUNCT;
    default: return char_classes[c] & CHAR_SPACE;
    }
}

/* Each character that is_delimiter() is one; those between them come as one piece. */
static Status cut_characters(Cutter *c, StepKind kind, size_t n) {
    size_t done = 0;
    Status status = OK;
    for (size_t i = 0; i < n && status == OK;) {
        int length, delimiter = is_delimiter(kind, utf8_read(c->text + i, &length)) != 0;
        if (delimiter) {
            if (i > done)
                status = cut(c, done, i, 0);
            if (status == OK)
                status = cut(c, i, i + (size_t)length, 1);
            done = i + (size_t)length;
        }
        i += (size_t)length;
    }
    if (status == OK && done < n)
        status = cut(c, done, n, 0);
    return status == OK ? cut_end(c) : status;
}

/* \w+|[^\w\s]+, or with `bert` runs of neither space nor punctuation, and each punctuation by itself. */
static Status cut_words(Cutter *c, int bert, size_t n) {
    size_t start = 0;
    int kind = 0; /* of the run that ends here: 0 white, 1 word, 2 other */
    Status status = OK;
    for (size_t i = 0; i < n && status == OK;) {
        int length, class = char_classes[utf8_read(c->text + i, &length)];
        int next = class & CHAR_SPACE ? 0 : class & (bert ? CHAR_PUNCT : CHAR_WORD) ? 1 : 2;
        if (next != kind || (bert && next == 1)) {
            if (kind)
                status = give(c, start, i);
            start = i;
            kind = next;
        }
        i += (size_t)length;
    }
    return status == OK && kind ? give(c, start, n) : status;
}

/* Before each character of another script than the last that has one; the text before the first such is dropped, as the
 * reference does. */
static Status cut_scripts(const Cutter *c, size_t n) {
    int script = SCRIPT_ANY;
    size_t start = n;
    Status status = OK;
    for (size_t i = 0; i < n && status == OK;) {
        int length, next = script_of(utf8_read(c->text + i, &length));
        if (next != SCRIPT_ANY && next != script) {
            if (i > start)
                status = give(c, start, i);
            start = i;
            script = next;
        }
        i += (size_t)length;
    }
    return status == OK && start < n ? give(c, start, n) : status;
}

static Status cut_fixed(const Cutter *c, int64_t width, size_t n) {
    Status status = OK;
    for (size_t start = 0, end = 0; start < n && status == OK; start = end) {
        for (int64_t i = 0; i < width && end < n; i++)
            end += (size_t)utf8_length(c->text[end]);
        status = give(c, start, end);
    }
    return status;
}

static Status cut_scanned(const Cutter *c, int scanner, size_t n) {
    const char *p = c->text, *end = p + n;
    Status status = OK;
    while (p < end && status == OK) {
        size_t length = scanner < 0 ? scan_gpt2(p, end) : scan_gpt4(p, end, scanner);
        status = give(c, (size_t)(p - c->text), (size_t)(p - c->text) + length);
        p += length;
    }
    return status;
}

/* --- steps that rewrite ------------------------------------------------------------------------------------------- */

static Status spell(const Run *r, int step, const char *p, size_t n, int at_start) {
    Bytes text = {0};
    Status status = bytes_reserve(&text, 2 * n);
    for (size_t i = 0; i < n && status == OK; i++)
        text.length += (size_t)utf8_write(text.data + text.length, byte_level_char((unsigned char)p[i]));
    if (status == OK)
        status = take(r, step + 1, text.data, text.length, at_start);
    bytes_free(&text);
    return status;
}

static Status byte_level(const Run *r, int step, const char *p, size_t n, int at_start) {
    Step *s = &r->tokenizer->steps[step];
    if (s->prepend == ALWAYS && *p != ' ') {
        s->text.length = 0;
        Status status = bytes_append(&s->text, " ", 1);
        if (status == OK)
            status = bytes_append(&s->text, p, n);
        if (status != OK)
            return status;
        p = s->text.data, n = s->text.length;
    }
    if (!s->spell) {
        Cutter c = {.run = r, .text = p, .step = step, .at_start = at_start};
        return s->scanner ? cut_scanned(&c, s->scanner, n) : give(&c, 0, n);
    }
    const char *end = p + n;
    Status status = OK;
    for (size_t length; p < end && status == OK; p += length, at_start = 0) {
        length = s->scanner ? scan_gpt2(p, end) : n;
        status = spell(r, step, p, length, at_start);
    }
    return status;
}

static Status metaspace(const Run *r, int step, const char *p, size_t n, int at_start) {
    Step *s = &r->tokenizer->steps[step];
    size_t width = (size_t)s->mark_length;
    int marked = *p == ' ' || (n >= width && !memcmp(p, s->mark, width));
    s->text.length = 0;
    Status status = OK;
    if (!marked && (s->prepend == ALWAYS || (s->prepend == FIRST && at_start)))
        status = bytes_append(&s->text, s->mark, width);
    for (const char *end = p + n; p < end && status == OK;) {
        const char *space = memchr(p, ' ', (size_t)(end - p)), *stop = space ? space : end;
        status = bytes_append(&s->text, p, (size_t)(stop - p));
        if (space && status == OK)
            status = bytes_append(&s->text, s->mark, width);
        p = stop + (space != NULL);
    }
    if (status != OK)
        return status;
    Cutter c = {.run = r, .text = s->text.data, .step = step, .at_start = at_start, .behavior = s->behavior};
    Pattern mark = {.literal = s->mark, .length = width};
    return s->split ? cut_pattern(&c, &mark, 0, s->text.length) : give(&c, 0, s->text.length);
}

/* take() : hands a text to a step, or to the sink after the last. Depth is the number of steps. */
static Status take(const Run *r, int step, const char *p, size_t n, int at_start) {
    if (n == 0)
        return OK;
    if (step == r->tokenizer->count)
        return r->sink(r->context, p, n);
    Step *s = &r->tokenizer->steps[step];
    Cutter c = {.run = r, .text = p, .step = step, .at_start = at_start, .behavior = s->behavior};
    switch (s->kind) {
    case BYTE_LEVEL: return byte_level(r, step, p, n, at_start);
    case METASPACE: return metaspace(r, step, p, n, at_start);
    case SPLIT: return s->scanner ? cut_scanned(&c, s->scanner, n) : cut_pattern(&c, &s->pattern, s->invert, n);
    case DIGITS:
    case PUNCTUATION:
    case WHITESPACE_SPLIT: return cut_characters(&c, s->kind, n);
    case WHITESPACE: return cut_words(&c, 0, n);
    case BERT: return cut_words(&c, 1, n);
    case SCRIPTS: return cut_scripts(&c, n);
    case FIXED_LENGTH: return cut_fixed(&c, s->width, n);
    }
    return OK;
}

Status pretokenizer_run(PreTokenizer *t, const char *text, size_t n, int at_start, WordSink sink, void *context) {
    Run run = {t, sink, context};
    return take(&run, 0, text, n, at_start);
}
