/* Integer engine: runs the program image of a quantised detector, bit for bit as docs/program-image.md defines it.
 *
 * C99, freestanding: no allocation, no input or output, no floating point, no recursion, no mutable globals. The caller
 * owns all memory. Everything in an image is checked by ey_load before use, so an image may come from anywhere.
 *
 *     ey_model m;
 *     if (ey_load(&m, image, image_size, NULL, 0) == EY_ARENA_TOO_SMALL) arena = <m.arena_bytes bytes>;
 *     ey_load(&m, image, image_size, arena, m.arena_bytes);
 *     ey_set_input(&m, codes, bytes);  ey_infer(&m, NULL, NULL);  ey_get_output(&m, 0, &desc, &result);
 */
#ifndef EDGEYOLO_ENGINE_H
#define EDGEYOLO_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    EY_OK = 0,
    EY_BAD_ARGUMENT,    /* a null or misaligned pointer, a wrong number of bytes, an output that does not exist */
    EY_BAD_IMAGE,       /* not a program image, or not all of one */
    EY_BAD_VERSION,     /* a program image of another version */
    EY_BAD_CRC,         /* damaged */
    EY_BAD_TENSOR,      /* a tensor record out of range */
    EY_BAD_OP,          /* an operation out of range, inconsistent with its tensors, or able to overflow */
    EY_BAD_PLAN,        /* tensors that are alive together overlap, or their lifetimes are wrong */
    EY_ARENA_TOO_SMALL, /* ey_model.arena_bytes says what is needed */
    EY_BAD_CODE,        /* an input code outside the range of the input tensor */
    EY_NOT_READY        /* no image loaded, or no input set since the last inference */
} ey_status;

/* One activation: codes in row-major (c, h, w) order, value = code * 2^-frac.
 * code_bytes is 1 for bits <= 8, else 2; a two-byte code is a host-order int16_t or uint16_t. */
typedef struct {
    uint32_t c, h, w;   /* 1 to 32767 each */
    uint32_t bits;      /* 2 to 16; codes are in [lo, hi] */
    uint32_t is_signed; /* 0 or 1 */
    uint32_t code_bytes;
    int32_t frac, lo, hi;
    uint32_t offset;      /* of the first code in the arena, a multiple of code_bytes */
    uint32_t bytes;       /* c * h * w * code_bytes */
    uint32_t first, last; /* alive from operation to operation, counted from 1; the input is alive from 0 */
} ey_tensor;

/* A loaded image. Read arena_bytes, tensors, ops and outputs; leave the rest alone. */
typedef struct {
    const uint8_t *image;
    uint8_t *arena;
    size_t arena_bytes; /* what the arena must hold: tensors and scratch memory */
    uint32_t tensors, ops, outputs;
    uint32_t input;   /* index of the input tensor */
    uint32_t scratch; /* where scratch memory begins in the arena */
    uint32_t state;
} ey_model;

/* Called after every operation.
 * user: as given to ey_infer. op: 0 to ops - 1. desc: the tensor it wrote. codes: its desc->bytes bytes, valid until
 * the hook returns. The hook must not write to them. */
typedef void (*ey_hook)(void *user, uint32_t op, const ey_tensor *desc, const void *codes);

/* Check an image and bind it to an arena.
 * m: written in every case. On EY_ARENA_TOO_SMALL only m->arena_bytes and the counts mean anything.
 * image: image_size bytes, any alignment; must stay unchanged and in place as long as m is used.
 * arena: arena_size bytes, aligned to 4; may be NULL to ask for the size. Its contents need no initialisation.
 * Returns EY_OK, EY_BAD_ARGUMENT, EY_BAD_IMAGE, _VERSION, _CRC, _TENSOR, _OP, _PLAN or EY_ARENA_TOO_SMALL. */
ey_status ey_load(ey_model *m, const void *image, size_t image_size, void *arena, size_t arena_size);

/* Copy one picture into the arena.
 * codes: the input tensor's codes in (c, h, w) order, each in [lo, hi] of its type, aligned to the code.
 * bytes: exactly the tensor's bytes.
 * Returns EY_OK, EY_NOT_READY, EY_BAD_ARGUMENT or EY_BAD_CODE. */
ey_status ey_set_input(ey_model *m, const void *codes, size_t bytes);

/* Run all operations. Consumes the input: its memory is used again, so set an input before every call.
 * hook: may be NULL. user: handed to the hook.
 * Returns EY_OK, EY_NOT_READY or EY_BAD_ARGUMENT. */
ey_status ey_infer(ey_model *m, ey_hook hook, void *user);

/* Where an output is, after ey_infer.
 * index: 0 to outputs - 1. desc, codes: written; *codes points at desc->bytes bytes of the arena, valid until the next
 * ey_set_input or ey_infer.
 * Returns EY_OK, EY_NOT_READY or EY_BAD_ARGUMENT. */
ey_status ey_get_output(const ey_model *m, uint32_t index, ey_tensor *desc, const void **codes);

#ifdef __cplusplus
}
#endif
#endif
