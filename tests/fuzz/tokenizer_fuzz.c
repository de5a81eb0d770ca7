/* with: kernels/status.c host/json.c host/file.c host/ids.c host/utf8.c host/tokenizer.c host/added.c host/bpe.c host/merging.c host/merges.c host/vocab.c host/byte_level.c host/component.c host/oniguruma.c host/regex.c host/normalize.c host/unicode.c host/unicode_forms.c host/pretokenize.c host/scan.c host/decode.c */
/* Any bytes as tokenizer.json. What begins with { is the file itself, then NUL, then a text; other bytes choose parts for a
 * file first, so that most inputs get as far as encoding. What was loaded encodes and decodes any text, piece by piece as at
 * once, or says why not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"
#include "utf8.h"

static const char *const normalizers[] = {
    "null", "{\"type\":\"NFC\"}", "{\"type\":\"NFKD\"}", "{\"type\":\"Lowercase\"}", "{\"type\":\"StripAccents\"}",
    "{\"type\":\"Prepend\",\"prepend\":\"\xE2\x96\x81\"}", "{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}",
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xE2\x96\x81\"}",
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a*\"},\"content\":\"b\"}",
    "{\"type\":\"BertNormalizer\",\"clean_text\":true,\"handle_chinese_chars\":true,\"strip_accents\":null,\"lowercase\":true}",
    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFD\"},{\"type\":\"StripAccents\"},{\"type\":\"NFKC\"}]}",
};
static const char *const pretokenizers[] = {
    "null", "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}",
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}",
    "{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\",\"prepend_scheme\":\"first\",\"split\":true}",
    "{\"type\":\"Digits\",\"individual_digits\":true}", "{\"type\":\"Whitespace\"}", "{\"type\":\"BertPreTokenizer\"}",
    "{\"type\":\"Punctuation\",\"behavior\":\"Contiguous\"}", "{\"type\":\"WhitespaceSplit\"}",
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s*|\\\\p{L}+\"},\"behavior\":\"MergedWithNext\",\"invert\":false}",
    "{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"MergedWithPrevious\",\"invert\":true}",
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n"
    "\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
    "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}",
};
static const char *const decoders[] = {
    "null", "{\"type\":\"ByteLevel\"}", "{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\",\"prepend_scheme\":\"always\"}",
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xE2\x96\x81\"},\"content\":\" \"},"
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}]}",
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"b*\"},\"content\":\"x\"}",
    "{\"type\":\"Strip\",\"content\":\"a\",\"start\":2,\"stop\":2}", "{\"type\":\"ByteFallback\"}",
};

#define CHOOSE(list, byte) (list)[(byte) % (sizeof(list) / sizeof *(list))]

/* A file of the parts that five bytes choose. @return : its length in `out`. */
static size_t compose(const uint8_t *choice, char *out, size_t size) {
    int flags = choice[3], kind = choice[4];
    size_t n = (size_t)snprintf(out, size,
        "{\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"single_word\":%s,\"lstrip\":%s,\"rstrip\":%s,\"normalized\":%s,\"special\":%s},"
        "{\"id\":300,\"content\":\"ab \",\"rstrip\":true}],\"normalizer\":%s,\"pre_tokenizer\":%s,\"decoder\":%s,\"model\":{\"type\":\"BPE\","
        "\"unk_token\":%s,\"fuse_unk\":%s,\"byte_fallback\":%s,\"ignore_merges\":%s,%s\"vocab\":{\"<s>\":0,\"<unk>\":1",
        flags & 1 ? "true" : "false", flags & 2 ? "true" : "false", flags & 4 ? "true" : "false", flags & 8 ? "true" : "false",
        flags & 16 ? "true" : "false", CHOOSE(normalizers, choice[0]), CHOOSE(pretokenizers, choice[1]), CHOOSE(decoders, choice[2]),
        flags & 32 ? "\"<unk>\"" : "null", flags & 64 ? "true" : "false", flags & 128 ? "true" : "false", kind & 1 ? "true" : "false",
        kind & 2 ? "\"end_of_word_suffix\":\"\"," : "");
    int id = 2;
    for (int byte = 0; byte < 256 && kind & 4; byte++)
        n += (size_t)snprintf(out + n, size - n, ",\"<0x%02X>\":%d", byte, id++);
    static const char *const tokens[] = {"a", "b", "c", " ", "\xE2\x96\x81", "\xC4\xA0", "\xC3\xA9", "e", "aa", "ab", "ba", "aaaa",
                                         "\xE2\x96\x81" "a", "\xC4\xA0" "a", "bc", "abc"};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        n += (size_t)snprintf(out + n, size - n, ",\"%s\":%d", tokens[i], id++);
    return n + (size_t)snprintf(out + n, size - n, "},\"merges\":[\"a a\",[\"b\",\"a\"],\"%s\",\"aa aa\",\"\xE2\x96\x81 a\",\"\xC4\xA0 a\","
                                                   "\"b c\",\"%s\"]}}", kind & 8 ? "a b" : "b c", kind & 16 ? "a bc" : "ab c");
}

static void check_text(Tokenizer *t, const char *text, size_t n, int flags) {
    Ids ids = {0};
    Bytes whole = {0}, pieces = {0};
    if (tokenizer_encode(t, text, n, flags, &ids) == OK) {
        TokenStream *s;
        for (size_t i = 0; i < ids.count; i++) {
            size_t length;
            if (!tokenizer_token(t, ids.data[i], &length))
                abort();
        }
        Status status = tokenizer_decode(t, ids.data, ids.count, flags & 1, &whole);
        if (tokenizer_stream(t, flags & 1, &s) != OK)
            abort();
        for (size_t i = 0; i < ids.count && status == OK; i++) {
            size_t before = pieces.length;
            status = token_stream_push(s, ids.data[i], &pieces);
            if (status == OK && pieces.length > before &&
                utf8_valid(pieces.data + before, pieces.length - before) < pieces.length - before)
                abort();
        }
        if (status == OK)
            status = token_stream_finish(s, &pieces);
        if (status == OK && (pieces.length != whole.length || (whole.length && memcmp(pieces.data, whole.data, whole.length))))
            abort();
        token_stream_free(s);
    } else if (!*status_message()) {
        abort();
    }
    ids_free(&ids);
    bytes_free(&whole);
    bytes_free(&pieces);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char file[16384];
    const char *json = (const char *)data, *text;
    size_t length;
    Tokenizer *t;
    if (size < 6 || size > 8192)
        return 0;
    if (*data == '{') {
        const char *end = memchr(json, 0, size);
        length = end ? (size_t)(end - json) : size;
        text = end ? end + 1 : json + size;
    } else {
        length = compose(data, file, sizeof file);
        json = file;
        text = (const char *)data + 5;
    }
    size_t n = (size_t)((const char *)data + size - text);
    char *exact = malloc(n ? n : 1); /* of this length exactly, so that a read beyond it is found */
    if (!exact)
        return 0;
    memcpy(exact, text, n);
    if (tokenizer_load(json, length, "fuzz", &t) == OK) {
        for (int flags = 0; flags < 4; flags++)
            check_text(t, exact, n, flags);
        tokenizer_free(t);
    } else if (t || !strstr(status_message(), "fuzz") || strchr(status_message(), '\n')) {
        fprintf(stderr, "message: %s\n", status_message());
        abort();
    }
    free(exact);
    return 0;
}
