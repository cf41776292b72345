/* The four functions of the engine. */
#include "internal.h"

enum { EMPTY, LOADED, FED, DONE };

ey_status ey_load(ey_model *m, const void *image, size_t image_size, void *arena, size_t arena_size)
{
    ey_status status;
    uint64_t scratch, need;
    if (m == NULL || image == NULL || (uintptr_t)arena % 4 != 0)
        return EY_BAD_ARGUMENT;
    status = ey_parse(m, image, image_size);
    if (status != EY_OK)
        return status;
    status = ey_check(m, &scratch);
    if (status != EY_OK)
        return status;
    need = m->scratch + scratch;
    m->arena_bytes = need < SIZE_MAX ? (size_t)need : SIZE_MAX;
    m->arena = arena;
    if (arena == NULL || arena_size < need)
        return EY_ARENA_TOO_SMALL;
    m->state = LOADED;
    return EY_OK;
}

static int in_range(const ey_tensor *t, const uint8_t *codes)
{
    const uint32_t total = t->bytes / t->code_bytes;
    int32_t row[64];
    for (uint32_t k = 0, n; k < total; k += n) {
        int outside = 0;
        n = ey_min(64, total - k);
        ey_widen(t, codes + (size_t)k * t->code_bytes, n, row);
        for (uint32_t i = 0; i < n; i++)
            outside |= row[i] < t->lo || row[i] > t->hi;
        if (outside)
            return 0;
    }
    return 1;
}

ey_status ey_set_input(ey_model *m, const void *codes, size_t bytes)
{
    ey_tensor t;
    if (m == NULL || codes == NULL)
        return EY_BAD_ARGUMENT;
    if (m->state == EMPTY)
        return EY_NOT_READY;
    ey_read_tensor(m, m->input, &t);
    if (bytes != t.bytes || (uintptr_t)codes % t.code_bytes != 0)
        return EY_BAD_ARGUMENT;
    if (!in_range(&t, codes))
        return EY_BAD_CODE;
    ey_copy(m->arena + t.offset, codes, bytes);
    m->state = FED;
    return EY_OK;
}

ey_status ey_infer(ey_model *m, ey_hook hook, void *user)
{
    if (m == NULL)
        return EY_BAD_ARGUMENT;
    if (m->state != FED)
        return EY_NOT_READY;
    for (uint32_t i = 0; i < m->ops; i++) {
        ey_op op;
        ey_read_op(m, i, &op);
        if (op.kind == EY_CONV)
            ey_run_conv(m, &op, m->arena + m->scratch);
        else
            ey_run_op(m, &op, m->arena + m->scratch);
        if (hook != NULL)
            hook(user, i, &op.out, m->arena + op.out.offset);
    }
    m->state = DONE;
    return EY_OK;
}

ey_status ey_get_output(const ey_model *m, uint32_t index, ey_tensor *desc, const void **codes)
{
    if (m == NULL || desc == NULL || codes == NULL || m->state == EMPTY || index >= m->outputs)
        return m != NULL && m->state == EMPTY ? EY_NOT_READY : EY_BAD_ARGUMENT;
    if (m->state != DONE)
        return EY_NOT_READY;
    ey_read_tensor(m, ey_output_index(m, index), desc);
    *codes = m->arena + desc->offset;
    return EY_OK;
}
