/* Checks of operations and of the memory plan. What passes here cannot overflow, read or write out of bounds. */
#include "internal.h"

enum { MAX_WINDOW = 255, MAX_SHIFT = 31, MAX_ALIGN = 16, MAX_LOG2 = 16 };

static int within(int32_t x, int32_t lo, int32_t hi) { return lo <= x && x <= hi; }

static int same_type(const ey_tensor *a, const ey_tensor *b)
{
    return a->bits == b->bits && a->is_signed == b->is_signed && a->frac == b->frac;
}

static int clamp_ok(const ey_op *op, int32_t lo, int32_t hi)
{
    return lo <= hi && op->out.lo <= lo && hi <= op->out.hi;
}

static int leaky_ok(int32_t num, int32_t log2)
{
    return within(log2, 0, MAX_LOG2) && within(num, 0, (int32_t)1 << log2);
}

/* One side of a window: extents, effective kernel, padding and stride fit together. */
static int side_ok(uint32_t in, uint32_t out, int32_t kernel, int32_t stride, int32_t before, int32_t after)
{
    int32_t room = (int32_t)in + before + after - kernel;
    return room >= 0 && (uint32_t)(room / stride) + 1 == out;
}

static int window_ok(const ey_op *op, int32_t dilation_y, int32_t dilation_x)
{
    const int32_t *p = op->param;
    for (uint32_t i = P_KH; i <= P_SW; i++)
        if (!within(p[i], 1, MAX_WINDOW))
            return 0;
    for (uint32_t i = P_PT; i <= P_PR; i++)
        if (!within(p[i], 0, MAX_WINDOW))
            return 0;
    return side_ok(op->in.h, op->out.h, (p[P_KH] - 1) * dilation_y + 1, p[P_SH], p[P_PT], p[P_PB]) &&
           side_ok(op->in.w, op->out.w, (p[P_KW] - 1) * dilation_x + 1, p[P_SW], p[P_PL], p[P_PR]);
}

/* Blocks of constants follow one another in the order of the operations, each from a multiple of 4 on. Takes the next:
 * `bytes` bytes, which must stand at `offset`. */
static int take_block(const ey_model *m, uint32_t *next, int32_t offset, uint64_t bytes)
{
    uint32_t size = ey_data_bytes(m);
    if (offset < 0 || (uint32_t)offset != *next || bytes > size - *next)
        return 0;
    *next += ((uint32_t)bytes + 3) / 4 * 4; /* not beyond the section, whose size is a multiple of 4 */
    return 1;
}

/* |bias| + sum |w| * max |x| < 2^31 for every output channel, so that no order of additions can overflow int32. */
static int conv_sums_ok(const ey_model *m, const ey_op *op, uint32_t taps)
{
    const uint8_t *weights = ey_data(m, op->param[P_WEIGHTS]), *bias = ey_data(m, op->param[P_BIAS]);
    const uint8_t *shifts = ey_data(m, op->param[P_SHIFTS]);
    int16_t part[64];
    for (uint32_t o = 0; o < op->out.c; o++) {
        uint64_t sum = 0;
        uint32_t b = ey_word(bias + (size_t)o * 4);
        for (uint32_t k = 0; k < taps; k += 64) {
            uint32_t n = ey_min(64, taps - k);
            ey_unpack(weights, (uint64_t)o * taps + k, n, (uint32_t)op->param[P_BITS], part);
            for (uint32_t i = 0; i < n; i++)
                sum += (uint64_t)(part[i] < 0 ? -part[i] : part[i]);
        }
        if ((b < 0x80000000u ? b : 0u - b) + sum * ey_magnitude(&op->in) > INT32_MAX)
            return 0;
        if (shifts[o] > MAX_SHIFT && shifts[o] < 256 - MAX_SHIFT)
            return 0;
    }
    return 1;
}

