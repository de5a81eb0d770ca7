#include "unicode.h"

#include <pthread.h>
#include <stddef.h>
#include <utf8proc.h>

uint8_t char_classes[CHAR_COUNT];

typedef struct Range {
    uint32_t first, last;
    uint8_t set, clear;
} Range;

/* Where this differs from utf8proc 2.8 (Unicode 15): what Unicode 15.1 and 16 added; Alphabetic symbols and the joiners,
 * which \w has; and punctuation younger than Unicode 8, which Hugging Face's Punctuation step does not know. */
static const Range corrections[] = {
    {0x1C89, 0x1C8A, CHAR_LETTER, 0},    {0xA7CB, 0xA7CD, CHAR_LETTER, 0},    {0xA7DA, 0xA7DC, CHAR_LETTER, 0},
    {0x105C0, 0x105F3, CHAR_LETTER, 0},  {0x10D4A, 0x10D65, CHAR_LETTER, 0},  {0x10D6F, 0x10D85, CHAR_LETTER, 0},
    {0x10EC2, 0x10EC4, CHAR_LETTER, 0},  {0x11380, 0x11389, CHAR_LETTER, 0},  {0x1138B, 0x1138B, CHAR_LETTER, 0},
    {0x1138E, 0x1138E, CHAR_LETTER, 0},  {0x11390, 0x113B5, CHAR_LETTER, 0},  {0x113B7, 0x113B7, CHAR_LETTER, 0},
    {0x113D1, 0x113D1, CHAR_LETTER, 0},  {0x113D3, 0x113D3, CHAR_LETTER, 0},  {0x11BC0, 0x11BE0, CHAR_LETTER, 0},
    {0x13460, 0x143FA, CHAR_LETTER, 0},  {0x16100, 0x1611D, CHAR_LETTER, 0},  {0x16D40, 0x16D6C, CHAR_LETTER, 0},
    {0x18CFF, 0x18CFF, CHAR_LETTER, 0},  {0x1E5D0, 0x1E5ED, CHAR_LETTER, 0},  {0x1E5F0, 0x1E5F0, CHAR_LETTER, 0},
    {0x2EBF0, 0x2EE5D, CHAR_LETTER, 0},  {0x10D40, 0x10D49, CHAR_NUMBER, 0},  {0x116D0, 0x116E3, CHAR_NUMBER, 0},
    {0x11BF0, 0x11BF9, CHAR_NUMBER, 0},  {0x16130, 0x16139, CHAR_NUMBER, 0},  {0x16D70, 0x16D79, CHAR_NUMBER, 0},
    {0x1CCF0, 0x1CCF9, CHAR_NUMBER, 0},  {0x1E5F1, 0x1E5FA, CHAR_NUMBER, 0},  {0x0897, 0x0897, CHAR_MARK, 0},
    {0x10D69, 0x10D6D, CHAR_MARK, 0},    {0x10EFC, 0x10EFC, CHAR_MARK, 0},    {0x113B8, 0x113C0, CHAR_MARK, 0},
    {0x113C2, 0x113C2, CHAR_MARK, 0},    {0x113C5, 0x113C5, CHAR_MARK, 0},    {0x113C7, 0x113CA, CHAR_MARK, 0},
    {0x113CC, 0x113D0, CHAR_MARK, 0},    {0x113D2, 0x113D2, CHAR_MARK, 0},    {0x113E1, 0x113E2, CHAR_MARK, 0},
    {0x11F5A, 0x11F5A, CHAR_MARK, 0},    {0x1611E, 0x1612F, CHAR_MARK, 0},    {0x1E5EE, 0x1E5EF, CHAR_MARK, 0},
    {0x24B6, 0x24E9, CHAR_WORD, 0},      {0x1F130, 0x1F149, CHAR_WORD, 0},    {0x1F150, 0x1F169, CHAR_WORD, 0},
    {0x1F170, 0x1F189, CHAR_WORD, 0},    {0x200C, 0x200D, CHAR_WORD, 0},      {0x061D, 0x061D, 0, CHAR_PUNCT},
    {0x09FD, 0x09FD, 0, CHAR_PUNCT},     {0x0A76, 0x0A76, 0, CHAR_PUNCT},     {0x0C77, 0x0C77, 0, CHAR_PUNCT},
    {0x0C84, 0x0C84, 0, CHAR_PUNCT},     {0x166D, 0x166D, CHAR_PUNCT, 0},     {0x1B7D, 0x1B7E, 0, CHAR_PUNCT},
    {0x2E43, 0x2E4F, 0, CHAR_PUNCT},     {0x2E52, 0x2E5D, 0, CHAR_PUNCT},     {0x10EAD, 0x10EAD, 0, CHAR_PUNCT},
    {0x10F55, 0x10F59, 0, CHAR_PUNCT},   {0x10F86, 0x10F89, 0, CHAR_PUNCT},   {0x111C9, 0x111C9, CHAR_PUNCT, 0},
    {0x1144B, 0x1144F, 0, CHAR_PUNCT},   {0x1145A, 0x1145B, 0, CHAR_PUNCT},   {0x1145D, 0x1145D, 0, CHAR_PUNCT},
    {0x11660, 0x1166C, 0, CHAR_PUNCT},   {0x116B9, 0x116B9, 0, CHAR_PUNCT},   {0x1183B, 0x1183B, 0, CHAR_PUNCT},
    {0x11944, 0x11946, 0, CHAR_PUNCT},   {0x119E2, 0x119E2, 0, CHAR_PUNCT},   {0x11A3F, 0x11A46, 0, CHAR_PUNCT},
    {0x11A9A, 0x11A9C, 0, CHAR_PUNCT},   {0x11A9E, 0x11AA2, 0, CHAR_PUNCT},   {0x11B00, 0x11B09, 0, CHAR_PUNCT},
    {0x11C41, 0x11C45, 0, CHAR_PUNCT},   {0x11C70, 0x11C71, 0, CHAR_PUNCT},   {0x11EF7, 0x11EF8, 0, CHAR_PUNCT},
    {0x11F43, 0x11F4F, 0, CHAR_PUNCT},   {0x11FFF, 0x11FFF, 0, CHAR_PUNCT},   {0x12FF1, 0x12FF2, 0, CHAR_PUNCT},
    {0x16E97, 0x16E9A, 0, CHAR_PUNCT},   {0x16FE2, 0x16FE2, 0, CHAR_PUNCT},   {0x1E95E, 0x1E95F, 0, CHAR_PUNCT},
};

