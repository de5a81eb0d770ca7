#define PCRE2_CODE_UNIT_WIDTH 8
#include "regex.h"

#include <pcre2.h>

#include "bytes.h"

struct Regex {
    pcre2_code *code;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    int jit;
    char *what;
};

/* Letters and numbers of Unicode 15 to 16, which PCRE2 10.42 (Unicode 14) does not know. */
static const char letters[] =
    "\\p{L}\\x{1C89}-\\x{1C8A}\\x{A7CB}-\\x{A7CD}\\x{A7DA}-\\x{A7DC}\\x{105C0}-\\x{105F3}\\x{10D4A}-\\x{10D65}"
    "\\x{10D6F}-\\x{10D85}\\x{10EC2}-\\x{10EC4}\\x{1123F}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138B}\\x{1138E}"
    "\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}\\x{113D3}\\x{11BC0}-\\x{11BE0}\\x{11F02}\\x{11F04}-\\x{11F10}"
    "\\x{11F12}-\\x{11F33}\\x{1342F}\\x{13441}-\\x{13446}\\x{13460}-\\x{143FA}\\x{16100}-\\x{1611D}\\x{16D40}-\\x{16D6C}"
    "\\x{18CFF}\\x{1B132}\\x{1B155}\\x{1DF25}-\\x{1DF2A}\\x{1E030}-\\x{1E06D}\\x{1E4D0}-\\x{1E4EB}\\x{1E5D0}-\\x{1E5ED}"
    "\\x{1E5F0}\\x{2B739}\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}";
static const char numbers[] =
    "\\p{N}\\x{10D40}-\\x{10D49}\\x{116D0}-\\x{116E3}\\x{11BF0}-\\x{11BF9}\\x{11F50}-\\x{11F59}\\x{16130}-\\x{16139}"
    "\\x{16D70}-\\x{16D79}\\x{1CCF0}-\\x{1CCF9}\\x{1D2C0}-\\x{1D2D3}\\x{1E4F0}-\\x{1E4F9}\\x{1E5F1}-\\x{1E5FA}";

/* White space without U+180E, which PCRE2 counts in, and the rest. */
static const char spaces[] = "\\t-\\r\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
static const char solids[] = "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}"
                             "\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}";

static const struct {
    const char *from, *to;
} spellings[] = {
    {"\\p{Han}", "\\p{sc:Han}"},           {"\\p{Hiragana}", "\\p{sc:Hiragana}"}, {"\\p{Katakana}", "\\p{sc:Katakana}"},
    {"\\p{Hangul}", "\\p{sc:Hangul}"},     {"\\p{Thai}", "\\p{sc:Thai}"},         {"\\p{Arabic}", "\\p{sc:Arabic}"},
    {"\\p{Cyrillic}", "\\p{sc:Cyrillic}"}, {"\\p{Latin}", "\\p{sc:Latin}"},       {"\\p{Greek}", "\\p{sc:Greek}"},
};

/* Rewrites what is spelt otherwise in Oniguruma, which the files are written for. */
static Status translate(const char *p, size_t n, Bytes *out) {
    Status status = OK;
    int inside = 0; /* a character class */
    for (size_t i = 0; i < n && status == OK;) {
        const char *set = NULL, *plain = NULL;
        size_t length = 1;
        if (p[i] == '\\' && i + 1 < n) {
            length = 2;
            if (i + 5 <= n && (!memcmp(p + i, "\\p{L}", 5) || !memcmp(p + i, "\\p{N}", 5)))
                set = p[i + 3] == 'L' ? letters : numbers, length = 5;
            else if (p[i + 1] == 'h') /* a hexadecimal digit there, horizontal space here */
                set = "0-9a-fA-F";
            else if (p[i + 1] == 's' || p[i + 1] == 'S')
                set = p[i + 1] == 's' ? spaces : solids;
            for (size_t s = 0; s < sizeof spellings / sizeof *spellings; s++) {
                size_t width = strlen(spellings[s].from);
                if (i + width <= n && !memcmp(p + i, spellings[s].from, width))
                    plain = spellings[s].to, length = width;
            }
        } else if (p[i] == '[') {
            inside++;
        } else if (p[i] == ']' && inside) {
            inside--;
        }
        if (set) {
            status = bytes_append(out, "[", !inside);
            if (status == OK)
                status = bytes_append(out, set, strlen(set));
            if (status == OK)
                status = bytes_append(out, "]", !inside);
        } else if (plain) {
            status = bytes_append(out, plain, strlen(plain));
        } else {
            status = bytes_append(out, p + i, length);
        }
        i += length;
    }
    return status;
}

Status regex_compile(const char *pattern, size_t n, const char *what, Regex **out) {
    Bytes text = {0};
    int code = 0;
    PCRE2_SIZE where = 0;
    char words[160];
    *out = NULL;
    Regex *r = calloc(1, sizeof *r);
    Status status = r ? translate(pattern, n, &text) : fail(ERR_MEMORY, "no memory for a pattern");
    if (status != OK)
        goto done;
    r->what = strdup(what);
    r->code = pcre2_compile((PCRE2_SPTR)(text.data ? text.data : ""), text.length,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK | PCRE2_NEVER_BACKSLASH_C, &code, &where, NULL);
    if (!r->code) {
        pcre2_get_error_message(code, (PCRE2_UCHAR *)words, sizeof words);
        status = fail(ERR_UNSUPPORTED, "%s: the pattern '%.*s' cannot be used: %s", what, (int)(n < 200 ? n : 200), pattern, words);
        goto done;
    }
    r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
    r->match = pcre2_match_data_create(1, NULL);
    r->context = pcre2_match_context_create(NULL);
    r->stack = pcre2_jit_stack_create(32 << 10, 16 << 20, NULL);
    if (!r->what || !r->match || !r->context || !r->stack) {
        status = fail(ERR_MEMORY, "no memory for a pattern");
        goto done;
    }
    pcre2_jit_stack_assign(r->context, NULL, r->stack);
done:
    bytes_free(&text);
    if (status == OK)
        *out = r;
    else
        regex_free(r);
    return status;
}

Status regex_find(Regex *r, const char *text, size_t n, size_t from, int *found, size_t *start, size_t *end) {
    int code = r->jit ? pcre2_jit_match(r->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, r->match, r->context)
                      : PCRE2_ERROR_JIT_STACKLIMIT;
    if (code == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter keeps its frames on the heap */
        code = pcre2_match(r->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, r->match, r->context);
    *found = code >= 0;
    if (code >= 0) {
        PCRE2_SIZE *pair = pcre2_get_ovector_pointer(r->match);
        *start = pair[0], *end = pair[1];
    } else if (code != PCRE2_ERROR_NOMATCH) {
        char words[160];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)words, sizeof words);
        return fail(ERR_UNSUPPORTED, "%s: the pattern gave up on this text: %s", r->what, words);
    }
    return OK;
}

void regex_free(Regex *r) {
    if (!r)
        return;
    pcre2_code_free(r->code);
    pcre2_match_data_free(r->match);
    pcre2_match_context_free(r->context);
    pcre2_jit_stack_free(r->stack);
    free(r->what);
    free(r);
}
