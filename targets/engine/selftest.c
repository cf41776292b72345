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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"

static int test(const char *bundle)
{
    char path[PATH], folder[PATH / 2];
    unsigned pictures, ops;
    golden c = {folder, 0, 0};
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

typedef struct {
    const char *folder;
    uint32_t alive; /* write tensors that live as long */
    int status;
} writing;

static void write_layer(void *user, uint32_t op, const ey_tensor *t, const void *codes)
{
    writing *c = user;
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
    writing c = {folder, 0, 0};
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

static int64_t median(int64_t *values, size_t n)
{
    sort_times(values, n);
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
