/* See host.h. */
#define _POSIX_C_SOURCE 200112L
#include "host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "internal.h"

enum { MAX_FILE = 1 << 30 };

static const char *const REASONS[] = {
    [EY_BAD_IMAGE] = "not a program image, or not all of one",
    [EY_BAD_VERSION] = "a program image of another version",
    [EY_BAD_CRC] = "damaged: its CRC is another",
    [EY_BAD_TENSOR] = "a tensor is out of range",
    [EY_BAD_OP] = "an operation is out of range",
    [EY_BAD_PLAN] = "its memory plan is wrong",
    [EY_ARENA_TOO_SMALL] = "not enough memory for its arena",
};

int fail(const char *what, const char *which)
{
    fprintf(stderr, "error: %s: %s\n", what, which);
    return FAILED;
}

int read_file(const char *path, blob *b)
{
    FILE *f = fopen(path, "rb");
    long size = -1;
    b->bytes = NULL;
    if (f != NULL && fseek(f, 0, SEEK_END) == 0)
        size = ftell(f);
    if (size >= 0 && size <= MAX_FILE && fseek(f, 0, SEEK_SET) == 0)
        b->bytes = malloc((size_t)size + 1);
    b->size = (size_t)size;
    if (b->bytes != NULL && fread(b->bytes, 1, b->size, f) != b->size) {
        free(b->bytes);
        b->bytes = NULL;
    }
    if (f != NULL)
        fclose(f);
    return b->bytes != NULL ? 0 : fail("cannot read", path);
}

void swap_codes(const ey_tensor *t, unsigned char *codes)
{
    const uint16_t probe = 1;
    unsigned char first;
    memcpy(&first, &probe, 1);
    if (first == 1 || t->code_bytes == 1)
        return;
    for (uint32_t i = 0; i < t->bytes; i += 2) {
        unsigned char low = codes[i];
        codes[i] = codes[i + 1];
        codes[i + 1] = low;
    }
}

static int32_t code_at(const ey_tensor *t, const unsigned char *codes, uint32_t i)
{
    int32_t code;
    ey_widen(t, codes + (size_t)i * t->code_bytes, 1, &code);
    return code;
}

void close_program(program *p)
{
    free(p->image.bytes);
    free(p->arena);
}

int open_program(const char *path, program *p)
{
    ey_status status;
    p->arena = NULL;
    if (read_file(path, &p->image))
        return FAILED;
    status = ey_load(&p->model, p->image.bytes, p->image.size, NULL, 0);
    if (status == EY_ARENA_TOO_SMALL && (p->arena = malloc(p->model.arena_bytes)) != NULL)
        status = ey_load(&p->model, p->image.bytes, p->image.size, p->arena, p->model.arena_bytes);
    if (status == EY_OK)
        return 0;
    fprintf(stderr, "error: %s: refused with status %d: %s\n", path, (int)status, REASONS[status]);
    close_program(p);
    return FAILED;
}

int feed(program *p, const blob *codes, const char *path)
{
    if (ey_set_input(&p->model, codes->bytes, codes->size) == EY_OK)
        return 0;
    return fail("not the codes of the program's input", path);
}

int read_input(const program *p, const char *path, blob *b)
{
    ey_tensor t;
    if (read_file(path, b))
        return FAILED;
    ey_read_tensor(&p->model, p->model.input, &t);
    if (b->size == t.bytes)
        swap_codes(&t, b->bytes);
    return 0;
}

int run_file(program *p, const char *path, ey_hook hook, void *user)
{
    blob b;
    int status;
    if (read_input(p, path, &b))
        return FAILED;
    status = feed(p, &b, path);
    if (status == 0)
        ey_infer(&p->model, hook, user);
    free(b.bytes);
    return status;
}

void compare_layer(void *user, uint32_t op, const ey_tensor *t, const void *codes)
{
    golden *g = user;
    char path[PATH];
    blob want;
    if (g->status)
        return;
    snprintf(path, sizeof path, "%s/%03u.bin", g->folder, (unsigned)op);
    if (read_file(path, &want)) {
        g->status = FAILED;
        return;
    }
    if (want.size == t->bytes)
        swap_codes(t, want.bytes);
    else
        g->status = fail("wrong size", path);
    for (uint32_t i = 0; g->status == 0 && i < t->bytes / t->code_bytes; i++, g->elements++) {
        int32_t got = code_at(t, codes, i), expected = code_at(t, want.bytes, i);
        if (got == expected)
            continue;
        printf("%s differs: operation %u, element (%u, %u, %u), got %d, expected %d\n", path, (unsigned)op,
               (unsigned)(i / t->w / t->h), (unsigned)(i / t->w % t->h), (unsigned)(i % t->w), (int)got, (int)expected);
        g->status = DIFFERENT;
    }
    free(want.bytes);
}

int64_t nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

void sort_times(int64_t *values, size_t n)
{
    qsort(values, n, sizeof *values, by_size);
}
