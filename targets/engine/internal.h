/* What the engine's own files share: records as parsed, and the rows of int32 every operation computes in. */
#ifndef EDGEYOLO_ENGINE_INTERNAL_H
#define EDGEYOLO_ENGINE_INTERNAL_H

#include "engine.h"

/* Targets with little memory may define smaller ones; results do not depend on them. */
#ifndef EY_PLANE_BYTES
#define EY_PLANE_BYTES 131072 /* padded input planes of one convolution block; one row of outputs always fits */
#endif
#ifndef EY_BLOCK_PIXELS
#define EY_BLOCK_PIXELS 2048 /* accumulators of one convolution block; one row of outputs always fits */
#endif

enum { EY_MAX_INPUTS = 8, EY_PARAMS = 21 };
enum { EY_ROW = 512 }; /* elements that element-wise operations take at a time */

enum ey_kind { EY_CONV = 1, EY_MAXPOOL, EY_UPSAMPLE, EY_CONCAT, EY_ADD, EY_SLICE, EY_RESHAPE, EY_LOOKUP };

/* Meaning of ey_op.param by kind. Offsets are bytes into the data section. */
enum { P_KH, P_KW, P_SH, P_SW, P_PT, P_PL, P_PB, P_PR }; /* convolution and maximum pooling */
enum {
    P_DH = 8, P_DW, P_GROUPS, P_BITS, P_PER_CHANNEL, P_CONV_NUM, P_CONV_LOG2, P_CONV_LO, P_CONV_HI,
    P_WEIGHTS, P_BIAS, P_SHIFTS, P_CONV_COUNT
};
enum { P_CONCAT_LO, P_CONCAT_HI, P_CONCAT_SHIFT, P_CONCAT_COUNT = P_CONCAT_SHIFT + EY_MAX_INPUTS };
enum { P_ALIGN, P_ADD_SHIFT = 2, P_ADD_NUM, P_ADD_LOG2, P_ADD_LO, P_ADD_HI, P_ADD_COUNT };
enum { P_START, P_STEP = 3, P_SLICE_COUNT = 6 };

typedef struct {
    uint32_t kind, output, inputs, input[EY_MAX_INPUTS];
    int32_t param[EY_PARAMS];
    ey_tensor in, out; /* of input[0] and output */
} ey_op;

/* How accumulators become codes: v = acc >= 0 ? acc * 2^log2 : acc * num, then round(v * 2^-(shift + log2)), clamp. */
typedef struct {
    int32_t num, log2, shift, lo, hi;
} ey_scale;

/* image.c: records. ey_read_op also reads the tensors of input 0 and output. */
uint32_t ey_word(const uint8_t *p);
int32_t ey_signed_word(const uint8_t *p);
void ey_read_tensor(const ey_model *m, uint32_t index, ey_tensor *t);
void ey_read_op(const ey_model *m, uint32_t index, ey_op *op);
const uint8_t *ey_data(const ey_model *m, int32_t offset);
uint32_t ey_data_bytes(const ey_model *m);
uint32_t ey_output_index(const ey_model *m, uint32_t index);
uint32_t ey_crc32(const uint8_t *p, size_t n); /* reflected polynomial 0xEDB88320, as zlib's */
ey_status ey_parse(ey_model *m, const uint8_t *image, size_t size); /* checks header, CRC and tensors */

/* check.c: everything that running relies on. *scratch: bytes that the hungriest operation needs. */
ey_status ey_check(const ey_model *m, uint64_t *scratch);

/* rows.c: element types in, int32 in between, element types out. ey_unpack: `count` signed codes of `bits` bits,
 * beginning `first` codes into the packed bit stream. */
void ey_unpack(const uint8_t *stream, uint64_t first, uint32_t count, uint32_t bits, int16_t *codes);
void ey_widen(const ey_tensor *t, const void *codes, uint32_t n, int32_t *row);
void ey_store(const ey_scale *s, uint32_t bound, const int32_t *acc, uint32_t n, uint32_t code_bytes, void *codes);
void ey_copy(void *to, const void *from, size_t bytes);


/* conv.c and ops.c: scratch needs, and execution with `scratch` aligned to 4. */
uint64_t ey_conv_scratch(const ey_op *op);
uint64_t ey_op_scratch(const ey_op *op);
void ey_run_conv(const ey_model *m, const ey_op *op, uint8_t *scratch);
void ey_run_op(const ey_model *m, const ey_op *op, uint8_t *scratch);

/* The largest |code| of a type. */
static inline uint32_t ey_magnitude(const ey_tensor *t) { return (uint32_t)(t->is_signed ? -t->lo : t->hi); }

static inline uint32_t ey_min(uint32_t a, uint32_t b) { return a < b ? a : b; }

#endif