static int conv_ok(const ey_model *m, const ey_op *op, uint32_t *next)
{
    const int32_t *p = op->param;
    uint32_t groups = (uint32_t)p[P_GROUPS], bits = (uint32_t)p[P_BITS];
    uint64_t taps, packed;
    if (!within(p[P_DH], 1, MAX_WINDOW) || !within(p[P_DW], 1, MAX_WINDOW) || !window_ok(op, p[P_DH], p[P_DW]))
        return 0;
    if (p[P_GROUPS] < 1 || op->in.c % groups != 0 || op->out.c % groups != 0)
        return 0;
    if (!within(p[P_BITS], 2, 8) || !within(p[P_PER_CHANNEL], 0, 1) || !leaky_ok(p[P_CONV_NUM], p[P_CONV_LOG2]))
        return 0;
    taps = (uint64_t)(op->in.c / groups) * (uint32_t)p[P_KH] * (uint32_t)p[P_KW];
    packed = (taps * op->out.c * bits + 7) / 8;
    return clamp_ok(op, p[P_CONV_LO], p[P_CONV_HI]) && take_block(m, next, p[P_WEIGHTS], packed) &&
           take_block(m, next, p[P_BIAS], (uint64_t)op->out.c * 4) && take_block(m, next, p[P_SHIFTS], op->out.c) &&
           conv_sums_ok(m, op, (uint32_t)taps);
}

/* No window may lie in the padding alone: the first reaches the first element and the last begins before the end. */
static int maxpool_ok(const ey_op *op)
{
    const int32_t *p = op->param;
    return window_ok(op, 1, 1) && op->in.c == op->out.c && same_type(&op->in, &op->out) && p[P_PT] < p[P_KH] &&
           p[P_PL] < p[P_KW] && (int32_t)(op->out.h - 1) * p[P_SH] - p[P_PT] < (int32_t)op->in.h &&
           (int32_t)(op->out.w - 1) * p[P_SW] - p[P_PL] < (int32_t)op->in.w;
}

static int upsample_ok(const ey_op *op)
{
    const int32_t *p = op->param;
    return within(p[0], 1, MAX_WINDOW) && within(p[1], 1, MAX_WINDOW) && op->in.c == op->out.c &&
           op->in.h * (uint32_t)p[0] == op->out.h && op->in.w * (uint32_t)p[1] == op->out.w &&
           same_type(&op->in, &op->out);
}

static int concat_ok(const ey_model *m, const ey_op *op)
{
    const int32_t *p = op->param;
    uint32_t channels = 0;
    for (uint32_t i = 0; i < EY_MAX_INPUTS; i++) {
        ey_tensor t;
        if (i >= op->inputs) {
            if (p[P_CONCAT_SHIFT + i] != 0)
                return 0;
            continue;
        }
        ey_read_tensor(m, op->input[i], &t);
        channels += t.c;
        if (t.h != op->out.h || t.w != op->out.w || !within(p[P_CONCAT_SHIFT + i], -MAX_SHIFT, MAX_SHIFT))
            return 0;
    }
    return channels == op->out.c && clamp_ok(op, p[P_CONCAT_LO], p[P_CONCAT_HI]);
}

static int add_ok(const ey_model *m, const ey_op *op)
{
    const int32_t *p = op->param;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 2; i++) {
        ey_tensor t;
        ey_read_tensor(m, op->input[i], &t);
        if (t.c != op->out.c || t.h != op->out.h || t.w != op->out.w || !within(p[P_ALIGN + i], 0, MAX_ALIGN))
            return 0;
        sum += (uint64_t)ey_magnitude(&t) << p[P_ALIGN + i];
    }
    return sum <= INT32_MAX && within(p[P_ADD_SHIFT], -MAX_SHIFT, MAX_SHIFT) &&
           leaky_ok(p[P_ADD_NUM], p[P_ADD_LOG2]) && clamp_ok(op, p[P_ADD_LO], p[P_ADD_HI]);
}

static int slice_ok(const ey_op *op)
{
    const uint32_t in[3] = {op->in.c, op->in.h, op->in.w}, out[3] = {op->out.c, op->out.h, op->out.w};
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t start = (uint32_t)op->param[P_START + i], step = (uint32_t)op->param[P_STEP + i];
        if (start >= in[i] || step - 1 >= 32767 || start + (out[i] - 1) * step >= in[i])
            return 0;
    }
    return same_type(&op->in, &op->out);
}

