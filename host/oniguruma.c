#define PCRE2_CODE_UNIT_WIDTH 8
#include "oniguruma.h"

#include <ctype.h>
#include <pcre2.h>
#include <stdio.h>
#include <strings.h>

#include "utf8.h"

/* Characters of Unicode 15 to 16, which PCRE2 10.42 (Unicode 14) does not know. */
static const struct {
    char category[3];
    uint32_t first, last;
} younger[] = {
    {"Lu", 0x1C89, 0x1C89}, {"Lu", 0xA7CB, 0xA7CC}, {"Lu", 0xA7DA, 0xA7DA}, {"Lu", 0xA7DC, 0xA7DC},
    {"Lu", 0x10D50, 0x10D65}, {"Ll", 0x1C8A, 0x1C8A}, {"Ll", 0xA7CD, 0xA7CD}, {"Ll", 0xA7DB, 0xA7DB},
    {"Ll", 0x10D70, 0x10D85}, {"Ll", 0x1DF25, 0x1DF2A}, {"Lm", 0x10D4E, 0x10D4E}, {"Lm", 0x10D6F, 0x10D6F},
    {"Lm", 0x16D40, 0x16D42}, {"Lm", 0x16D6B, 0x16D6C}, {"Lm", 0x1E030, 0x1E06D}, {"Lm", 0x1E4EB, 0x1E4EB},
    {"Lo", 0x105C0, 0x105F3}, {"Lo", 0x10D4A, 0x10D4D}, {"Lo", 0x10D4F, 0x10D4F}, {"Lo", 0x10EC2, 0x10EC4},
    {"Lo", 0x1123F, 0x11240}, {"Lo", 0x11380, 0x11389}, {"Lo", 0x1138B, 0x1138B}, {"Lo", 0x1138E, 0x1138E},
    {"Lo", 0x11390, 0x113B5}, {"Lo", 0x113B7, 0x113B7}, {"Lo", 0x113D1, 0x113D1}, {"Lo", 0x113D3, 0x113D3},
    {"Lo", 0x11BC0, 0x11BE0}, {"Lo", 0x11F02, 0x11F02}, {"Lo", 0x11F04, 0x11F10}, {"Lo", 0x11F12, 0x11F33},
    {"Lo", 0x1342F, 0x1342F}, {"Lo", 0x13441, 0x13446}, {"Lo", 0x13460, 0x143FA}, {"Lo", 0x16100, 0x1611D},
    {"Lo", 0x16D43, 0x16D6A}, {"Lo", 0x18CFF, 0x18CFF}, {"Lo", 0x1B132, 0x1B132}, {"Lo", 0x1B155, 0x1B155},
    {"Lo", 0x1E4D0, 0x1E4EA}, {"Lo", 0x1E5D0, 0x1E5ED}, {"Lo", 0x1E5F0, 0x1E5F0}, {"Lo", 0x2B739, 0x2B739},
    {"Lo", 0x2EBF0, 0x2EE5D}, {"Lo", 0x31350, 0x323AF}, {"Mn", 0x897, 0x897}, {"Mn", 0xECE, 0xECE},
    {"Mn", 0x10D69, 0x10D6D}, {"Mn", 0x10EFC, 0x10EFF}, {"Mn", 0x11241, 0x11241}, {"Mn", 0x113BB, 0x113C0},
    {"Mn", 0x113CE, 0x113CE}, {"Mn", 0x113D0, 0x113D0}, {"Mn", 0x113D2, 0x113D2}, {"Mn", 0x113E1, 0x113E2},
    {"Mn", 0x11F00, 0x11F01}, {"Mn", 0x11F36, 0x11F3A}, {"Mn", 0x11F40, 0x11F40}, {"Mn", 0x11F42, 0x11F42},
    {"Mn", 0x11F5A, 0x11F5A}, {"Mn", 0x13440, 0x13440}, {"Mn", 0x13447, 0x13455}, {"Mn", 0x1611E, 0x16129},
    {"Mn", 0x1612D, 0x1612F}, {"Mn", 0x1E08F, 0x1E08F}, {"Mn", 0x1E4EC, 0x1E4EF}, {"Mn", 0x1E5EE, 0x1E5EF},
    {"Mc", 0xCF3, 0xCF3}, {"Mc", 0x113B8, 0x113BA}, {"Mc", 0x113C2, 0x113C2}, {"Mc", 0x113C5, 0x113C5},
    {"Mc", 0x113C7, 0x113CA}, {"Mc", 0x113CC, 0x113CD}, {"Mc", 0x113CF, 0x113CF}, {"Mc", 0x1171E, 0x1171E},
    {"Mc", 0x11F03, 0x11F03}, {"Mc", 0x11F34, 0x11F35}, {"Mc", 0x11F3E, 0x11F3F}, {"Mc", 0x11F41, 0x11F41},
    {"Mc", 0x1612A, 0x1612C}, {"Nd", 0x10D40, 0x10D49}, {"Nd", 0x116D0, 0x116E3}, {"Nd", 0x11BF0, 0x11BF9},
    {"Nd", 0x11F50, 0x11F59}, {"Nd", 0x16130, 0x16139}, {"Nd", 0x16D70, 0x16D79}, {"Nd", 0x1CCF0, 0x1CCF9},
    {"Nd", 0x1E4F0, 0x1E4F9}, {"Nd", 0x1E5F1, 0x1E5FA}, {"No", 0x1D2C0, 0x1D2D3}, {"Pd", 0x10D6E, 0x10D6E},
    {"Po", 0x1B4E, 0x1B4F}, {"Po", 0x1B7F, 0x1B7F}, {"Po", 0x113D4, 0x113D5}, {"Po", 0x113D7, 0x113D8},
    {"Po", 0x11B00, 0x11B09}, {"Po", 0x11BE1, 0x11BE1}, {"Po", 0x11F43, 0x11F4F}, {"Po", 0x16D6D, 0x16D6F},
    {"Po", 0x1E5FF, 0x1E5FF}, {"Sm", 0x10D8E, 0x10D8F}, {"So", 0x2427, 0x2429}, {"So", 0x2FFC, 0x2FFF},
    {"So", 0x31E4, 0x31E5}, {"So", 0x31EF, 0x31EF}, {"So", 0x1CC00, 0x1CCEF}, {"So", 0x1CD00, 0x1CEB3},
    {"So", 0x1F6DC, 0x1F6DC}, {"So", 0x1F774, 0x1F776}, {"So", 0x1F77B, 0x1F77F}, {"So", 0x1F7D9, 0x1F7D9},
    {"So", 0x1F8B2, 0x1F8BB}, {"So", 0x1F8C0, 0x1F8C1}, {"So", 0x1FA75, 0x1FA77}, {"So", 0x1FA87, 0x1FA89},
    {"So", 0x1FA8F, 0x1FA8F}, {"So", 0x1FAAD, 0x1FAAF}, {"So", 0x1FABB, 0x1FABF}, {"So", 0x1FAC6, 0x1FAC6},
    {"So", 0x1FACE, 0x1FACF}, {"So", 0x1FADA, 0x1FADC}, {"So", 0x1FADF, 0x1FADF}, {"So", 0x1FAE8, 0x1FAE9},
    {"So", 0x1FAF7, 0x1FAF8}, {"So", 0x1FBCB, 0x1FBEF}, {"Cf", 0x13439, 0x1343F},
};

