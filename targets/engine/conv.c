/* Convolution as a weighted sum of shifted planes.
 *
 * The input channels of a block of output rows are widened to int16, padded, and split by stride into phase planes, so
 * that for every kernel tap the values that meet consecutive outputs stand next to each other. An output channel is then
 *
 *     acc[p] = bias + sum over taps of weight[tap] * plane[offset[tap] + p]
 *
 * with p running through all rows of the block at once (the few values between two rows are computed and ignored). The
 * same loop serves dense, grouped, depthwise, dilated and strided kernels of any size, needs no im2col matrix, and skips
 * weights that are zero. Unsigned codes are centred around zero first: sum w * x = sum w * (x - centre) + centre * sum w.
 */
#include "internal.h"

enum { UNROLL = 8 };

/* Geometry of one convolution, and where things are in the scratch memory. */
typedef struct {
    int32_t span_y, span_x;     /* last tap's row and column inside a phase plane */
    uint32_t phases_y, phases_x;
    uint32_t pitch;             /* elements in a row of a plane */
    uint32_t rows;              /* output rows in a block */
    uint32_t plane;             /* elements in a phase plane */
    uint32_t channels, taps;    /* input channels of a group, weights of an output channel */
    uint64_t acc, rounded, offsets, used, codes, weights, planes, end; /* bytes into the scratch memory */
} layout;

static layout plan(const ey_op *op)
{
    const int32_t *p = op->param;
    const int32_t reach_y = (p[P_KH] - 1) * p[P_DH], reach_x = (p[P_KW] - 1) * p[P_DW];
    uint64_t row_bytes, fit;
    layout a;
    a.channels = op->in.c / (uint32_t)p[P_GROUPS];
    a.taps = a.channels * (uint32_t)(p[P_KH] * p[P_KW]);
    a.span_y = reach_y / p[P_SH];
    a.span_x = reach_x / p[P_SW];
    a.phases_y = ey_min((uint32_t)p[P_SH], (uint32_t)reach_y + 1);
    a.phases_x = ey_min((uint32_t)p[P_SW], (uint32_t)reach_x + 1);
    a.pitch = op->out.w + (uint32_t)a.span_x;
    row_bytes = (uint64_t)2 * a.channels * a.phases_y * a.phases_x * a.pitch;
    fit = EY_PLANE_BYTES / row_bytes;
    a.rows = fit > (uint32_t)a.span_y ? (uint32_t)(fit - (uint32_t)a.span_y) : 1;
    a.rows = ey_min(a.rows, EY_BLOCK_PIXELS / a.pitch);
    a.rows = ey_min(a.rows ? a.rows : 1, op->out.h);
    a.plane = (a.rows + (uint32_t)a.span_y) * a.pitch;
    a.acc = 0;
    a.rounded = a.acc + (uint64_t)4 * a.rows * a.pitch;
    a.offsets = a.rounded + (uint64_t)4 * ((a.rows * a.pitch + 1) / 2);
    a.used = a.offsets + (uint64_t)4 * a.taps;
    a.codes = a.used + (uint64_t)4 * (a.taps + UNROLL);
    a.weights = a.codes + (uint64_t)2 * a.taps;
    a.planes = a.weights + (uint64_t)2 * (a.taps + UNROLL);
    a.end = a.planes + row_bytes * (a.rows + (uint32_t)a.span_y);
    return a;
}

uint64_t ey_conv_scratch(const ey_op *op) { return plan(op).end; }

#define FILL(type)                                                        \
    do {                                                                  \
        const type *restrict s = (const type *)codes + from;              \
        if (step == 1)                                                    \
            for (int32_t i = 0; i < n; i++)                               \
                to[i] = (int16_t)(s[i] - centre);                         \
        else if (step == 2) /* known to the compiler, so that it can vectorise */ \
            for (int32_t i = 0; i < n; i++)                               \
                to[i] = (int16_t)(s[2 * (size_t)i] - centre);             \
        else                                                              \
            for (int32_t i = 0; i < n; i++)                               \
                to[i] = (int16_t)(s[(size_t)i * step] - centre);          \
    } while (0)

/* n codes of type t, from element `from` in steps of `step`, to int16. */
static void fill(const ey_tensor *t, const void *codes, size_t from, uint32_t step, int32_t n, int16_t *restrict to)
{
    const int32_t centre = t->is_signed ? 0 : (int32_t)1 << (t->bits - 1);
    if (t->code_bytes == 1) {
        if (t->is_signed)
            FILL(int8_t);
        else
            FILL(uint8_t);
    } else if (t->is_signed) {
        FILL(int16_t);
    } else {
        FILL(uint16_t);
    }
}