static int lookup_ok(const ey_model *m, const ey_op *op, uint32_t *next)
{
    const uint8_t *table;
    if (op->in.bits > 8 || op->in.c != op->out.c || op->in.h != op->out.h || op->in.w != op->out.w)
        return 0;
    if (!take_block(m, next, op->param[0], (uint64_t)2 << op->in.bits))
        return 0;
    table = ey_data(m, op->param[0]);
    for (uint32_t i = 0; i < 2u << op->in.bits; i += 2) {
        int32_t entry = (int32_t)table[i] + 256 * (table[i + 1] < 128 ? table[i + 1] : (int32_t)table[i + 1] - 256);
        if (!within(entry, op->out.lo, op->out.hi))
            return 0;
    }
    return 1;
}

static int op_ok(const ey_model *m, const ey_op *op, uint32_t *next)
{
    static const uint8_t params[] = {0, P_CONV_COUNT, 8, 2, P_CONCAT_COUNT, P_ADD_COUNT, P_SLICE_COUNT, 0, 1};
    uint32_t inputs = op->kind == EY_CONCAT ? op->inputs : op->kind == EY_ADD ? 2 : 1;
    if (op->kind < EY_CONV || op->kind > EY_LOOKUP || op->output >= m->tensors)
        return 0;
    if (op->inputs != inputs || inputs < 1 || inputs > EY_MAX_INPUTS)
        return 0;
    for (uint32_t i = 0; i < EY_MAX_INPUTS; i++)
        if (i < inputs ? op->input[i] >= m->tensors : op->input[i] != 0)
            return 0;
    for (uint32_t i = params[op->kind]; i < EY_PARAMS; i++)
        if (op->param[i] != 0)
            return 0;
    switch (op->kind) {
    case EY_CONV: return conv_ok(m, op, next);
    case EY_MAXPOOL: return maxpool_ok(op);
    case EY_UPSAMPLE: return upsample_ok(op);
    case EY_CONCAT: return concat_ok(m, op);
    case EY_ADD: return add_ok(m, op);
    case EY_SLICE: return slice_ok(op);
    case EY_RESHAPE: return op->in.bytes == op->out.bytes && same_type(&op->in, &op->out);
    default: return lookup_ok(m, op, next);
    }
}

/* Operation number `time` (from 1) writes a tensor that begins to live there and reads tensors that live already. */
static int lifetimes_ok(const ey_model *m, const ey_op *op, uint32_t time)
{
    if (op->out.first != time)
        return 0;
    for (uint32_t i = 0; i < op->inputs; i++) {
        ey_tensor t;
        ey_read_tensor(m, op->input[i], &t);
        if (t.first >= time || t.last < time)
            return 0;
    }
    return 1;
}

/* Since every operation begins another tensor's life and there is one tensor more than there are operations, the input
 * and the operations' outputs are all tensors. */
static int plan_ok(const ey_model *m)
{
    ey_tensor a, b;
    ey_read_tensor(m, m->input, &a);
    if (a.first != 0)
        return 0;
    for (uint32_t i = 0; i < m->outputs; i++) {
        if (ey_output_index(m, i) >= m->tensors)
            return 0;
        ey_read_tensor(m, ey_output_index(m, i), &a);
        if (a.last != m->ops + 1)
            return 0;
    }
    for (uint32_t i = 1; i < m->tensors; i++) {
        ey_read_tensor(m, i, &a);
        for (uint32_t j = 0; j < i; j++) {
            ey_read_tensor(m, j, &b);
            if (a.first <= b.last && b.first <= a.last && a.offset < b.offset + b.bytes &&
                b.offset < a.offset + a.bytes)
                return 0;
        }
    }
    return 1;
}

ey_status ey_check(const ey_model *m, uint64_t *scratch)
{
    uint32_t next = 0;
    *scratch = 0;
    for (uint32_t i = 0; i < m->ops; i++) {
        ey_op op;
        uint64_t need;
        ey_read_op(m, i, &op);
        if (!op_ok(m, &op, &next))
            return EY_BAD_OP;
        if (!lifetimes_ok(m, &op, i + 1))
            return EY_BAD_PLAN;
        need = op.kind == EY_CONV ? ey_conv_scratch(&op) : ey_op_scratch(&op);
        *scratch = need > *scratch ? need : *scratch;
    }
    if (next != ey_data_bytes(m))
        return EY_BAD_IMAGE;
    return plan_ok(m) ? EY_OK : EY_BAD_PLAN;
}