#define ALPHABETIC \
    "\\p{Alphabetic}\\p{L}\\x{363}-\\x{36F}\\x{897}\\x{C04}\\x{CF3}\\x{F82}\\x{F83}\\x{1DD3}-\\x{1DE6}\\x{10D69}\\x{10EFC}" \
    "\\x{11080}\\x{11081}\\x{11241}\\x{113B8}-\\x{113C0}\\x{113C2}\\x{113C5}\\x{113C7}-\\x{113CA}\\x{113CC}\\x{113CD}" \
    "\\x{11F00}\\x{11F01}\\x{11F03}\\x{11F34}-\\x{11F3A}\\x{11F3E}-\\x{11F40}\\x{1611E}-\\x{1612E}\\x{1E08F}"
#define WORD "\\p{Alphabetic}\\p{L}\\p{M}\\p{Nd}\\p{Pc}"
#define SPACE \
    "\\t-\\r\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"

/* What a name in \p{..} or [:..:] stands for, as the inside of a class: categories' younger members are added. */
static const struct {
    const char *name, *set;
} names[] = {
    {"letter", "\\p{L}"}, {"mark", "\\p{M}"}, {"number", "\\p{N}"}, {"punctuation", "\\p{P}"}, {"symbol", "\\p{S}"},
    {"separator", "\\p{Z}"}, {"other", "\\p{C}"}, {"uppercaseletter", "\\p{Lu}"}, {"lowercaseletter", "\\p{Ll}"},
    {"titlecaseletter", "\\p{Lt}"}, {"modifierletter", "\\p{Lm}"}, {"otherletter", "\\p{Lo}"}, {"nonspacingmark", "\\p{Mn}"},
    {"spacingmark", "\\p{Mc}"}, {"decimalnumber", "\\p{Nd}"}, {"digit", "\\p{Nd}"}, {"control", "\\p{Cc}"}, {"cntrl", "\\p{Cc}"},
    {"xdigit", "0-9a-fA-F"}, {"upper", "\\p{Uppercase}\\p{Lu}"}, {"lower", "\\p{Lowercase}\\p{Ll}\\x{AB69}\\x{1E030}-\\x{1E06D}"},
    {"blank", "\\t\\p{Zs}"}, {"punct", "\\p{P}\\p{S}"},
    {"alpha", ALPHABETIC}, {"alphabetic", ALPHABETIC}, {"alnum", ALPHABETIC "\\p{Nd}"},
    {"word", WORD "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"}, {"space", SPACE}, {"whitespace", SPACE},
    {"han", "\\p{sc:Han}\\x{2B739}\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}"},
};