/* One row of a phase plane: outputs' columns q = 0 to pitch - 1 see input column q * stride + shift; outside is code 0. */
static void fill_row(const ey_op *op, const layout *a, const uint8_t *codes, int32_t y, int32_t shift, int16_t *row)
{
    const int32_t stride = op->param[P_SW], width = (int32_t)op->in.w, pitch = (int32_t)a->pitch;
    const int16_t zero = (int16_t)(op->in.is_signed ? 0 : -((int32_t)1 << (op->in.bits - 1)));
    int32_t begin = shift < 0 ? (-shift + stride - 1) / stride : 0;
    int32_t end = width > shift ? (width - shift + stride - 1) / stride : 0;
    if (y < 0 || y >= (int32_t)op->in.h)
        end = 0;
    end = end < pitch ? end : pitch;
    begin = begin < end ? begin : end;
    for (int32_t q = 0; q < begin; q++)
        row[q] = zero;
    if (begin < end)
        fill(&op->in, codes, (size_t)(y * width + begin * stride + shift), (uint32_t)stride, end - begin, row + begin);
    for (int32_t q = end; q < pitch; q++)
        row[q] = zero;
}

/* The phase planes of one group's channels for `rows` output rows from row y0 on. */
static void fill_planes(const ey_op *op, const layout *a, const uint8_t *codes, int32_t y0, uint32_t rows, int16_t *to)
{
    const int32_t *p = op->param;
    const size_t channel_bytes = (size_t)op->in.h * op->in.w * op->in.code_bytes;
    for (uint32_t c = 0; c < a->channels; c++, codes += channel_bytes)
        for (int32_t v = 0; v < (int32_t)a->phases_y; v++)
            for (int32_t h = 0; h < (int32_t)a->phases_x; h++, to += a->plane)
                for (int32_t r = 0; r < (int32_t)rows + a->span_y; r++)
                    fill_row(op, a, codes, (y0 + r) * p[P_SH] + v - p[P_PT], h - p[P_PL],
                             to + (size_t)r * a->pitch);
}

/* Where each tap begins in the planes, in the order of the weights. */
static void find_offsets(const ey_op *op, const layout *a, uint32_t *offset)
{
    const int32_t *p = op->param;
    const uint32_t sh = (uint32_t)p[P_SH], sw = (uint32_t)p[P_SW];
    for (uint32_t c = 0; c < a->channels; c++)
        for (uint32_t i = 0; i < (uint32_t)p[P_KH]; i++)
            for (uint32_t j = 0; j < (uint32_t)p[P_KW]; j++) {
                uint32_t y = i * (uint32_t)p[P_DH], x = j * (uint32_t)p[P_DW];
                uint32_t phase = (c * a->phases_y + y % sh) * a->phases_x + x % sw;
                *offset++ = phase * a->plane + y / sh * a->pitch + x / sw;
            }
}

#define TERM(k) x##k[p] * w##k
#define TAP(k)                                                \
    const int16_t *const x##k = planes + offset[k];           \
    const int16_t w##k = weight[k]
#define ACCUMULATE(sum)                \
    for (uint32_t p = 0; p < n; p++)   \
        acc[p] += (sum)

static int32_t size(int32_t a, int32_t b) { return (a < 0 ? -a : a) + (b < 0 ? -b : b); }

/* acc[p] += the sum over 8 taps of weight * plane[offset + p]. limit: of |plane values|, a power of two.
 * Products are summed in 16 bits, which is twice as fast, as far as the weights at hand prove that they fit. */
static void add_taps(int32_t *restrict acc, uint32_t n, const int16_t *planes, const uint32_t *offset,
                     const int16_t *weight, int32_t limit)
{
    TAP(0);
    TAP(1);
    TAP(2);
    TAP(3);
    TAP(4);
    TAP(5);
    TAP(6);
    TAP(7);
    const int32_t room = INT16_MAX / limit, a = size(w0, w1), b = size(w2, w3), c = size(w4, w5), d = size(w6, w7);
    if (a + b + c + d <= room)
        ACCUMULATE((int16_t)(TERM(0) + TERM(1) + TERM(2) + TERM(3) + TERM(4) + TERM(5) + TERM(6) + TERM(7)));
    else if (a + b <= room && c + d <= room)
        ACCUMULATE((int16_t)(TERM(0) + TERM(1) + TERM(2) + TERM(3)) + (int16_t)(TERM(4) + TERM(5) + TERM(6) + TERM(7)));
    else if (a <= room && b <= room && c <= room && d <= room)
        ACCUMULATE((int16_t)(TERM(0) + TERM(1)) + (int16_t)(TERM(2) + TERM(3)) + (int16_t)(TERM(4) + TERM(5)) +
                   (int16_t)(TERM(6) + TERM(7)));
    else
        ACCUMULATE(TERM(0) + TERM(1) + TERM(2) + TERM(3) + TERM(4) + TERM(5) + TERM(6) + TERM(7));
}

