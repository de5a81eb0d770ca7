#include "normalize.h"

#include <utf8proc.h>

#include "bpe.h"
#include "charsmap.h"
#include "component.h"
#include "json.h"
#include "unicode.h"
#include "unicode_forms.h"
#include "utf8.h"

typedef enum Kind { FORM, LOWERCASE, STRIP_ACCENTS, BERT, REPLACE, PREPEND, STRIP, PRECOMPILED, NMT, SPELL } Kind;

typedef struct Step {
    Kind kind;
    int compatible, composed;                 /* FORM */
    int clean, chinese, accents, lowercase;   /* BERT */
    int left, right;                          /* STRIP */
    Pattern pattern;                          /* REPLACE */
    char *content;                            /* REPLACE, PREPEND */
    Charsmap *charsmap;                       /* PRECOMPILED */
} Step;

struct Normalizer {
    Step steps[COMPONENT_LIMIT];
    int count;
    Bytes text[3]; /* a step reads one and writes another; the third is for steps within a step */
};

/* --- loading ------------------------------------------------------------------------------------------------------ */

static Status copy_text(const cJSON *spec, const char *key, const char *what, char **out) {
    const char *text = component_text(spec, key, NULL);
    if (!text)
        return fail(ERR_FORMAT, "%s: %s without '%s'", what, component_text(spec, "type", ""), key);
    *out = strdup(text);
    return *out ? OK : fail(ERR_MEMORY, "no memory for a tokenizer");
}

static Status read_bert(const cJSON *spec, const char *what, Step *s) {
    s->kind = BERT;
    s->clean = component_flag(spec, "clean_text", 1);
    s->chinese = component_flag(spec, "handle_chinese_chars", 1);
    s->lowercase = component_flag(spec, "lowercase", 1);
    s->accents = component_flag(spec, "strip_accents", s->lowercase); /* null follows lowercase */
    return component_keys(spec, "clean_text handle_chinese_chars strip_accents lowercase", what);
}

static Status read_step(const cJSON *spec, const char *type, const char *what, Step *s) {
    const char *keys = "";
    Status status = OK;
    if (!strcmp(type, "BertNormalizer"))
        return read_bert(spec, what, s);
    if (!strcmp(type, "NFC") || !strcmp(type, "NFD") || !strcmp(type, "NFKC") || !strcmp(type, "NFKD")) {
        s->kind = FORM;
        s->compatible = type[2] == 'K';
        s->composed = type[strlen(type) - 1] == 'C';
    } else if (!strcmp(type, "Lowercase")) {
        s->kind = LOWERCASE;
    } else if (!strcmp(type, "StripAccents")) {
        s->kind = STRIP_ACCENTS;
    } else if (!strcmp(type, "Strip")) {
        s->kind = STRIP;
        s->left = component_flag(spec, "strip_left", 1);
        s->right = component_flag(spec, "strip_right", 1);
        keys = "strip_left strip_right";
    } else if (!strcmp(type, "Prepend")) {
        s->kind = PREPEND;
        status = copy_text(spec, "prepend", what, &s->content);
        keys = "prepend";
    } else if (!strcmp(type, "Replace")) {
        s->kind = REPLACE;
        status = copy_text(spec, "content", what, &s->content);
        if (status == OK)
            status = pattern_load(json_get(spec, "pattern"), what, &s->pattern);
        keys = "pattern content";
    } else if (!strcmp(type, "Precompiled")) {
        s->kind = PRECOMPILED;
        status = charsmap_load(component_text(spec, "precompiled_charsmap", ""), what, &s->charsmap);
        keys = "precompiled_charsmap";
    } else if (!strcmp(type, "Nmt")) {
        s->kind = NMT;
    } else if (!strcmp(type, "ByteLevel")) {
        s->kind = SPELL;
        keys = "add_prefix_space trim_offsets use_regex";
    } else {
        return fail(ERR_UNSUPPORTED, "%s: the normalizer '%s' is not supported", what, type);
    }
    return status == OK ? component_keys(spec, keys, what) : status;
}

