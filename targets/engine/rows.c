/* Rows of numbers: codes to int32, packed weights to int16, and accumulators back to codes by the rounding rule. */
#include "internal.h"

/* The rounding below divides negative numbers with >>, which C99 leaves to the compiler. */
typedef char ey_shift_of_a_negative_is_arithmetic[((int32_t)-5 >> 1) == -3 && ((int64_t)-5 >> 1) == -3 ? 1 : -1];
typedef char ey_int_has_32_bits[sizeof(int) >= 4 ? 1 : -1];

void ey_copy(void *to, const void *from, size_t bytes)
{
    uint8_t *restrict d = to;
    const uint8_t *restrict s = from;
    for (size_t i = 0; i < bytes; i++)
        d[i] = s[i];
}

#define WIDEN(type)                                 \
    do {                                            \
        const type *restrict s = codes;             \
        for (uint32_t i = 0; i < n; i++)            \
            row[i] = s[i];                          \
    } while (0)

void ey_widen(const ey_tensor *t, const void *codes, uint32_t n, int32_t *restrict row)
{
    if (t->code_bytes == 1) {
        if (t->is_signed)
            WIDEN(int8_t);
        else
            WIDEN(uint8_t);
    } else if (t->is_signed) {
        WIDEN(int16_t);
    } else {
        WIDEN(uint16_t);
    }
}

void ey_unpack(const uint8_t *stream, uint64_t first, uint32_t count, uint32_t bits, int16_t *restrict codes)
{
    const uint8_t *p = stream + (size_t)(first * bits / 8);
    uint32_t held = 0, window = 0, skip = (uint32_t)(first * bits % 8);
    const uint32_t sign = 1u << (bits - 1), mask = 2 * sign - 1;
    if (bits == 8) {
        for (uint32_t i = 0; i < count; i++)
            codes[i] = (int16_t)((p[i] ^ 128) - 128);
        return;
    }
    if (skip) {
        window = (uint32_t)*p++ >> skip;
        held = 8 - skip;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (held < bits) {
            window |= (uint32_t)*p++ << held;
            held += 8;
        }
        codes[i] = (int16_t)((int32_t)((window & mask) ^ sign) - (int32_t)sign);
        window >>= bits;
        held -= bits;
    }
}

static int32_t clamp(int64_t x, int32_t lo, int32_t hi)
{
    return x < lo ? lo : x > hi ? hi : (int32_t)x;
}

/* The general case: |acc| < 2^31, log2 <= 16 and |shift| <= 31 keep every step below 2^63. */
static int32_t rescale(const ey_scale *s, int32_t acc)
{
    int32_t shift = s->shift + s->log2;
    int64_t v = acc >= 0 ? acc * ((int64_t)1 << s->log2) : (int64_t)acc * s->num;
    if (shift > 0)
        v = (v + ((int64_t)1 << (shift - 1)) - 1 + (v >> shift & 1)) >> shift;
    else
        v *= (int64_t)1 << -shift;
    return clamp(v, s->lo, s->hi);
}

static void store_general(const ey_scale *s, const int32_t *acc, uint32_t n, uint32_t code_bytes, void *codes)
{
    uint8_t *narrow = codes;
    uint16_t *wide = codes;
    for (uint32_t i = 0; i < n; i++) {
        int32_t y = rescale(s, acc[i]);
        if (code_bytes == 1)
            narrow[i] = (uint8_t)y;
        else
            wide[i] = (uint16_t)y;
    }
}

/* The same in 32 bits, where no step can leave them; compilers vectorise these loops. Adding half - 1 + odd before the
 * shift carries exactly where the remainder is above half, or is half and the quotient is odd. */
#define STORE(type, value)                                                   \
    do {                                                                     \
        type *restrict y = codes;                                            \
        for (uint32_t i = 0; i < n; i++) {                                   \
            int32_t v = (value);                                             \
            v = (v + below_half + (v >> shift & odd)) >> shift;              \
            v = v < lo ? lo : v;                                             \
            y[i] = (type)(v > hi ? hi : v);                                  \
        }                                                                    \
    } while (0)

#define LEAKY (acc[i] * (acc[i] < 0 ? num : one))

static void store_narrow(const ey_scale *s, const int32_t *restrict acc, uint32_t n, uint32_t code_bytes, void *codes)
{
    const int32_t shift = s->shift + s->log2, num = s->num, one = (int32_t)1 << s->log2, lo = s->lo, hi = s->hi;
    const int32_t odd = shift > 0, below_half = odd ? ((int32_t)1 << (shift - 1)) - 1 : 0;
    const int linear = one == 1; /* ey_store has made it so */
    if (code_bytes == 1) {
        if (linear)
            STORE(uint8_t, acc[i]);
        else
            STORE(uint8_t, LEAKY);
    } else if (linear) {
        STORE(uint16_t, acc[i]);
    } else {
        STORE(uint16_t, LEAKY);
    }
}

/* acc: n accumulators, |acc| <= bound. codes: n codes of code_bytes bytes. */
void ey_store(const ey_scale *scale, uint32_t bound, const int32_t *acc, uint32_t n, uint32_t code_bytes, void *codes)
{
    ey_scale s = *scale;
    int32_t shift;
    if (s.num == 0) { /* ReLU is a clamp, since rounding keeps the sign */
        s.num = 1;
        s.log2 = 0;
        s.lo = s.lo > 0 ? s.lo : s.hi < 0 ? s.hi : 0;
    } else if (s.num == (int32_t)1 << s.log2) {
        s.num = 1;
        s.log2 = 0;
    }
    shift = s.shift + s.log2;
    if (shift >= 0 && shift <= 30 && ((uint64_t)bound << s.log2) + ((uint32_t)1 << shift) / 2 <= INT32_MAX)
        store_narrow(&s, acc, n, code_bytes, codes);
    else
        store_general(&s, acc, n, code_bytes, codes);
}
