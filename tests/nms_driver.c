/* Runs ey_nms on cases from standard input, each in memory of exactly its size so that sanitizers see every step outside.
 *
 * A case: double iou, beta; int32 kind, agnostic; uint32 max_det, n; double boxes[4 n], scores[n]; int64 classes[n]; all
 * in the machine's own order. A line per case: the status, then the indices that stay. */
#include <stdio.h>
#include <stdlib.h>

#include "nms.h"

static void *bytes(size_t size)
{
    void *memory = size ? malloc(size) : NULL;
    if (size && !memory)
        exit(2);
    return memory;
}

static void *input(size_t size)
{
    void *memory = bytes(size);
    if (size && fread(memory, size, 1, stdin) != 1)
        exit(2);
    return memory;
}

int main(void)
{
    double real[2];
    int32_t flags[2];
    uint32_t counts[2];
    printf("%zu\n", sizeof(ey_nms_box));
    while (fread(real, sizeof real, 1, stdin) == 1) {
        ey_nms_options options;
        double *boxes, *scores;
        int64_t *classes;
        uint32_t *heap, *keep, n, most, kept = 0;
        ey_nms_box *stayed;
        ey_status status;
        if (fread(flags, sizeof flags, 1, stdin) != 1 || fread(counts, sizeof counts, 1, stdin) != 1)
            return 2;
        options.iou = real[0];
        options.beta = real[1];
        options.kind = (ey_nms_kind)flags[0];
        options.agnostic = flags[1];
        options.max_det = counts[0];
        n = counts[1];
        most = n < counts[0] ? n : counts[0];
        boxes = input(n * 4 * sizeof *boxes);
        scores = input(n * sizeof *scores);
        classes = input(n * sizeof *classes);
        heap = bytes(n * sizeof *heap);
        stayed = bytes(most * sizeof *stayed);
        keep = bytes(most * sizeof *keep);
        status = ey_nms(boxes, scores, classes, n, &options, heap, stayed, keep, &kept);
        printf("%d", (int)status);
        for (uint32_t i = 0; i < kept; i++)
            printf(" %lu", (unsigned long)keep[i]);
        printf("\n");
        free(boxes);
        free(scores);
        free(classes);
        free(heap);
        free(stayed);
        free(keep);
    }
    return 0;
}
