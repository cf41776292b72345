/* All operations but convolution. */
#include "internal.h"

uint64_t ey_op_scratch(const ey_op *op)
{
    return (uint64_t)4 * (op->kind == EY_MAXPOOL ? op->in.w + op->out.w : 2 * EY_ROW);
}

static const uint8_t *input(const ey_model *m, const ey_op *op) { return m->arena + op->in.offset; }

static uint8_t *output(const ey_model *m, const ey_op *op) { return m->arena + op->out.offset; }

/* best[x] = max(best[x], row[x * stride + shift]) wherever that lies inside the row. */
static void take_larger(int32_t *restrict best, uint32_t n, const int32_t *restrict row, int32_t width, int32_t stride,
                        int32_t shift)
{
    int32_t begin = shift < 0 ? (-shift + stride - 1) / stride : 0;
    int32_t end = width > shift ? (width - shift + stride - 1) / stride : 0;
    end = end < (int32_t)n ? end : (int32_t)n;
    if (stride == 1)
        for (int32_t x = begin; x < end; x++)
            best[x] = row[x + shift] > best[x] ? row[x + shift] : best[x];
    else
        for (int32_t x = begin; x < end; x++)
            best[x] = row[x * stride + shift] > best[x] ? row[x * stride + shift] : best[x];
}

static void run_maxpool(const ey_model *m, const ey_op *op, int32_t *scratch)
{
    const int32_t *p = op->param, height = (int32_t)op->in.h, width = (int32_t)op->in.w;
    const ey_scale keep = {1, 0, 0, op->out.lo, op->out.hi};
    const uint32_t bytes = op->in.code_bytes;
    int32_t *best = scratch, *row = scratch + op->out.w;
    uint8_t *to = output(m, op);
    for (uint32_t c = 0; c < op->out.c; c++)
        for (int32_t y = 0; y < (int32_t)op->out.h; y++, to += op->out.w * bytes) {
            int32_t top = y * p[P_SH] - p[P_PT];
            for (uint32_t x = 0; x < op->out.w; x++)
                best[x] = op->in.lo;
            for (int32_t i = top < 0 ? 0 : top; i < top + p[P_KH] && i < height; i++) {
                ey_widen(&op->in, input(m, op) + ((size_t)c * op->in.h + (size_t)i) * op->in.w * bytes, op->in.w, row);
                for (int32_t j = 0; j < p[P_KW]; j++)
                    take_larger(best, op->out.w, row, width, p[P_SW], j - p[P_PL]);
            }
            ey_store(&keep, 65535, best, op->out.w, bytes, to);
        }
}

/* n codes of `bytes` bytes, `step` codes apart. */
static void gather(uint8_t *to, const uint8_t *from, uint32_t n, uint32_t step, uint32_t bytes)
{
    if (step == 1)
        ey_copy(to, from, (size_t)n * bytes);
    else
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t b = 0; b < bytes; b++)
                to[i * bytes + b] = from[(size_t)i * step * bytes + b];
}

static void run_slice(const ey_model *m, const ey_op *op)
{
    const int32_t *start = op->param + P_START, *step = op->param + P_STEP;
    const uint32_t bytes = op->in.code_bytes;
    uint8_t *to = output(m, op);
    for (uint32_t c = 0; c < op->out.c; c++)
        for (uint32_t y = 0; y < op->out.h; y++, to += op->out.w * bytes) {
            size_t channel = (size_t)start[0] + (size_t)c * (size_t)step[0];
            size_t row = channel * op->in.h + (size_t)start[1] + (size_t)y * (size_t)step[1];
            gather(to, input(m, op) + (row * op->in.w + (size_t)start[2]) * bytes, op->out.w, (uint32_t)step[2], bytes);
        }
}