/* Complements that a class may need inside. */
static const char solids[] = "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}"
                             "\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}";
static const char no_xdigits[] = "\\x{0}-\\x{2F}\\x{3A}-\\x{40}\\x{47}-\\x{60}\\x{67}-\\x{10FFFF}";

typedef struct Reader {
    const char *start, *p, *end, *what;
    int inside;         /* a class */
    Bytes *out;
} Reader;

static Status refuse(const Reader *r, const char *construct, size_t n) {
    size_t length = (size_t)(r->end - r->start);
    return fail(ERR_UNSUPPORTED, "%s: the pattern '%.*s' has '%.*s', which is not supported", r->what,
                (int)(length < 200 ? length : 200), r->start, (int)(n < 40 ? n : 40), construct);
}

static Status write(const Reader *r, const char *text) { return bytes_append(r->out, text, strlen(text)); }

static int starts(const Reader *r, const char *text) {
    size_t n = strlen(text);
    return (size_t)(r->end - r->p) >= n && !memcmp(r->p, text, n);
}

static int compiles(const char *pattern) {
    int code;
    PCRE2_SIZE where;
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &where, NULL);
    pcre2_code_free(c);
    return c != NULL;
}

/* A set as names[] spells it, with the younger characters of its categories. */
static Status write_set(const Reader *r, const char *set) {
    Status status = write(r, set);
    for (const char *p = set; status == OK && (p = strstr(p, "\\p{")); p++) {
        size_t width = strcspn(p + 3, "}");
        for (size_t i = 0; width <= 2 && status == OK && i < sizeof younger / sizeof *younger; i++) {
            char range[32];
            if (memcmp(younger[i].category, p + 3, width))
                continue;
            snprintf(range, sizeof range, "\\x{%X}-\\x{%X}", (unsigned)younger[i].first, (unsigned)younger[i].last);
            status = write(r, range);
        }
    }
    return status;
}

/* Inside a class the set as it is, by itself a class; `construct` for the message that it cannot be negated inside. */
static Status write_class(const Reader *r, const char *set, int negated, const char *construct) {
    if (r->inside)
        return negated ? refuse(r, construct, (size_t)(r->p - construct)) : write_set(r, set);
    Status status = write(r, negated ? "[^" : "[");
    if (status == OK)
        status = write_set(r, set);
    return status == OK ? write(r, "]") : status;
}

