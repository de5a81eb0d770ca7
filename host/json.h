/* Strict JSON over cJSON: what cJSON lets through and should not is refused here (RFC 8259, UTF-8 only). */
#ifndef ONN_JSON_H
#define ONN_JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* json_parse() : parses `length` bytes of text (a terminating NUL is not needed).
 * Refuses: invalid UTF-8, raw NUL and \u0000, lone surrogates, trailing bytes, duplicate keys in one object, nesting
 * deeper than 64, numbers that are not finite.
 * `what` names the text in messages (a path). @out : owned by the caller, freed with cJSON_Delete(). */
Status json_parse(const char *text, size_t length, const char *what, cJSON **out);

/* json_read() : json_parse() of a whole file of at most `limit` bytes. */
Status json_read(const char *path, size_t limit, cJSON **out);

/* json_get() : the value under `key`, case-sensitive; NULL if `object` is no object or has no such key. Linear time:
 * iterate over big objects instead. */
const cJSON *json_get(const cJSON *object, const char *key);

/* json_integer() : true and *value set if `item` is a number without fraction and |value| < 2^53. */
int json_integer(const cJSON *item, int64_t *value);

#endif