static uint8_t from_category(utf8proc_category_t category) {
    switch (category) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM: case UTF8PROC_CATEGORY_LO: return CHAR_LETTER | CHAR_WORD;
    case UTF8PROC_CATEGORY_MN: return CHAR_MARK | CHAR_NONSPACING | CHAR_WORD;
    case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME: return CHAR_MARK | CHAR_WORD;
    case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: return CHAR_NUMBER | CHAR_WORD;
    case UTF8PROC_CATEGORY_NO: return CHAR_NUMBER;
    case UTF8PROC_CATEGORY_PC: return CHAR_PUNCT | CHAR_WORD;
    case UTF8PROC_CATEGORY_PD: case UTF8PROC_CATEGORY_PS: case UTF8PROC_CATEGORY_PE: case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF: case UTF8PROC_CATEGORY_PO: return CHAR_PUNCT;
    case UTF8PROC_CATEGORY_ZS: case UTF8PROC_CATEGORY_ZL: case UTF8PROC_CATEGORY_ZP: return CHAR_SPACE;
    case UTF8PROC_CATEGORY_CC: case UTF8PROC_CATEGORY_CF: case UTF8PROC_CATEGORY_CO: return CHAR_CONTROL;
    default: return 0;
    }
}

static void fill(void) {
    for (int c = 0; c < CHAR_COUNT; c++)
        char_classes[c] = from_category(utf8proc_category(c));
    for (int c = '!'; c <= '~'; c++)
        if (!(char_classes[c] & (CHAR_LETTER | CHAR_NUMBER)))
            char_classes[c] |= CHAR_PUNCT;
    for (int c = '\t'; c <= '\r'; c++)
        char_classes[c] |= CHAR_SPACE;
    char_classes[0x85] |= CHAR_SPACE;
    for (size_t i = 0; i < sizeof corrections / sizeof *corrections; i++) {
        Range r = corrections[i];
        if (r.set & (CHAR_LETTER | CHAR_NUMBER | CHAR_MARK))
            r.set |= CHAR_WORD, r.clear |= CHAR_CONTROL;
        for (uint32_t c = r.first; c <= r.last; c++)
            char_classes[c] = (uint8_t)((char_classes[c] & ~r.clear) | r.set);
    }
}

void unicode_open(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill);
}
