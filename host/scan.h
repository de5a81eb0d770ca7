/* Hand-written scanners for the two regular expressions that nearly all byte-level tokenizers use. */
#ifndef ONN_SCAN_H
#define ONN_SCAN_H

#include <stddef.h>

/* scan_gpt2() : the length of the match at p of
 *   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * p < end, valid UTF-8, unicode_open() called. There always is a match, so words follow each other without gaps. */
size_t scan_gpt2(const char *p, const char *end);

/* scan_gpt4() : the same for
 *   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
size_t scan_gpt4(const char *p, const char *end, int digits);

/* scan_known() : the digits of the scan_gpt4() pattern that this is, spelt as the files do; 0 if it is none; -1 if it is
 * that of scan_gpt2(). */
int scan_known(const char *pattern);

#endif