static Status read_steps(Normalizer *n, const cJSON *spec, const char *what) {
    const char *type;
    Status status = component_type(spec, "normalizer", what, &type);
    if (status != OK)
        return status;
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_get(spec, "normalizers"), *item;
        if (!cJSON_IsArray(list))
            return fail(ERR_FORMAT, "%s: a Sequence without a list of normalizers", what);
        status = component_keys(spec, "normalizers", what);
        cJSON_ArrayForEach(item, list)
            if (status == OK)
                status = read_steps(n, item, what);
        return status;
    }
    if (n->count == COMPONENT_LIMIT)
        return fail(ERR_UNSUPPORTED, "%s: more than %d normalizers", what, COMPONENT_LIMIT);
    return read_step(spec, type, what, &n->steps[n->count++]);
}

Status normalizer_load(const cJSON *spec, const char *what, Normalizer **out) {
    *out = NULL;
    Normalizer *n = calloc(1, sizeof *n);
    if (!n)
        return fail(ERR_MEMORY, "no memory for a tokenizer");
    unicode_open();
    Status status = spec && !cJSON_IsNull(spec) ? read_steps(n, spec, what) : OK;
    if (status == OK)
        *out = n;
    else
        normalizer_free(n);
    return status;
}

void normalizer_free(Normalizer *n) {
    if (!n)
        return;
    for (int i = 0; i < n->count; i++) {
        pattern_free(&n->steps[i].pattern);
        free(n->steps[i].content);
        charsmap_free(n->steps[i].charsmap);
    }
    for (int i = 0; i < 3; i++)
        bytes_free(&n->text[i]);
    free(n);
}

/* --- rewriting ---------------------------------------------------------------------------------------------------- */

static Status put(Bytes *out, uint32_t c) {
    char text[4];
    return bytes_append(out, text, (size_t)utf8_write(text, c));
}

/* With the capitals of Unicode 16 and 17, which utf8proc 2.8 does not know. */
static uint32_t lower(uint32_t c) {
    if (c < 0x80)
        return c >= 'A' && c <= 'Z' ? c + 32 : c;
    switch (c) {
    case 0x1C89: case 0xA7CC: case 0xA7CE: case 0xA7D2: case 0xA7D4: case 0xA7DA: return c + 1;
    case 0xA7CB: return 0x264;
    case 0xA7DC: return 0x19B;
    default: break;
    }
    if (c >= 0x10D50 && c <= 0x10D65)
        return c + 0x20;
    if (c >= 0x16EA0 && c <= 0x16EB8)
        return c + 0x1B;
    return (uint32_t)utf8proc_tolower((int32_t)c);
}

static Status lowercase(const char *text, size_t n, Bytes *out) {
    Status status = bytes_reserve(out, n + n / 2); /* two bytes may become three */
    for (size_t i = 0; i < n && status == OK;) {
        int length;
        uint32_t c = utf8_read(text + i, &length);
        i += (size_t)length;
        if (c == 0x130) /* the only character whose lower case is two: i and a dot above */
            status = bytes_append(out, "i\xCC\x87", 3);
        else
            status = put(out, lower(c));
    }
    return status;
}

static Status drop(const char *text, size_t n, int class, Bytes *out) {
    Status status = bytes_reserve(out, n);
    for (size_t i = 0; i < n && status == OK;) {
        int length;
        if (!(char_classes[utf8_read(text + i, &length)] & class))
            status = bytes_append(out, text + i, (size_t)length);
        i += (size_t)length;
    }
    return status;
}

