#include "postprocess.h"

#include <stdlib.h>
#include <string.h>

#include "component.h"
#include "json.h"

enum { TEXT_A = -1, TEXT_B = -2 };

/* ids: TEXT_A and TEXT_B where the texts stand, else special tokens; types: the segment of each. */
typedef struct Template {
    Ids ids, types;
} Template;

struct PostProcessor {
    Template single, pair;
    int given; /* by the file */
};

/* --- loading ------------------------------------------------------------------------------------------------------ */

static Status push(Template *t, int32_t id, int64_t type) {
    Status status = ids_push(&t->ids, id);
    return status == OK ? ids_push(&t->types, (int32_t)type) : status;
}

static Status push_token(Template *t, const cJSON *id, const char *name, int64_t type, const Vocab *vocab, const char *what) {
    int64_t value;
    size_t n;
    if (!json_integer(id, &value) || !vocab_text(vocab, value, &n))
        return fail(ERR_FORMAT, "%s: the template's '%.200s' has an id that is no token", what, name);
    return push(t, (int32_t)value, type);
}

/* { "SpecialToken": { "id": name, "type_id": 0 } } or { "Sequence": { "id": "A" or "B", "type_id": 0 } } */
static Status read_piece(const cJSON *piece, const cJSON *special, const Vocab *vocab, const char *what, Template *out) {
    const cJSON *token = json_get(piece, "SpecialToken"), *text = json_get(piece, "Sequence"), *item = token ? token : text;
    const char *name = component_text(item, "id", NULL);
    int64_t type = 0;
    if (!name || (!token && strcmp(name, "A") && strcmp(name, "B")))
        return fail(ERR_FORMAT, "%s: a piece of the template is neither a special token nor a text A or B", what);
    if (json_get(item, "type_id") && (!json_integer(json_get(item, "type_id"), &type) || type < 0 || type > INT32_MAX))
        return fail(ERR_FORMAT, "%s: the template's '%.200s' has a type_id that is none", what, name);
    if (!token)
        return push(out, *name == 'A' ? TEXT_A : TEXT_B, type);
    const cJSON *ids = json_get(json_get(special, name), "ids"), *id;
    if (!cJSON_IsArray(ids)) {
        int32_t known = vocab_find(vocab, name, strlen(name));
        return known >= 0 ? push(out, known, type)
                          : fail(ERR_FORMAT, "%s: the template names '%.200s', which is no token", what, name);
    }
    Status status = OK;
    cJSON_ArrayForEach(id, ids)
        if (status == OK)
            status = push_token(out, id, name, type, vocab, what);
    return status;
}

static Status read_template(const cJSON *list, const cJSON *special, const Vocab *vocab, const char *what, Template *out) {
    const cJSON *piece;
    if (!cJSON_IsArray(list))
        return fail(ERR_FORMAT, "%s: TemplateProcessing without the lists single and pair", what);
    Status status = OK;
    cJSON_ArrayForEach(piece, list)
        if (status == OK)
            status = read_piece(piece, special, vocab, what, out);
    return status;
}

/* cls A sep, and cls A sep B sep; Roberta separates by two, and has one segment only. */
static Status read_cls_sep(PostProcessor *p, const cJSON *spec, const char *type, const Vocab *vocab, const char *what) {
    const cJSON *cls = json_get(spec, "cls"), *sep = json_get(spec, "sep");
    int roberta = *type == 'R';
    Status status = component_keys(spec, "sep cls trim_offsets add_prefix_space", what);
    if (status != OK)
        return status;
    if (!cJSON_IsArray(cls) || !cJSON_IsString(cls->child) || !cJSON_IsArray(sep) || !cJSON_IsString(sep->child))
        return fail(ERR_FORMAT, "%s: %s without cls and sep, each a token and its id", what, type);
    for (int pair = 0; pair < 2 && status == OK; pair++) {
        Template *t = pair ? &p->pair : &p->single;
        status = push_token(t, cls->child->next, cls->child->valuestring, 0, vocab, what);
        if (status == OK)
            status = push(t, TEXT_A, 0);
        for (int i = 0; i < 1 + (pair && roberta) && status == OK; i++)
            status = push_token(t, sep->child->next, sep->child->valuestring, 0, vocab, what);
        if (pair && status == OK)
            status = push(t, TEXT_B, !roberta);
        if (pair && status == OK)
            status = push_token(t, sep->child->next, sep->child->valuestring, !roberta, vocab, what);
    }
    return status;
}