/* The set of a name of n bytes, in names[] or made in `room`; NULL if there is none. Case, spaces, - and _ do not count. */
static const char *set_of(const char *name, size_t n, char *room, size_t size) {
    char plain[48];
    size_t length = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isalnum((unsigned char)name[i]) && !strchr(" -_&", name[i]))
            return NULL;
        if (isalnum((unsigned char)name[i]) && length + 1 < sizeof plain)
            plain[length++] = (char)tolower((unsigned char)name[i]);
    }
    plain[length] = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(plain, names[i].name))
            return names[i].set;
    if (length <= 2 && length > 0 && n == length) {
        snprintf(room, size, "\\p{%c%s}", toupper((unsigned char)plain[0]), plain + 1);
        return compiles(room) ? room : NULL;
    }
    static const char *const kinds[] = {"sc:", ""}; /* a script's name alone means its extensions in PCRE2 */
    for (int i = 0; i < 2; i++) {
        snprintf(room, size, "\\p{%s%.*s}", kinds[i], (int)(n < 40 ? n : 40), name);
        if (compiles(room))
            return room;
    }
    return NULL;
}

/* \p{name}, \P{name}, \p{^name} */
static Status read_property(Reader *r) {
    const char *construct = r->p, *close = memchr(r->p, '}', (size_t)(r->end - r->p));
    int negated = r->p[1] == 'P';
    if (r->end - r->p < 4 || r->p[2] != '{' || !close)
        return refuse(r, construct, 2);
    const char *name = r->p + 3;
    if (*name == '^')
        negated = !negated, name++;
    char room[64];
    const char *set = set_of(name, (size_t)(close - name), room, sizeof room);
    r->p = close + 1;
    return set ? write_class(r, set, negated, construct) : refuse(r, construct, (size_t)(r->p - construct));
}

static Status read_boundary(const Reader *r, int negated) {
    static const char *const parts[2][5] = {{"(?:(?<=[", "])(?![", "])|(?<![", "])(?=[", "]))"},
                                            {"(?:(?<=[", "])(?=[", "])|(?<![", "])(?![", "]))"}};
    Status status = OK;
    for (int i = 0; i < 5 && status == OK; i++) {
        status = write(r, parts[negated][i]);
        if (status == OK && i < 4)
            status = write_set(r, set_of("word", 4, NULL, 0));
    }
    return status;
}

static Status read_escape(Reader *r) {
    const char *construct = r->p;
    if (r->end - r->p < 2) /* PCRE2 says so */
        return bytes_append(r->out, r->p++, 1);
    char c = r->p[1], unit[16];
    if (c == 'p' || c == 'P')
        return read_property(r);
    if (c == 'u') {
        if (r->end - r->p < 6 || strspn(r->p + 2, "0123456789abcdefABCDEF") < 4)
            return refuse(r, construct, 2);
        snprintf(unit, sizeof unit, "\\x{%.4s}", r->p + 2);
        r->p += 6;
        return write(r, unit);
    }
    r->p += 2;
    switch (c) {
    case 'd': case 'D': return write_class(r, "\\p{Nd}", c == 'D', construct);
    case 'w': case 'W': /* superscripts and fractions of Latin-1 belong to it only outside a class */
        return write_class(r, r->inside ? WORD : set_of("word", 4, NULL, 0), c == 'W', construct);
    case 's': return write_class(r, SPACE, 0, construct);
    case 'S': return write_class(r, solids, 0, construct);
    case 'h': return write_class(r, "0-9a-fA-F", 0, construct); /* horizontal space in PCRE2 */
    case 'H': return write_class(r, no_xdigits, 0, construct);
    case 'v': return write(r, "\\x{B}"); /* any vertical space in PCRE2 */
    case 'b': case 'B':
        if (!r->inside)
            return read_boundary(r, c == 'B');
        break;
    default: break;
    }
    const char *known = r->inside ? "nrtfaexb01234567" : "nrtfaexkgAzZGKRN0123456789";
    if (isalnum((unsigned char)c) && !strchr(known, c))
        return refuse(r, construct, 2);
    return bytes_append(r->out, construct, 2); /* the rest of a longer character follows as it is */
}

/* [:name:], after "[" inside a class */
static Status read_posix(Reader *r) {
    const char *construct = r->p, *name = r->p + 2;
    const char *close = memmem(name, (size_t)(r->end - name), ":]", 2);
    char room[64];
    const char *set = close && *name != '^' ? set_of(name, (size_t)(close - name), room, sizeof room) : NULL;
    if (!set)
        return refuse(r, construct, close ? (size_t)(close + 2 - construct) : 2);
    r->p = close + 2;
    return write_set(r, set);
}

