#define PCRE2_CODE_UNIT_WIDTH 8
#include "regex.h"

#include <pcre2.h>

#include "oniguruma.h"

struct Regex {
    pcre2_code *code;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    int jit;
    char *what;
};

Status regex_compile(const char *pattern, size_t n, const char *what, Regex **out) {
    Bytes text = {0};
    int code = 0;
    PCRE2_SIZE where = 0;
    char words[160];
    *out = NULL;
    Regex *r = calloc(1, sizeof *r);
    Status status = r ? oniguruma_translate(pattern, n, what, &text) : fail(ERR_MEMORY, "no memory for a pattern");
    if (status != OK)
        goto done;
    r->what = strdup(what);
    r->code = pcre2_compile((PCRE2_SPTR)(text.data ? text.data : ""), text.length,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK | PCRE2_NEVER_BACKSLASH_C, &code, &where, NULL);
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
