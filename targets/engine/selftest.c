/* Does this machine compute exactly the bundle's model? Also runs and times a program image. Not part of the engine.
 *
 *     selftest test BUNDLE                      compare every layer with BUNDLE/golden
 *     selftest run PROGRAM INPUT FOLDER [--outputs]
 *                                               write what operation i wrote, of all or of the outputs, to FOLDER/iii.bin
 *     selftest time PROGRAM INPUT N [--per-op]  print arena_bytes, then nanoseconds per inference of N inferences
 *
 * Exit status: 0 done and the same, 1 different, 2 a file is unreadable or refused.
 * Code files hold a tensor's codes in (c, h, w) order, two-byte codes little endian.
 */
#define _POSIX_C_SOURCE 200112L
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "internal.h"

enum { DIFFERENT = 1, FAILED = 2, PATH = 4096 };

typedef struct {
    unsigned char *bytes;
    size_t size;
} blob;

typedef struct {
    ey_model model;
    blob image;
    void *arena;
} program;

static int fail(const char *what, const char *path)
{
    fprintf(stderr, "selftest: %s: %s\n", what, path);
    return FAILED;
}

static int read_file(const char *path, blob *b)
{
    FILE *f = fopen(path, "rb");
    long size = -1;
    b->bytes = NULL;
    if (f != NULL && fseek(f, 0, SEEK_END) == 0)
        size = ftell(f);
    if (size >= 0 && size < LONG_MAX && fseek(f, 0, SEEK_SET) == 0)
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

/* Two-byte codes from little endian to host order, or back. */
static void swap_codes(const ey_tensor *t, unsigned char *codes)
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

static void close_program(program *p)
{
    free(p->image.bytes);
    free(p->arena);
}

static int open_program(const char *path, program *p)
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
    fprintf(stderr, "selftest: %s: refused with status %d\n", path, (int)status);
    close_program(p);
    return FAILED;
}

/* Reads an input's codes in host order. */
static int read_input(const program *p, const char *path, blob *b)
{
    ey_tensor t;
    if (read_file(path, b))
        return FAILED;
    ey_read_tensor(&p->model, p->model.input, &t);
    if (b->size == t.bytes)
        swap_codes(&t, b->bytes);
    return 0;
}

static int feed(program *p, const blob *b, const char *path)
{
    if (ey_set_input(&p->model, b->bytes, b->size) == EY_OK)
        return 0;
    return fail("not the codes of the program's input", path);
}

/* Run with a hook on one input file. */
static int run_file(program *p, const char *path, ey_hook hook, void *user)
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

typedef struct {
    const char *folder;
    uint64_t elements;
    int status;
    uint32_t alive; /* look at tensors that live as long */
} visit;

static void compare_layer(void *user, uint32_t op, const ey_tensor *t, const void *codes)
{
    visit *c = user;
    char path[PATH];
    blob want;
    if (c->status)
        return;
    snprintf(path, sizeof path, "%s/%03u.bin", c->folder, (unsigned)op);
    if (read_file(path, &want)) {
        c->status = FAILED;
        return;
    }
    swap_codes(t, want.bytes);
    if (want.size != t->bytes)
        c->status = fail("wrong size", path);
    for (uint32_t i = 0; c->status == 0 && i < t->bytes / t->code_bytes; i++, c->elements++) {
        int32_t got = code_at(t, codes, i), expected = code_at(t, want.bytes, i);
        if (got == expected)
            continue;
        printf("%s differs: operation %u, element (%u, %u, %u), got %d, expected %d\n", path, (unsigned)op,
               (unsigned)(i / t->w / t->h), (unsigned)(i / t->w % t->h), (unsigned)(i % t->w), (int)got, (int)expected);
        c->status = DIFFERENT;
    }
    free(want.bytes);
}

static int test(const char *bundle)
{
    char path[PATH], folder[PATH / 2];
    unsigned pictures, ops;
    visit c = {folder, 0, 0, 0};
    program p;
    FILE *index;
    int fields;
    if (strlen(bundle) > PATH / 4)
        return fail("the path is too long", bundle);
    snprintf(path, sizeof path, "%s/golden/index.txt", bundle);
    index = fopen(path, "r");
    fields = index != NULL ? fscanf(index, "EYGOLD1 %u %u", &pictures, &ops) : 0;
    if (index != NULL)
        fclose(index);
    if (fields != 2 || pictures < 1)
        return fail("not an index of golden data", path);
    snprintf(path, sizeof path, "%s/program.bin", bundle);
    if (open_program(path, &p))
        return FAILED;
    if (ops != p.model.ops)
        c.status = fail("the golden data has another number of operations than", path);
    for (unsigned i = 0; c.status == 0 && i < pictures; i++) {
        int status;
        snprintf(folder, sizeof folder, "%s/golden/%03u", bundle, i);
        snprintf(path, sizeof path, "%s/input.bin", folder);
        status = run_file(&p, path, compare_layer, &c);
        c.status = status ? status : c.status;
    }
    if (c.status == 0)
        printf("%u layers, %llu elements, 0 differ\n", (unsigned)p.model.ops, (unsigned long long)c.elements);
    close_program(&p);
    return c.status;
}

