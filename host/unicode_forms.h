/* Unicode's normalization forms, in linear time whatever the text. */
#ifndef ONN_UNICODE_FORMS_H
#define ONN_UNICODE_FORMS_H

#include "bytes.h"

/* unicode_form() : appends the form of valid UTF-8 text: compatible (K) or not, composed (C) or not (D). */
Status unicode_form(const char *text, size_t n, int compatible, int composed, Bytes *out);

#endif
