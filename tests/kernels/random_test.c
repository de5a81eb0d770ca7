/* The generator against its published answers (Random123's kat_vectors), and random tensors of every instruction set against it. */
#include "products.h"
#include "random.h"

static void known(uint64_t key, uint64_t high, uint64_t low, const uint32_t want[4]) {
    uint32_t got[4];
    philox(got, key, high, low);
    must(!memcmp(got, want, sizeof got), "philox", "known answer");
}

static void check(const Backend *t) {
    enum { N = 37 };
    float uniform_numbers[N], normal_numbers[N];
    uint32_t word[4];
    View u = {uniform_numbers, F32, 1, {N}, {1}}, n = {normal_numbers, F32, 1, {N}, {1}};
    for (uint64_t start = 0; start < 9; start++) {
        Random random = {0x299f31d0a4093822u, ((uint64_t)1 << 40) + start};
        must(t->random_uniform(&u, random, 0, 1) == OK && t->random_normal(&n, random, 1) == OK, t->name, "random tensors");
        for (uint64_t i = 0; i < N; i++) {
            uint64_t at = random.counter + i;
            philox(word, random.key, 0, at / 4);
            must(uniform_numbers[i] == (float)(word[at % 4] >> 8) * 0x1p-24f, t->name, "word i of the stream");
            must(fabs((double)normal_numbers[i]) < 6, t->name, "normal numbers");
        }
    }
}

int main(void) {
    const Backend *tables[5];
    known(0, 0, 0, (const uint32_t[]){0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    known(UINT64_MAX, UINT64_MAX, UINT64_MAX, (const uint32_t[]){0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    known(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u, (const uint32_t[]){0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
    for (int i = 0, count = table_count(tables); i < count; i++)
        check(tables[i]);
    printf("random: %s\n", failures ? "FAILED" : "passed");
    return failures != 0;
}
