/* Non-maximum suppression. A heap yields the boxes best first, so that nothing is sorted beyond the last box that stays;
 * each is compared with the boxes of its class that stayed, which hang in one of a few chains. */
#include "nms.h"

#include <float.h>

typedef char ey_double_has_53_bits[DBL_MANT_DIG == 53 ? 1 : -1];

enum { CHAINS = 64, LOG_TERMS = 10, EXP_TERMS = 13 };
static const uint32_t NOBODY = UINT32_MAX;
static const double GREEDY_BETA = 0.6, ROOT_HALF = 0.7071067811865476, LOG_2 = 0.6931471805599453, LOWEST = -1000;

typedef struct {
    const double *scores;
    const int64_t *classes;
} ranking;

static double lower(double a, double b) { return a < b ? a : b; }

static double higher(double a, double b) { return a > b ? a : b; }

/* Whether box a ranks before box b. */
static int before(const ranking *r, uint32_t a, uint32_t b)
{
    double p = r->scores[a], q = r->scores[b];
    p = p >= -DBL_MAX ? p : -DBL_MAX; /* NaN and minus infinity */
    q = q >= -DBL_MAX ? q : -DBL_MAX;
    if (p > q || p < q)
        return p > q;
    if (r->classes[a] != r->classes[b])
        return r->classes[a] < r->classes[b];
    return a < b;
}

/* Put `item` at position `at` or below it, so that no entry ranks before its parent. */
static void sift(const ranking *r, uint32_t *heap, uint32_t n, uint32_t at, uint32_t item)
{
    while (at < n / 2) { /* at has a child */
        uint32_t child = 2 * at + 1;
        if (child + 1 < n && before(r, heap[child + 1], heap[child]))
            child++;
        if (!before(r, heap[child], item))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = item;
}

/* x^y for 0 < x <= 1 and y > 0, at least 2^-1000: 2^(y log2 x), both by their series. A math library's own last bit would
 * differ from machine to machine, and a box with it. Products stand in statements of their own: nothing to contract. */
static double power(double x, double y)
{
    double whole = 0, s, z, sum = 0, p, t, result = 1;
    int32_t n;
    for (; x < ROOT_HALF; x *= 2)
        whole -= 1;
    s = (x - 1) / (x + 1);
    z = s * s;
    for (int32_t k = LOG_TERMS; k >= 0; k--) { /* log x = 2 (s + s^3 / 3 + s^5 / 5 + ...) */
        sum *= z;
        sum += 1.0 / (2 * k + 1);
    }
    sum *= s;
    sum *= 2 / LOG_2;
    p = higher(y * (whole + sum), LOWEST);
    n = (int32_t)(p - 0.5); /* the nearest integer: p is not positive */
    t = (p - n) * LOG_2;
    for (int32_t k = EXP_TERMS; k > 0; k--) { /* exp t = 1 + t / 1 (1 + t / 2 (1 + ...)) */
        result *= t / k;
        result += 1;
    }
    for (; n < 0; n++)
        result *= 0.5;
    return result;
}

/* What (d / c)^exponent takes off the overlap. d / c is below 1 where boxes overlap, but for rounding and infinity. */
static double penalty(const ey_nms_box *a, const ey_nms_box *b, double exponent)
{
    double x = a->x1 + a->x2 - b->x1 - b->x2, y = a->y1 + a->y2 - b->y1 - b->y2;
    double w = higher(a->x2, b->x2) - lower(a->x1, b->x1), h = higher(a->y2, b->y2) - lower(a->y1, b->y1);
    double ratio;
    x *= x;
    y *= y;
    w *= w;
    h *= h;
    ratio = lower((x + y) / 4 / (w + h), 1); /* NaN becomes 1 */
    return ratio > 0 ? power(ratio, exponent) : 0;
}

/* Whether box b falls to box a. Comparisons with NaN are false, so that a NaN anywhere lets it stay. */
static int falls(const ey_nms_box *a, const ey_nms_box *b, double iou, double exponent)
{
    double w = lower(a->x2, b->x2) - higher(a->x1, b->x1), h = lower(a->y2, b->y2) - higher(a->y1, b->y1);
    double common, joint, overlap;
    if (!(w > 0 && h > 0))
        return 0;
    common = w * h;
    joint = a->area + b->area - common;
    overlap = common / joint;
    return overlap > iou && (exponent == 0 || overlap - penalty(a, b, exponent) > iou);
}

static void read_box(const double *p, int64_t group, ey_nms_box *box)
{
    box->x1 = p[0];
    box->y1 = p[1];
    box->x2 = p[2];
    box->y2 = p[3];
    box->area = (p[2] - p[0]) * (p[3] - p[1]);
    box->group = group;
}

static int is_bad(const ey_nms_options *o)
{
    return !(o->iou >= 0 && o->iou <= 1) || o->max_det < 1 || !(o->beta >= -DBL_MAX && o->beta <= DBL_MAX) ||
           (o->kind != EY_NMS_DEFAULT && o->kind != EY_NMS_GREEDY && o->kind != EY_NMS_DIOU);
}

ey_status ey_nms(
    const double *boxes, const double *scores, const int64_t *classes, uint32_t n, const ey_nms_options *options,
    uint32_t *heap, ey_nms_box *stayed, uint32_t *keep, uint32_t *count)
{
    uint32_t chain[CHAINS], kept = 0;
    double iou, exponent;
    ranking r;
    if (!options || !count || is_bad(options) || (n && !(boxes && scores && classes && heap && stayed && keep)))
        return EY_BAD_ARGUMENT;
    iou = options->iou;
    exponent = options->kind == EY_NMS_DEFAULT ? 0 : options->kind == EY_NMS_GREEDY ? GREEDY_BETA : options->beta;
    if (exponent < 0 || (exponent == 0 && options->kind == EY_NMS_DIOU)) { /* a penalty of 1 or more */
        iou = 1;
        exponent = 0;
    }
    r.scores = scores;
    r.classes = classes;
    for (uint32_t i = 0; i < CHAINS; i++)
        chain[i] = NOBODY;
    for (uint32_t i = 0; i < n; i++)
        heap[i] = i;
    for (uint32_t i = n / 2; i > 0; i--)
        sift(&r, heap, n, i - 1, heap[i - 1]);
    while (n && kept < options->max_det) {
        ey_nms_box *box = &stayed[kept];
        uint32_t best = heap[0], *first, other;
        sift(&r, heap, n - 1, 0, heap[n - 1]);
        n--;
        read_box(&boxes[4 * (size_t)best], options->agnostic ? 0 : classes[best], box);
        first = &chain[(uint64_t)box->group % CHAINS];
        other = *first;
        while (other != NOBODY && !(stayed[other].group == box->group && falls(&stayed[other], box, iou, exponent)))
            other = stayed[other].next;
        if (other != NOBODY)
            continue;
        box->next = *first;
        *first = kept;
        keep[kept++] = best;
    }
    *count = kept;
    return EY_OK;
}