static Status read_in_class(Reader *r) {
    if (starts(r, "&&"))
        return refuse(r, r->p, 2);
    if (starts(r, "[:"))
        return read_posix(r);
    if (*r->p == '[') /* a class within a class */
        return refuse(r, r->p, 1);
    if (*r->p == ']')
        r->inside = 0;
    return bytes_append(r->out, r->p++, 1);
}

static Status open_class(Reader *r) {
    r->inside = 1;
    Status status = bytes_append(r->out, r->p++, 1);
    if (status == OK && r->p < r->end && *r->p == '^')
        status = bytes_append(r->out, r->p++, 1);
    if (status == OK && r->p < r->end && *r->p == ']') /* the first is a character */
        status = write(r, "\\]"), r->p++;
    return status;
}

/* "(" and what tells its kind. Ruby's m is PCRE2's s; an option without a group reaches over the bars that follow it, which
 * PCRE2 has only at a group's beginning. */
static Status open_group(Reader *r) {
    const char *construct = r->p;
    if (starts(r, "(*") || starts(r, "(?~") || starts(r, "(?(") || starts(r, "(?{"))
        return refuse(r, construct, 3);
    size_t n = (size_t)(r->end - r->p), options = 2;
    if (!starts(r, "(?") || n < 3 || !strchr("imx-", r->p[2])) {
        if (starts(r, "(?") && n > 2 && isalpha((unsigned char)r->p[2]))
            return refuse(r, construct, 3);
        return bytes_append(r->out, r->p++, 1);
    }
    while (options < n && r->p[options] && strchr("imx-", r->p[options]))
        options++;
    if (options == n || !strchr(":)", r->p[options]))
        return refuse(r, construct, options < n ? options + 1 : n);
    if (r->p[options] == ')' && r->p > r->start && r->p[-1] != '(' && r->p[-1] != ':')
        return refuse(r, construct, options + 1);
    Status status = OK;
    for (size_t i = 0; i <= options && status == OK; i++)
        status = bytes_append(r->out, r->p[i] == 'm' ? "s" : r->p + i, 1);
    r->p += options + 1;
    return status;
}

/* {n,m}: what follows would make it possessive or lazy in PCRE2, and repeats it in Ruby. */
static Status read_counts(Reader *r) {
    size_t n = (size_t)(r->end - r->p), width = 1;
    while (width < n && (isdigit((unsigned char)r->p[width]) || r->p[width] == ','))
        width++;
    if (width == n || r->p[width] != '}' || width == 1)
        return bytes_append(r->out, r->p++, 1); /* a brace */
    int exact = !memchr(r->p, ',', width);
    if (width + 1 < n && (r->p[width + 1] == '+' || (exact && r->p[width + 1] == '?')))
        return refuse(r, r->p, width + 2);
    Status status = r->p[1] == ',' ? write(r, "{0") : write(r, "{");
    if (status == OK)
        status = bytes_append(r->out, r->p + 1, width);
    r->p += width + 1;
    return status;
}

/* Without regard to case Oniguruma also takes one character for two, as the German sharp s for ss. */
static Status check_folding(const Reader *r) {
    static const char *const pairs[] = {"ss", "ff", "fi", "fl", "st"};
    int without_case = 0;
    for (const char *p = r->start; p + 2 < r->end; p++)
        if (p[0] == '(' && p[1] == '?') {
            const char *option = p + 2;
            while (option < r->end && (*option == 'm' || *option == 'x'))
                option++;
            without_case |= option < r->end && *option == 'i';
        }
    for (const char *p = r->start; without_case && p + 1 < r->end; p++)
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
            if ((p == r->start || p[-1] != '\\') && !strncasecmp(p, pairs[i], 2))
                return refuse(r, p, 2);
    return OK;
}

Status oniguruma_translate(const char *pattern, size_t n, const char *what, Bytes *out) {
    Reader r = {pattern, pattern, pattern + n, what, 0, out};
    Status status = check_folding(&r);
    while (r.p < r.end && status == OK) {
        if (*r.p == '\\')
            status = read_escape(&r);
        else if (r.inside)
            status = read_in_class(&r);
        else if (*r.p == '[')
            status = open_class(&r);
        else if (*r.p == '(')
            status = open_group(&r);
        else if (*r.p == '{')
            status = read_counts(&r);
        else
            status = bytes_append(out, r.p++, 1);
    }
    return status;
}