static void write_layer(void *user, uint32_t op, const ey_tensor *t, const void *codes)
{
    visit *c = user;
    char path[PATH];
    FILE *f;
    unsigned char *copy;
    if (c->status || t->last < c->alive)
        return;
    copy = malloc(t->bytes);
    snprintf(path, sizeof path, "%s/%03u.bin", c->folder, (unsigned)op);
    f = fopen(path, "wb");
    if (copy != NULL && f != NULL) {
        memcpy(copy, codes, t->bytes);
        swap_codes(t, copy);
    }
    if (copy == NULL || f == NULL || fwrite(copy, 1, t->bytes, f) != t->bytes)
        c->status = fail("cannot write", path);
    if (f != NULL && fclose(f) != 0)
        c->status = fail("cannot write", path);
    free(copy);
}

static int run(const char *image, const char *input, const char *folder, int outputs_only)
{
    visit c = {folder, 0, 0, 0};
    program p;
    int status;
    if (strlen(folder) > PATH / 2)
        return fail("the path is too long", folder);
    if (open_program(image, &p))
        return FAILED;
    c.alive = outputs_only ? p.model.ops + 1 : 0;
    status = run_file(&p, input, write_layer, &c);
    close_program(&p);
    return status ? status : c.status;
}

static int64_t nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

typedef struct {
    int64_t *spent; /* per operation, of all repetitions: spent[op * repeats + repetition] */
    size_t repeats, repetition;
    int64_t before;
} stopwatch;

static void note_time(void *user, uint32_t op, const ey_tensor *t, const void *codes)
{
    stopwatch *s = user;
    int64_t now = nanoseconds();
    (void)t;
    (void)codes;
    s->spent[op * s->repeats + s->repetition] = now - s->before;
    s->before = now;
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int64_t median(int64_t *values, size_t n)
{
    qsort(values, n, sizeof *values, by_size);
    return values[n / 2];
}

static int measure(program *p, const blob *b, const char *input, size_t repeats, int per_op)
{
    int64_t *all = calloc(repeats * (p->model.ops + (size_t)1), sizeof *all);
    stopwatch s = {all, repeats, 0, 0};
    int status = all != NULL ? 0 : fail("no memory to time", input);
    for (size_t i = 0; status == 0 && i < repeats; i++) {
        status = feed(p, b, input);
        s.repetition = i;
        s.before = nanoseconds();
        all[p->model.ops * repeats + i] = -s.before;
        if (status == 0)
            ey_infer(&p->model, per_op ? note_time : NULL, &s);
        all[p->model.ops * repeats + i] += nanoseconds();
    }
    if (status == 0) {
        printf("arena_bytes %llu\n", (unsigned long long)p->model.arena_bytes);
        printf("median_ns %lld\n", (long long)median(all + p->model.ops * repeats, repeats));
        printf("min_ns %lld\n", (long long)all[p->model.ops * repeats]);
        for (uint32_t op = 0; per_op && op < p->model.ops; op++)
            printf("op %u %lld\n", (unsigned)op, (long long)median(all + op * repeats, repeats));
    }
    free(all);
    return status;
}

static int time_program(const char *image, const char *input, const char *repeats, int per_op)
{
    program p;
    blob b;
    int status;
    long n = strtol(repeats, NULL, 10);
    if (n < 1 || n > 1000000)
        return fail("the number of repetitions is not in 1 to 1000000", repeats);
    if (open_program(image, &p))
        return FAILED;
    status = read_input(&p, input, &b);
    if (status == 0) {
        status = measure(&p, &b, input, (size_t)n, per_op);
        free(b.bytes);
    }
    close_program(&p);
    return status;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "test") == 0)
        return test(argv[2]);
    if (argc >= 5 && strcmp(argv[1], "run") == 0)
        return run(argv[2], argv[3], argv[4], argc > 5 && strcmp(argv[5], "--outputs") == 0);
    if (argc >= 5 && strcmp(argv[1], "time") == 0)
        return time_program(argv[2], argv[3], argv[4], argc > 5 && strcmp(argv[5], "--per-op") == 0);
    fprintf(stderr, "usage: selftest test BUNDLE | run PROGRAM INPUT FOLDER [--outputs] | "
                    "time PROGRAM INPUT N [--per-op]\n");
    return FAILED;
}
