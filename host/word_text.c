#include "word_text.h"

Status word_replace(Bytes *text, const char *from, const char *to) {
    size_t n = strlen(from), width = strlen(to), done = 0;
    Bytes out = {0};
    Status status = OK;
    for (const char *found; status == OK && text->length - done >= n; done = (size_t)(found - text->data) + n) {
        found = memmem(text->data + done, text->length - done, from, n);
        if (!found)
            break;
        if ((status = bytes_append(&out, text->data + done, (size_t)(found - text->data) - done)) == OK)
            status = bytes_append(&out, to, width);
    }
    if (done == 0 || status != OK) {
        bytes_free(&out);
        return status;
    }
    status = bytes_append(&out, text->data + done, text->length - done);
    bytes_free(text);
    *text = out;
    return status;
}

/* What English tokens lose in front of them, one after the other. */
static const char *const cleanups[][2] = {
    {" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"}, {" do not", " don't"},
    {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
};

Status word_text(Bytes *token, const char *prefix, int first, int cleanup) {
    size_t width = strlen(prefix);
    Status status = bytes_reserve(token, 1);
    if (status == OK && !first && token->length >= width && !memcmp(token->data, prefix, width)) {
        memmove(token->data, token->data + width, token->length - width);
        token->length -= width;
    } else if (status == OK && !first) {
        memmove(token->data + 1, token->data, token->length);
        *token->data = ' ';
        token->length++;
    }
    for (size_t i = 0; cleanup && i < sizeof cleanups / sizeof *cleanups && status == OK; i++)
        status = word_replace(token, cleanups[i][0], cleanups[i][1]);
    return status;
}