static int is_chinese(uint32_t c) {
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
           (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
           (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

static int is_space(uint32_t c) {
    if (c < 0x80)
        return c == ' ' || c == '\t' || c == '\n' || c == '\r';
    return c != 0x85 && char_classes[c] & CHAR_SPACE;
}

static int cleans_away(uint32_t c) { return !is_space(c) && (c == 0 || c == 0x85 || c == 0xFFFD || char_classes[c] & CHAR_CONTROL); }

static Status clean(const Step *s, const char *text, size_t n, Bytes *out) {
    Status status = OK;
    for (size_t i = 0; i < n && status == OK;) {
        int length;
        uint32_t c = utf8_read(text + i, &length);
        i += (size_t)length;
        if (s->clean && cleans_away(c))
            continue;
        c = s->clean && is_space(c) ? ' ' : c;
        int apart = s->chinese && is_chinese(c);
        status = bytes_append(out, " ", (size_t)apart);
        if (status == OK)
            status = put(out, c);
        if (status == OK)
            status = bytes_append(out, " ", (size_t)apart);
    }
    return status;
}

/* Two steps within this one go through `spare`. */
static Status bert(const Step *s, const char *text, size_t n, Bytes *out, Bytes *spare) {
    Status status = clean(s, text, n, out);
    if (status == OK && s->accents) {
        spare->length = 0;
        status = unicode_form(out->data ? out->data : "", out->length, 0, 0, spare);
        out->length = 0;
        if (status == OK)
            status = drop(spare->data ? spare->data : "", spare->length, CHAR_NONSPACING, out);
    }
    if (status == OK && s->lowercase) {
        spare->length = 0;
        status = lowercase(out->data ? out->data : "", out->length, spare);
        Bytes swap = *out;
        *out = *spare, *spare = swap;
    }
    return status;
}

static Status replace(const Step *s, const char *text, size_t n, Bytes *out) {
    size_t done = 0, width = strlen(s->content);
    int found;
    Match m = {0};
    Status status;
    while ((status = pattern_next(&s->pattern, text, n, &m, &found)) == OK && found) {
        status = bytes_append(out, text + done, m.start - done);
        if (status == OK)
            status = bytes_append(out, s->content, width);
        if (status != OK)
            return status;
        done = m.end;
    }
    return status == OK ? bytes_append(out, text + done, n - done) : status;
}

static Status strip(const Step *s, const char *text, size_t n, Bytes *out) {
    const char *p = text, *end = text + n;
    int length;
    while (s->left && p < end && char_classes[utf8_read(p, &length)] & CHAR_SPACE)
        p += length;
    while (s->right && end > p && char_classes[utf8_read(utf8_back(end), &length)] & CHAR_SPACE)
        end -= length;
    return bytes_append(out, p, (size_t)(end - p));
}

static int nmt_drops(uint32_t c) {
    return (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
}

static int nmt_space(uint32_t c) {
    return c == '\t' || c == '\n' || c == '\f' || c == '\r' || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 ||
           c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
}

static Status nmt(const char *text, size_t n, Bytes *out) {
    Status status = bytes_reserve(out, n);
    for (size_t i = 0; i < n && status == OK;) {
        int length;
        uint32_t c = utf8_read(text + i, &length);
        i += (size_t)length;
        if (!nmt_drops(c))
            status = put(out, nmt_space(c) ? ' ' : c);
    }
    return status;
}

static Status spell(const char *text, size_t n, Bytes *out) {
    Status status = bytes_reserve(out, 2 * n);
    for (size_t i = 0; i < n && status == OK; i++)
        status = put(out, byte_level_char((unsigned char)text[i]));
    return status;
}

static Status run_step(const Step *s, const char *text, size_t n, Bytes *out, Bytes *spare) {
    Status status = OK;
    switch (s->kind) {
    case FORM: return unicode_form(text, n, s->compatible, s->composed, out);
    case LOWERCASE: return lowercase(text, n, out);
    case STRIP_ACCENTS: return drop(text, n, CHAR_MARK, out);
    case BERT: return bert(s, text, n, out, spare);
    case REPLACE: return replace(s, text, n, out);
    case STRIP: return strip(s, text, n, out);
    case PRECOMPILED: return charsmap_run(s->charsmap, text, n, out);
    case NMT: return nmt(text, n, out);
    case SPELL: return spell(text, n, out);
    case PREPEND:
        if (n > 0)
            status = bytes_append(out, s->content, strlen(s->content));
        return status == OK ? bytes_append(out, text, n) : status;
    }
    return OK;
}

/* True if the step drops the character that the text begins with. */
static int drops_first(const Step *s, const char *text, size_t n) {
    int length;
    uint32_t c = n ? utf8_read(text, &length) : ' ';
    switch (s->kind) {
    case STRIP: return s->left && char_classes[c] & CHAR_SPACE;
    case STRIP_ACCENTS: return char_classes[c] & CHAR_MARK;
    case NMT: return nmt_drops(c);
    case BERT: return (s->clean && cleans_away(c)) || (s->accents && char_classes[c] & CHAR_NONSPACING);
    default: return 0;
    }
}

Status normalizer_run(Normalizer *n, const char *text, size_t length, const char **out, size_t *out_length, int *from_start) {
    *from_start = 1;
    for (int i = 0; i < n->count; i++) {
        Bytes *to = &n->text[i & 1];
        to->length = 0;
        *from_start &= !drops_first(&n->steps[i], text, length);
        Status status = run_step(&n->steps[i], text, length, to, &n->text[2]);
        if (status != OK)
            return status;
        text = to->data ? to->data : "";
        length = to->length;
    }
    *out = text;
    *out_length = length;
    return OK;
}
