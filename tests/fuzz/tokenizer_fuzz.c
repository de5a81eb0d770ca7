/* with: kernels/status.c host/json.c host/file.c host/ids.c host/utf8.c host/tokenizer.c host/added.c host/bpe.c host/merging.c host/merges.c host/vocab.c host/trie.c host/wordpiece.c host/unigram.c host/charsmap.c host/postprocess.c host/scripts.c host/byte_level.c host/component.c host/oniguruma.c host/regex.c host/normalize.c host/unicode.c host/unicode_forms.c host/pretokenize.c host/scan.c host/decode.c host/word_text.c */
/* Any bytes as tokenizer.json. What begins with { is the file itself, then NUL, then a text; other bytes choose parts for a
 * file first, so that most inputs get as far as encoding. What was loaded encodes and decodes any text, piece by piece as at
 * once, or says why not. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"
#include "utf8.h"

/* Of a, e with U+0301, and U+00E9: they become b, U+00E9 and nothing. As make_tokenizer.py writes it. */
#define CHARSMAP \
    "OAMAAAAEAAAAAACAAgAAgAUAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" \
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" \
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" \
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" \
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAGGFAQAAAAAAAAAAAAAAAABllAEAAAAAAA" \
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" \
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAgQkCAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" \
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" \
    "AAAAAAAAAAAAAAAAAAAAAKmtAgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" \
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAwwwDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAADM" \
    "MAMAYgDDqQAA"

static const char *const normalizers[] = {
    "null", "{\"type\":\"NFC\"}", "{\"type\":\"NFKD\"}", "{\"type\":\"Lowercase\"}", "{\"type\":\"StripAccents\"}",
    "{\"type\":\"Prepend\",\"prepend\":\"\xE2\x96\x81\"}", "{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}",
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xE2\x96\x81\"}",
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a*\"},\"content\":\"b\"}",
    "{\"type\":\"BertNormalizer\",\"clean_text\":true,\"handle_chinese_chars\":true,\"strip_accents\":null,\"lowercase\":true}",
    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFD\"},{\"type\":\"StripAccents\"},{\"type\":\"NFKC\"}]}",
    "{\"type\":\"Nmt\"}", "{\"type\":\"ByteLevel\"}", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"" CHARSMAP "\"}",
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
    "{\"type\":\"UnicodeScripts\"}", "{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"a\"}", "{\"type\":\"FixedLength\",\"length\":3}",
};
static const char *const decoders[] = {
    "null", "{\"type\":\"ByteLevel\"}", "{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\",\"prepend_scheme\":\"always\"}",
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xE2\x96\x81\"},\"content\":\" \"},"
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}]}",
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"b*\"},\"content\":\"x\"}",
    "{\"type\":\"Strip\",\"content\":\"a\",\"start\":2,\"stop\":2}", "{\"type\":\"ByteFallback\"}",
    "{\"type\":\"WordPiece\",\"prefix\":\"a\",\"cleanup\":true}", "{\"type\":\"BPEDecoder\",\"suffix\":\"b\"}",
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"BPEDecoder\",\"suffix\":\"a\"},{\"type\":\"WordPiece\",\"prefix\":\"b\"},"
    "{\"type\":\"ByteLevel\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}]}",
};
static const char *const postprocessors[] = {
    "null", "{\"type\":\"BertProcessing\",\"sep\":[\"a\",2],\"cls\":[\"<s>\",0]}",
    "{\"type\":\"RobertaProcessing\",\"sep\":[\"<unk>\",1],\"cls\":[\"<s>\",0],\"trim_offsets\":true,\"add_prefix_space\":true}",
    "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
    "{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[{\"Sequence\":{\"id\":\"B\",\"type_id\":1}},"
    "{\"Sequence\":{\"id\":\"A\",\"type_id\":7}}],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[0,1],\"tokens\":[]}}}]}",
};

#define CHOOSE(list, byte) (list)[(byte) % (sizeof(list) / sizeof *(list))]

typedef enum Model { BPE, AFFIXED, WORDPIECE, UNIGRAM, WORD_LEVEL } Model;

typedef struct Text {
    char *data;
    size_t length, size;
} Text;

__attribute__((format(printf, 2, 3))) static void print(Text *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    t->length += (size_t)vsnprintf(t->data + t->length, t->size - t->length, format, args);
    va_end(args);
}

static void print_vocab(Text *t, int unigram, int bytes) {
    static const char *const tokens[] = {"<s>", "<unk>", "a", "b", "c", " ", "\xE2\x96\x81", "\xC4\xA0", "\xC3\xA9", "e", "aa", "ab",
                                         "ba", "aaaa", "\xE2\x96\x81" "a", "\xC4\xA0" "a", "bc", "abc"};
    int id = 0;
    print(t, "\"vocab\":%c", unigram ? '[' : '{');
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++, id++)
        print(t, unigram ? "%s[\"%s\",-%d.5]" : "%s\"%s\":%d", id ? "," : "", tokens[i], unigram ? id % 5 : id);
    for (int byte = 0; byte < 256 && bytes; byte++, id++)
        print(t, unigram ? ",[\"<0x%02X>\",-%d.5]" : ",\"<0x%02X>\":%d", byte, unigram ? 9 : id);
    print(t, "%c", unigram ? ']' : '}');
}