static void run_upsample(const ey_model *m, const ey_op *op)
{
    const uint32_t v = (uint32_t)op->param[0], h = (uint32_t)op->param[1], bytes = op->in.code_bytes;
    const uint8_t *from = input(m, op);
    uint8_t *to = output(m, op);
    for (uint32_t y = 0; y < op->in.c * op->in.h; y++, from += op->in.w * bytes) {
        uint8_t *first = to;
        for (uint32_t x = 0; x < op->in.w; x++)
            for (uint32_t j = 0; j < h; j++, to += bytes)
                ey_copy(to, from + x * bytes, bytes);
        for (uint32_t i = 1; i < v; i++, to += op->out.w * bytes)
            ey_copy(to, first, op->out.w * bytes);
    }
}

static void run_concat(const ey_model *m, const ey_op *op, int32_t *row)
{
    uint8_t *to = output(m, op);
    ey_scale scale = {1, 0, 0, op->param[P_CONCAT_LO], op->param[P_CONCAT_HI]};
    for (uint32_t i = 0; i < op->inputs; i++) {
        ey_tensor t;
        uint32_t total, n;
        ey_read_tensor(m, op->input[i], &t);
        total = t.bytes / t.code_bytes;
        scale.shift = op->param[P_CONCAT_SHIFT + i];
        for (uint32_t k = 0; k < total; k += n, to += n * op->out.code_bytes) {
            n = ey_min(EY_ROW, total - k);
            ey_widen(&t, m->arena + t.offset + k * t.code_bytes, n, row);
            ey_store(&scale, 65535, row, n, op->out.code_bytes, to);
        }
    }
}

static void run_add(const ey_model *m, const ey_op *op, int32_t *row)
{
    const int32_t *p = op->param, one = (int32_t)1 << p[P_ALIGN], two = (int32_t)1 << p[P_ALIGN + 1];
    const ey_scale scale = {p[P_ADD_NUM], p[P_ADD_LOG2], p[P_ADD_SHIFT], p[P_ADD_LO], p[P_ADD_HI]};
    const uint32_t total = op->out.bytes / op->out.code_bytes;
    int32_t *other = row + EY_ROW;
    uint32_t bound, n;
    ey_tensor t;
    ey_read_tensor(m, op->input[1], &t);
    bound = ey_magnitude(&op->in) * (uint32_t)one + ey_magnitude(&t) * (uint32_t)two;
    for (uint32_t k = 0; k < total; k += n) {
        n = ey_min(EY_ROW, total - k);
        ey_widen(&op->in, input(m, op) + k * op->in.code_bytes, n, row);
        ey_widen(&t, m->arena + t.offset + k * t.code_bytes, n, other);
        for (uint32_t i = 0; i < n; i++)
            row[i] = row[i] * one + other[i] * two;
        ey_store(&scale, bound, row, n, op->out.code_bytes, output(m, op) + k * op->out.code_bytes);
    }
}

static void run_lookup(const ey_model *m, const ey_op *op, int32_t *row)
{
    const uint8_t *table = ey_data(m, op->param[0]);
    const uint32_t bytes = op->out.code_bytes, total = op->in.bytes;
    uint8_t *narrow = output(m, op);
    uint16_t *wide = (uint16_t *)(void *)narrow;
    for (uint32_t k = 0, n; k < total; k += n) {
        n = ey_min(EY_ROW, total - k);
        ey_widen(&op->in, input(m, op) + k, n, row);
        for (uint32_t i = 0; i < n; i++) {
            const uint8_t *entry = table + 2 * (row[i] - op->in.lo);
            if (bytes == 1)
                narrow[k + i] = entry[0];
            else
                wide[k + i] = (uint16_t)(entry[0] | entry[1] << 8);
        }
    }
}

void ey_run_op(const ey_model *m, const ey_op *op, uint8_t *scratch)
{
    int32_t *rows = (int32_t *)(void *)scratch;
    switch (op->kind) {
    case EY_MAXPOOL: run_maxpool(m, op, rows); break;
    case EY_UPSAMPLE: run_upsample(m, op); break;
    case EY_CONCAT: run_concat(m, op, rows); break;
    case EY_ADD: run_add(m, op, rows); break;
    case EY_SLICE: run_slice(m, op); break;
    case EY_RESHAPE: ey_copy(output(m, op), input(m, op), op->in.bytes); break;
    default: run_lookup(m, op, rows); break;
    }
}
