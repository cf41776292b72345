/* Non-maximum suppression: which boxes stay, by the very rules and the very arithmetic of edgeyolo/nms.py.
 *
 * C99, freestanding like the engine but for its double precision; nothing else in this folder needs it. No allocation, no
 * library calls. Two machines agree to the last bit if their doubles are IEEE 754 and the compiler keeps products and
 * sums apart: -std=c99 with GCC, -ffp-contract=off with Clang, no -ffast-math, no x87 registers.
 */
#ifndef EDGEYOLO_NMS_H
#define EDGEYOLO_NMS_H

#include "engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    EY_NMS_DEFAULT = 0, /* overlap = IoU */
    EY_NMS_GREEDY,      /* Darknet's greedynms: overlap = IoU - (d / c)^0.6, d and c as below */
    EY_NMS_DIOU         /* diounms: overlap = IoU - (d / c)^beta; nothing falls where beta is not above 0 */
} ey_nms_kind;

/* d: squared distance of the centres; c: squared diagonal of the enclosing box. Give these two kinds coordinates
 * relative to the picture if they shall do as Darknet does. */
typedef struct {
    double iou;       /* 0 to 1; a box falls if it overlaps a better one that stayed by more */
    double beta;      /* finite; read by EY_NMS_DIOU only */
    ey_nms_kind kind;
    int32_t agnostic; /* not 0: boxes of other classes count too */
    uint32_t max_det; /* boxes that may stay, over all classes; at least 1 */
} ey_nms_options;

/* Scratch memory: a box that stayed. Nothing for the caller to read. */
typedef struct {
    double x1, y1, x2, y2, area;
    int64_t group;
    uint32_t next;
} ey_nms_box;

/* Greedy suppression, class by class or over all classes.
 * boxes: (n, 4) x1 y1 x2 y2. An empty, inverted, infinite or NaN box overlaps nothing, so it stays.
 * scores: (n). The best rank first; equal scores by class, then by index; NaN ranks as minus infinity.
 * classes: (n), any integers.
 * heap: n words of scratch. stayed: min(n, max_det) entries of scratch.
 * keep: min(n, max_det) words; *count of them are written, the indices of the boxes that stay, best first.
 * All pointers but options and count may be NULL if n is 0. Returns EY_OK or EY_BAD_ARGUMENT. */
ey_status ey_nms(
    const double *boxes, const double *scores, const int64_t *classes, uint32_t n, const ey_nms_options *options,
    uint32_t *heap, ey_nms_box *stayed, uint32_t *keep, uint32_t *count);

#ifdef __cplusplus
}
#endif
#endif