static void print_model(Text *t, Model model, int flags, int kind) {
    const char *unk = flags & 32 ? "\"<unk>\"" : "null";
    switch (model) {
    case BPE:
    case AFFIXED:
        print(t, "\"type\":\"BPE\",\"unk_token\":%s,\"fuse_unk\":%s,\"byte_fallback\":%s,\"ignore_merges\":%s,%s", unk,
              flags & 64 ? "true" : "false", flags & 128 ? "true" : "false", kind & 1 ? "true" : "false",
              model == BPE ? "" : kind & 2 ? "\"end_of_word_suffix\":\"b\"," : "\"continuing_subword_prefix\":\"a\",");
        print(t, model == BPE || kind & 2 ? "\"merges\":[\"a a\",[\"b\",\"a\"],\"%s\",\"aa aa\",\"\xE2\x96\x81 a\",\"\xC4\xA0 a\",\"b c\",\"%s\"],"
                                          : "\"merges\":[\"a ab\",\"a aa\"],",
              kind & 8 ? "a b" : "b c", kind & 16 ? "a bc" : "ab c");
        break;
    case WORDPIECE:
        print(t, "\"type\":\"WordPiece\",\"unk_token\":\"%s\",\"continuing_subword_prefix\":\"%s\",\"max_input_chars_per_word\":%d,",
              flags & 32 ? "<unk>" : "<none>", kind & 1 ? "a" : kind & 2 ? "" : "##", kind & 8 ? 3 : 100);
        break;
    case UNIGRAM:
        print(t, "\"type\":\"Unigram\",\"unk_id\":%s,\"byte_fallback\":%s,", flags & 32 ? "1" : "null", flags & 128 ? "true" : "false");
        break;
    case WORD_LEVEL: print(t, "\"type\":\"WordLevel\",\"unk_token\":\"%s\",", flags & 32 ? "<unk>" : "<none>"); break;
    }
    print_vocab(t, model == UNIGRAM, kind & 4);
}

/* A file of the parts that six bytes choose. @return : its length in `out`. */
static size_t compose(const uint8_t *choice, char *out, size_t size) {
    static const Model models[] = {BPE, BPE, BPE, AFFIXED, AFFIXED, WORDPIECE, UNIGRAM, WORD_LEVEL};
    int flags = choice[3];
    Text t = {out, 0, size};
    print(&t, "{\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"single_word\":%s,\"lstrip\":%s,\"rstrip\":%s,\"normalized\":%s,\"special\":%s},"
              "{\"id\":300,\"content\":\"ab \",\"rstrip\":true}],",
          flags & 1 ? "true" : "false", flags & 2 ? "true" : "false", flags & 4 ? "true" : "false", flags & 8 ? "true" : "false",
          flags & 16 ? "true" : "false");
    print(&t, "\"normalizer\":%s,\"pre_tokenizer\":%s,\"decoder\":%s,\"post_processor\":%s,\"model\":{", CHOOSE(normalizers, choice[0]),
          CHOOSE(pretokenizers, choice[1]), CHOOSE(decoders, choice[2]), CHOOSE(postprocessors, choice[5]));
    print_model(&t, models[choice[4] >> 5], flags, choice[4]);
    print(&t, "}}");
    return t.length;
}

static void check_framed(Tokenizer *t, const char *text, size_t n, int flags) {
    Ids ids = {0}, types = {0};
    if (tokenizer_encode_framed(t, text, n, flags & 2 ? text : NULL, n / 2, flags, &ids, &types) == OK && ids.count != types.count)
        abort();
    ids_free(&ids);
    ids_free(&types);
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
    static char file[32768];
    const char *json = (const char *)data, *text;
    size_t length;
    Tokenizer *t;
    if (size < 7 || size > 8192)
        return 0;
    if (*data == '{') {
        const char *end = memchr(json, 0, size);
        length = end ? (size_t)(end - json) : size;
        text = end ? end + 1 : json + size;
    } else {
        length = compose(data, file, sizeof file);
        json = file;
        text = (const char *)data + 6;
    }
    size_t n = (size_t)((const char *)data + size - text);
    char *exact = malloc(n ? n : 1); /* of this length exactly, so that a read beyond it is found */
    if (!exact)
        return 0;
    memcpy(exact, text, n);
    if (tokenizer_load(json, length, "fuzz", &t) == OK) {
        for (int flags = 0; flags < 4; flags++)
            check_text(t, exact, n, flags), check_framed(t, exact, n, flags);
        tokenizer_free(t);
    } else if (t || !strstr(status_message(), "fuzz") || strchr(status_message(), '\n')) {
        fprintf(stderr, "message: %s\n", status_message());
        abort();
    }
    free(exact);
    return 0;
}