static void add_tap(int32_t *restrict acc, uint32_t n, const int16_t *planes, const uint32_t *offset,
                    const int16_t *weight)
{
    TAP(0);
    ACCUMULATE(TERM(0));
}

/* One output channel of a block. Returns the bound of its accumulators' magnitude. */
static uint32_t accumulate(const ey_model *m, const ey_op *op, const layout *a, uint32_t channel, uint32_t n,
                           uint8_t *scratch)
{
    const int32_t limit = (int32_t)1 << (op->in.bits - 1), centre = op->in.is_signed ? 0 : limit;
    const uint32_t *offset = (const uint32_t *)(void *)(scratch + a->offsets);
    const int16_t *code = (const int16_t *)(void *)(scratch + a->codes);
    const int16_t *planes = (const int16_t *)(void *)(scratch + a->planes);
    int32_t *acc = (int32_t *)(void *)(scratch + a->acc);
    uint32_t *used = (uint32_t *)(void *)(scratch + a->used);
    int16_t *weight = (int16_t *)(void *)(scratch + a->weights);
    uint32_t count = 0, t = 0;
    int32_t sum = 0, sum_of_sizes = 0, bias;
    ey_unpack(ey_data(m, op->param[P_WEIGHTS]), (uint64_t)channel * a->taps, a->taps, (uint32_t)op->param[P_BITS],
              (int16_t *)(void *)(scratch + a->codes));
    for (uint32_t k = 0; k < a->taps; k++) {
        used[count] = offset[k];
        weight[count] = code[k];
        count += code[k] != 0;
        sum += code[k];
        sum_of_sizes += size(code[k], 0);
    }
    bias = ey_signed_word(ey_data(m, op->param[P_BIAS]) + (size_t)channel * 4);
    for (uint32_t p = 0; p < n; p++)
        acc[p] = bias + centre * sum;
    for (; count % UNROLL > 2; count++) { /* fill the last eight up; one or two taps are faster alone */
        used[count] = 0;
        weight[count] = 0;
    }
    for (; t + UNROLL <= count; t += UNROLL)
        add_taps(acc, n, planes, used + t, weight + t, limit);
    for (; t < count; t++)
        add_tap(acc, n, planes, used + t, weight + t);
    return (uint32_t)((bias < 0 ? -bias : bias) + sum_of_sizes * (int32_t)ey_magnitude(&op->in));
}

/* All output channels of one group for `rows` output rows from row y0 on. */
static void run_block(const ey_model *m, const ey_op *op, const layout *a, uint32_t group, uint32_t y0, uint32_t rows,
                      uint8_t *scratch)
{
    const uint32_t channels = op->out.c / (uint32_t)op->param[P_GROUPS];
    const uint32_t n = (rows - 1) * a->pitch + op->out.w;
    const int32_t *acc = (const int32_t *)(void *)(scratch + a->acc);
    ey_scale scale = {op->param[P_CONV_NUM], op->param[P_CONV_LOG2], 0, op->param[P_CONV_LO], op->param[P_CONV_HI]};
    for (uint32_t o = group * channels; o < (group + 1) * channels; o++) {
        uint32_t bound = accumulate(m, op, a, o, n, scratch), bytes = op->out.code_bytes;
        uint8_t shift = ey_data(m, op->param[P_SHIFTS])[o];
        uint8_t *to = m->arena + op->out.offset + ((size_t)o * op->out.h + y0) * op->out.w * bytes;
        scale.shift = shift < 128 ? shift : (int32_t)shift - 256;
        if (a->pitch == op->out.w) {
            ey_store(&scale, bound, acc, n, bytes, to);
            continue;
        }
        ey_store(&scale, bound, acc, n, bytes, scratch + a->rounded);
        for (uint32_t r = 0; r < rows; r++, to += op->out.w * bytes)
            ey_copy(to, scratch + a->rounded + (size_t)r * a->pitch * bytes, op->out.w * bytes);
    }
}

void ey_run_conv(const ey_model *m, const ey_op *op, uint8_t *scratch)
{
    const layout a = plan(op);
    const uint32_t groups = (uint32_t)op->param[P_GROUPS];
    const uint8_t *codes = m->arena + op->in.offset;
    find_offsets(op, &a, (uint32_t *)(void *)(scratch + a.offsets));
    for (uint32_t g = 0; g < groups; g++, codes += op->in.bytes / groups)
        for (uint32_t y = 0; y < op->out.h; y += a.rows) {
            uint32_t rows = ey_min(a.rows, op->out.h - y);
            fill_planes(op, &a, codes, (int32_t)y, rows, (int16_t *)(void *)(scratch + a.planes));
            run_block(m, op, &a, g, y, rows, scratch);
        }
}