static Status load(PostProcessor *p, const cJSON *spec, const Vocab *vocab, const char *what) {
    const char *type;
    Status status = component_type(spec, "post-processor", what, &type);
    if (status != OK)
        return status;
    if (!strcmp(type, "ByteLevel")) /* concerns offsets only */
        return component_keys(spec, "add_prefix_space trim_offsets use_regex", what);
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_get(spec, "processors"), *item;
        if (!cJSON_IsArray(list))
            return fail(ERR_FORMAT, "%s: a Sequence without a list of post-processors", what);
        status = component_keys(spec, "processors", what);
        cJSON_ArrayForEach(item, list)
            if (status == OK)
                status = load(p, item, vocab, what);
        return status;
    }
    int template = !strcmp(type, "TemplateProcessing");
    if (!template && strcmp(type, "BertProcessing") && strcmp(type, "RobertaProcessing"))
        return fail(ERR_UNSUPPORTED, "%s: the post-processor '%s' is not supported", what, type);
    if (p->given)
        return fail(ERR_UNSUPPORTED, "%s: two post-processors that add tokens, the second is %s", what, type);
    p->given = 1;
    if (!template)
        return read_cls_sep(p, spec, type, vocab, what);
    const cJSON *special = json_get(spec, "special_tokens");
    status = component_keys(spec, "single pair special_tokens", what);
    if (status == OK)
        status = read_template(json_get(spec, "single"), special, vocab, what, &p->single);
    return status == OK ? read_template(json_get(spec, "pair"), special, vocab, what, &p->pair) : status;
}

Status postprocessor_load(const cJSON *spec, const Vocab *vocab, const char *what, PostProcessor **out) {
    *out = NULL;
    PostProcessor *p = calloc(1, sizeof *p);
    if (!p)
        return fail(ERR_MEMORY, "no memory for a tokenizer");
    Status status = spec && !cJSON_IsNull(spec) ? load(p, spec, vocab, what) : OK;
    if (status == OK && !p->given && (status = push(&p->single, TEXT_A, 0)) == OK && (status = push(&p->pair, TEXT_A, 0)) == OK)
        status = push(&p->pair, TEXT_B, 1);
    if (status == OK)
        *out = p;
    else
        postprocessor_free(p);
    return status;
}

void postprocessor_free(PostProcessor *p) {
    if (!p)
        return;
    ids_free(&p->single.ids);
    ids_free(&p->single.types);
    ids_free(&p->pair.ids);
    ids_free(&p->pair.types);
    free(p);
}

/* --- running ------------------------------------------------------------------------------------------------------ */

Status postprocessor_run(const PostProcessor *p, const Ids *a, const Ids *b, Ids *out, Ids *types) {
    const Template *t = b ? &p->pair : &p->single;
    Status status = OK;
    for (size_t i = 0; i < t->ids.count && status == OK; i++) {
        int32_t id = t->ids.data[i];
        const Ids *text = id == TEXT_A ? a : id == TEXT_B ? b : NULL;
        size_t count = text ? text->count : id >= 0;
        status = text ? ids_append(out, text->data, count) : count ? ids_push(out, id) : OK;
        if (status == OK)
            status = ids_reserve(types, count);
        for (size_t j = 0; j < count && status == OK; j++)
            status = ids_push(types, t->types.data[i]);
    }
    return status;
}

Status postprocessor_prefix(const PostProcessor *p, Ids *out) {
    Status status = OK;
    for (size_t i = 0; i < p->single.ids.count && p->single.ids.data[i] >= 0 && status == OK; i++)
        status = ids_push(out, p->single.ids.data[i]);
    return status;
}
