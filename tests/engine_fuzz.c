/* Feeds damaged program images to the engine inside one process; meant for a sanitizer build.
 *
 *     engine_fuzz IMAGE SEED CASES
 *
 * Each case changes a few bits, bytes or words of the image, or its length. Half of the cases keep the old CRC, and must
 * be refused; the others get a correct one, and must be refused or run. Buffers have exactly the size that the engine is
 * told, so that a sanitizer sees every access beyond them. Prints "stale N refused N ran N"; exits 1 where a damaged
 * image with a stale CRC is accepted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { MAX_ARENA = 4 << 20, MAX_IMAGE = 1 << 20, CRC_AT = 12, CRC_END = 16, RECORDS = 48 };

static uint64_t state;

static uint32_t random_below(uint32_t n)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % n;
}

static uint32_t crc32(const uint8_t *p, size_t n)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static void put_word(uint8_t *p, uint32_t word)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(word >> 8 * i);
}

/* A word that validation is likely to trip over, or a small change of the one that stands there. */
static uint32_t odd_word(const uint8_t *p)
{
    static const uint32_t words[] = {0, 1, 2, 3, 7, 8, 16, 31, 32, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536,
                                     0x40000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFF80, 0xFFFFFFFE, 0xFFFFFFFF};
    uint32_t word = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    uint32_t choice = random_below(3);
    return choice == 0 ? words[random_below(sizeof words / sizeof *words)] : choice == 1 ? word + 1 : word - 1;
}

/* Changes `size` bytes in place. Returns the new size, which is never larger. */
static size_t damage(uint8_t *image, size_t size)
{
    uint32_t changes = 1 + random_below(3);
    for (uint32_t i = 0; i < changes; i++) {
        uint32_t at = random_below((uint32_t)size), word = random_below((uint32_t)size / 4) * 4, choice = random_below(8);
        if (choice < 3)
            image[at] ^= (uint8_t)(1u << random_below(8));
        else if (choice < 4)
            image[at] = (uint8_t)random_below(256);
        else
            put_word(image + word, odd_word(image + word));
    }
    return random_below(16) == 0 ? random_below((uint32_t)size) : size;
}

static uint64_t touched; /* keeps reads of results from being optimised away */

static void look(void *user, uint32_t op, const ey_tensor *t, const void *codes)
{
    (void)user;
    (void)op;
    for (uint32_t i = 0; i < t->bytes; i++)
        touched += ((const uint8_t *)codes)[i];
}

/* Load, feed zeros and infer. Returns whether the image was accepted. */
static int attempt(const uint8_t *image, size_t size)
{
    ey_model m;
    ey_tensor t;
    const void *codes;
    uint8_t *arena, *input;
    if (ey_load(&m, image, size, NULL, 0) != EY_ARENA_TOO_SMALL)
        return 0;
    if (m.arena_bytes > MAX_ARENA)
        return 1;
    ey_read_tensor(&m, m.input, &t);
    arena = malloc(m.arena_bytes);
    input = calloc(t.bytes, 1);
    if (arena == NULL || input == NULL || ey_load(&m, image, size, arena, m.arena_bytes) != EY_OK)
        abort();
    if (ey_set_input(&m, input, t.bytes) != EY_OK || ey_infer(&m, look, NULL) != EY_OK)
        abort();
    for (uint32_t i = 0; i < m.outputs; i++) {
        if (ey_get_output(&m, i, &t, &codes) != EY_OK)
            abort();
        look(NULL, 0, &t, codes);
    }
    free(arena);
    free(input);
    return 1;
}

int main(int argc, char **argv)
{
    static uint8_t original[MAX_IMAGE], work[MAX_IMAGE];
    unsigned long cases, stale = 0, refused = 0, ran = 0;
    size_t size;
    FILE *f = argc == 4 ? fopen(argv[1], "rb") : NULL;
    if (f == NULL)
        return 2;
    size = fread(original, 1, sizeof original, f);
    fclose(f);
    state = strtoull(argv[2], NULL, 10) * 2654435761u + 88172645463325252u;
    cases = strtoul(argv[3], NULL, 10);
    if (!attempt(original, size))
        return 2;
    for (unsigned long i = 0; i < cases; i++) {
        int repair = (int)random_below(2), accepted;
        size_t n;
        uint8_t *exact;
        memcpy(work, original, size);
        n = damage(work, size);
        if (repair && n >= RECORDS) {
            put_word(work + 8, (uint32_t)n);
            put_word(work + CRC_AT, crc32(work + CRC_END, n - CRC_END));
        }
        exact = malloc(n > 0 ? n : 1);
        if (exact == NULL)
            return 2;
        memcpy(exact, work, n);
        accepted = attempt(exact, n);
        free(exact);
        if (!repair && accepted && (n != size || memcmp(work, original, size) != 0)) {
            printf("case %lu: accepted with a stale CRC\n", i);
            return 1;
        }
        stale += !repair;
        refused += repair && !accepted;
        ran += repair && accepted;
    }
    printf("stale %lu refused %lu ran %lu\n", stale, refused, ran);
    return 0;
}
