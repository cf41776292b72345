/* The program image: reading its records byte by byte, and the checks of its envelope and of its tensors. */
#include "internal.h"

enum { HEADER = 48, CRC_END = 16, TENSOR_RECORD = 36, OP_RECORD = 128, VERSION = 1 };
enum { AT_VERSION = 4, AT_SIZE = 8, AT_CRC = 12, AT_TENSORS = 16, AT_OPS = 20, AT_OUTPUTS = 24, AT_INPUT = 28 };
enum { AT_ARENA = 32, AT_DATA = 36, AT_STRINGS = 40, AT_RESERVED = 44 };
enum { MAX_TENSORS = 4096, MAX_OUTPUTS = 64, MAX_EXTENT = 32767, MAX_FRAC = 255, MAX_ARENA = 1 << 30 };

uint32_t ey_word(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Two's complement without relying on how the compiler converts. */
int32_t ey_signed_word(const uint8_t *p)
{
    uint32_t u = ey_word(p);
    return u <= INT32_MAX ? (int32_t)u : -(int32_t)(UINT32_MAX - u) - 1;
}

static const uint8_t *tensor_record(const ey_model *m, uint32_t index)
{
    return m->image + HEADER + (size_t)index * TENSOR_RECORD;
}

static const uint8_t *op_record(const ey_model *m, uint32_t index)
{
    return tensor_record(m, m->tensors) + (size_t)index * OP_RECORD;
}

uint32_t ey_output_index(const ey_model *m, uint32_t index)
{
    return ey_word(op_record(m, m->ops) + (size_t)index * 4);
}

const uint8_t *ey_data(const ey_model *m, int32_t offset)
{
    return op_record(m, m->ops) + (size_t)m->outputs * 4 + (size_t)offset;
}

void ey_read_tensor(const ey_model *m, uint32_t index, ey_tensor *t)
{
    const uint8_t *p = tensor_record(m, index);
    t->c = ey_word(p);
    t->h = ey_word(p + 4);
    t->w = ey_word(p + 8);
    t->bits = ey_word(p + 12);
    t->is_signed = ey_word(p + 16);
    t->frac = ey_signed_word(p + 20);
    t->offset = ey_word(p + 24);
    t->first = ey_word(p + 28);
    t->last = ey_word(p + 32);
    t->code_bytes = t->bits <= 8 ? 1 : 2;
    t->bytes = t->c * t->h * t->w * t->code_bytes;
    t->lo = t->is_signed ? -((int32_t)1 << ((t->bits - 1) & 15)) : 0;
    t->hi = (int32_t)(((uint32_t)1 << ((t->is_signed ? t->bits - 1 : t->bits) & 31)) - 1);
}

void ey_read_op(const ey_model *m, uint32_t index, ey_op *op)
{
    const uint8_t *p = op_record(m, index);
    op->kind = ey_word(p);
    op->output = ey_word(p + 4);
    op->inputs = ey_word(p + 8);
    for (uint32_t i = 0; i < EY_MAX_INPUTS; i++)
        op->input[i] = ey_word(p + 12 + 4 * i);
    for (uint32_t i = 0; i < EY_PARAMS; i++)
        op->param[i] = ey_signed_word(p + 44 + 4 * i);
    if (op->input[0] < m->tensors && op->output < m->tensors) {
        ey_read_tensor(m, op->input[0], &op->in);
        ey_read_tensor(m, op->output, &op->out);
    }
}

/* Four bits at a time. */
uint32_t ey_crc32(const uint8_t *p, size_t n)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
        0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C, 0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

static ey_status check_tensor(const ey_model *m, uint32_t index, uint32_t arena)
{
    const uint8_t *p = tensor_record(m, index);
    ey_tensor t;
    uint64_t bytes;
    ey_read_tensor(m, index, &t);
    if (t.c - 1 >= MAX_EXTENT || t.h - 1 >= MAX_EXTENT || t.w - 1 >= MAX_EXTENT)
        return EY_BAD_TENSOR;
    if (t.bits < 2 || t.bits > 16 || ey_word(p + 16) > 1 || t.frac < -MAX_FRAC || t.frac > MAX_FRAC)
        return EY_BAD_TENSOR;
    bytes = (uint64_t)t.c * t.h * t.w * t.code_bytes;
    if (t.offset % t.code_bytes != 0 || t.offset > arena || bytes > arena - t.offset)
        return EY_BAD_TENSOR;
    return t.first <= t.last && t.last <= m->ops + 1 ? EY_OK : EY_BAD_TENSOR;
}

ey_status ey_parse(ey_model *m, const uint8_t *image, size_t size)
{
    uint64_t total;
    uint32_t arena;
    m->state = 0;
    m->arena_bytes = 0;
    m->tensors = m->ops = m->outputs = 0;
    m->image = image;
    if (size < HEADER || image[0] != 'E' || image[1] != 'Y' || image[2] != 'P' || image[3] != '1')
        return EY_BAD_IMAGE;
    if (ey_word(image + AT_VERSION) != VERSION)
        return EY_BAD_VERSION;
    if (ey_word(image + AT_SIZE) != size)
        return EY_BAD_IMAGE;
    if (ey_word(image + AT_CRC) != ey_crc32(image + CRC_END, size - CRC_END))
        return EY_BAD_CRC;
    m->tensors = ey_word(image + AT_TENSORS);
    m->ops = ey_word(image + AT_OPS);
    m->outputs = ey_word(image + AT_OUTPUTS);
    m->input = ey_word(image + AT_INPUT);
    arena = ey_word(image + AT_ARENA);
    if (m->tensors < 2 || m->tensors > MAX_TENSORS || m->ops != m->tensors - 1 || m->input >= m->tensors)
        return EY_BAD_IMAGE;
    if (m->outputs - 1 >= MAX_OUTPUTS || arena > MAX_ARENA || ey_word(image + AT_RESERVED) != 0)
        return EY_BAD_IMAGE;
    total = HEADER + (uint64_t)m->tensors * TENSOR_RECORD + (uint64_t)m->ops * OP_RECORD + (uint64_t)m->outputs * 4;
    total += (uint64_t)ey_word(image + AT_DATA) + ey_word(image + AT_STRINGS);
    if (total != size || ey_word(image + AT_DATA) % 4 != 0)
        return EY_BAD_IMAGE;
    m->scratch = (arena + 15) / 16 * 16;
    for (uint32_t i = 0; i < m->tensors; i++)
        if (check_tensor(m, i, arena) != EY_OK)
            return EY_BAD_TENSOR;
    return EY_OK;
}

uint32_t ey_data_bytes(const ey_model *m)
{
    return ey_word(m->image + AT_DATA);
}
