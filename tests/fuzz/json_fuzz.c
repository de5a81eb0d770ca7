/* with: kernels/status.c host/json.c host/file.c */
/* Any bytes as JSON: json_parse() gives a value that keeps its promises (bounded depth, finite numbers, no key twice), or says why not. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

static void check(const cJSON *item, int depth) {
    if (depth > 64 || (cJSON_IsNumber(item) && !isfinite(item->valuedouble)))
        abort();
    for (const cJSON *c = item->child; c; c = c->next) {
        if (cJSON_IsObject(item))
            for (const cJSON *later = c->next; later; later = later->next)
                if (!strcmp(c->string, later->string))
                    abort();
        check(c, depth + 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size ? size : 1); /* of this length exactly, so that a read beyond it is found */
    cJSON *root;
    if (size > 4096 || !text) {
        free(text);
        return 0;
    }
    memcpy(text, data, size);
    if (json_parse(text, size, "fuzz", &root) == OK) {
        check(root, 0);
        /* what was accepted survives being written and read again */
        char *again = cJSON_PrintUnformatted(root);
        cJSON *second;
        if (!again || json_parse(again, strlen(again), "again", &second) != OK || !cJSON_Compare(root, second, 1))
            abort();
        cJSON_Delete(second);
        cJSON_free(again);
        cJSON_Delete(root);
    } else if (root || !strstr(status_message(), "fuzz")) {
        abort();
    }
    free(text);
    return 0;
}
