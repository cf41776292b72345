/* How fast is a program image on this machine, and does it compute there what it computes elsewhere? Needs two files:
 * this program and the image. Not part of the engine.
 *
 *     bench PROGRAM [GOLDEN] [--seconds 5] [--frames 50] [--warmup 10] [--cpu N] [--json]
 *
 * GOLDEN: a folder such as golden/000: its input.bin is the picture, and every layer is compared first. Without it the
 * picture is made up, the same on every machine; the CRC-32 of the outputs then says whether two machines agree.
 * Warm-up ends when times settle, or after so many seconds. Then at least so many frames and so many seconds are
 * measured. --cpu pins to one processor. --json prints one line of JSON instead of text.
 * It runs on Linux, and so on Android.
 *
 * Exit status: 0 done and the same, 1 different, 2 a file is unreadable or refused, or a wrong option.
 */
#define _GNU_SOURCE /* for what Linux has in sched.h */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "host.h"
#include "internal.h"

enum { MOST = 100000, WINDOW = 3, ZONES = 64, NO_CPU = -1 };
enum { SECONDS, FRAMES, WARMUP, CPU, OPTIONS };

static const double TOLERANCE = 1.05;   /* between the medians of settled blocks */
static const int64_t BLOCK = 100000000; /* nanoseconds of one */

static const struct {
    const char *name;
    double low, high;
} LIMITS[OPTIONS] = {
    [SECONDS] = {"--seconds", 0, 3600},
    [FRAMES] = {"--frames", 1, MOST},
    [WARMUP] = {"--warmup", 0, 3600},
    [CPU] = {"--cpu", 0, CPU_SETSIZE - 1},
};

typedef struct {
    const char *image, *golden;
    double option[OPTIONS];
    int json;
} request;

/* What changes while measuring; negative: not readable. */
typedef struct {
    long clock_khz, millidegrees;
} state;

typedef struct {
    int64_t load, first, *times; /* nanoseconds; times in their order, then MOST more for sorting */
    size_t frames;
    int settled;
    uint64_t elements; /* compared with golden data */
    uint32_t crc;      /* of the outputs */
    state before, after;
} result;

typedef struct {
    double mean, min, p50, p90, p99;
} spread;

/* The first number of a small text file, or -1. */
static long read_number(const char *path)
{
    FILE *f = fopen(path, "r");
    long value = -1;
    if (f != NULL) {
        if (fscanf(f, "%9ld", &value) != 1)
            value = -1;
        fclose(f);
    }
    return value;
}

/* The clock of the processor that this runs on, and the hottest sensor. */
static state read_state(void)
{
    char path[PATH];
    state s = {-1, -1};
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq", sched_getcpu());
    s.clock_khz = read_number(path);
    for (int i = 0; i < ZONES; i++) {
        long t;
        snprintf(path, sizeof path, "/sys/class/thermal/thermal_zone%d/temp", i);
        t = read_number(path);
        s.millidegrees = t > s.millidegrees ? t : s.millidegrees;
    }
    return s;
}

static int pin(int cpu)
{
    char text[16];
    cpu_set_t set;
    if (cpu == NO_CPU)
        return 0;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) == 0)
        return 0;
    snprintf(text, sizeof text, "%d", cpu);
    return fail("this system does not let it run on processor", text);
}

/* Codes of the input in host order that look like noise and are the same everywhere. */
static int make_up(const program *p, blob *b)
{
    ey_tensor t;
    uint32_t x = 1;
    ey_read_tensor(&p->model, p->model.input, &t);
    b->size = t.bytes;
    b->bytes = malloc(t.bytes);
    if (b->bytes == NULL)
        return fail("no memory for", "a picture");
    for (uint32_t i = 0; i < t.bytes; i += t.code_bytes) {
        int32_t code;
        uint16_t wide;
        x = x * 1664525 + 1013904223;
        code = t.lo + (int32_t)((x >> 16) % (uint32_t)(t.hi - t.lo + 1));
        wide = (uint16_t)((uint32_t)code & 0xFFFF);
        b->bytes[i] = (unsigned char)(wide & 0xFF);
        if (t.code_bytes == 2)
            memcpy(b->bytes + i, &wide, sizeof wide);
    }
    return 0;
}

static int read_picture(program *p, const char *folder, blob *b)
{
    char path[PATH];
    if (strlen(folder) > PATH / 2)
        return fail("the path is too long", folder);
    snprintf(path, sizeof path, "%s/input.bin", folder);
    return read_input(p, path, b) || feed(p, b, path) ? FAILED : 0;
}

/* CRC-32 of the outputs' codes one after the other, as code files hold them. */
static int outputs_crc(const program *p, uint32_t *crc)
{
    ey_tensor t;
    const void *codes;
    unsigned char *all;
    size_t n = 0;
    for (uint32_t i = 0; ey_get_output(&p->model, i, &t, &codes) == EY_OK; i++)
        n += t.bytes;
    all = malloc(n);
    if (all == NULL)
        return fail("no memory for", "the outputs");
    n = 0;
    for (uint32_t i = 0; ey_get_output(&p->model, i, &t, &codes) == EY_OK; i++) {
        memcpy(all + n, codes, t.bytes);
        swap_codes(&t, all + n);
        n += t.bytes;
    }
    *crc = ey_crc32(all, n);
    free(all);
    return 0;
}

static int64_t infer(program *p, const blob *picture)
{
    int64_t start;
    ey_set_input(&p->model, picture->bytes, picture->size);
    start = nanoseconds();
    ey_infer(&p->model, NULL, NULL);
    return nanoseconds() - start;
}

/* Blocks of frames until the medians of the last ones are alike; whether they are. */
static int warm_up(program *p, const blob *picture, double seconds, int64_t *times)
{
    const int64_t end = nanoseconds() + (int64_t)(seconds * 1e9);
    int64_t medians[WINDOW] = {0};
    for (int block = 0; nanoseconds() < end; block++) {
        const int64_t stop = nanoseconds() + BLOCK;
        int64_t low, high;
        size_t n = 0;
        do
            times[n++] = infer(p, picture);
        while (n < MOST && nanoseconds() < stop);
        sort_times(times, n);
        medians[block % WINDOW] = low = high = times[n / 2];
        for (int i = 0; i < WINDOW; i++) {
            low = medians[i] < low ? medians[i] : low;
            high = medians[i] > high ? medians[i] : high;
        }
        if (block + 1 >= WINDOW && (double)high <= TOLERANCE * (double)low)
            return 1;
    }
    return 0;
}

static int measure(program *p, const blob *picture, const request *r, result *found)
{
    int64_t end;
    uint32_t crc;
    found->first = infer(p, picture);
    if (outputs_crc(p, &found->crc))
        return FAILED;
    if (r->golden != NULL) {
        golden g = {r->golden, 0, 0};
        feed(p, picture, r->golden);
        ey_infer(&p->model, compare_layer, &g);
        if (g.status)
            return g.status;
        found->elements = g.elements;
    }
    found->settled = warm_up(p, picture, r->option[WARMUP], found->times);
    found->before = read_state();
    end = nanoseconds() + (int64_t)(r->option[SECONDS] * 1e9);
    while (found->frames < MOST && (found->frames < (size_t)r->option[FRAMES] || nanoseconds() < end))
        found->times[found->frames++] = infer(p, picture);
    found->after = read_state();
    if (outputs_crc(p, &crc))
        return FAILED;
    if (crc == found->crc)
        return 0;
    fprintf(stderr, "error: the same picture gave other outputs after %u frames\n", (unsigned)found->frames);
    return DIFFERENT;
}

/* Milliseconds at a share of n ascending times, interpolated between neighbours. */
static double percentile(const int64_t *ascending, size_t n, double share)
{
    const double at = share * (double)(n - 1);
    const size_t i = (size_t)at, next = i + 1 < n ? i + 1 : i;
    return ((double)ascending[i] + (at - (double)i) * (double)(ascending[next] - ascending[i])) / 1e6;
}

static spread summary(const result *found)
{
    const size_t n = found->frames;
    int64_t *ascending = found->times + MOST;
    double sum = 0;
    memcpy(ascending, found->times, n * sizeof *ascending);
    sort_times(ascending, n);
    for (size_t i = 0; i < n; i++)
        sum += (double)ascending[i] / 1e6;
    return (spread){sum / (double)n, percentile(ascending, n, 0), percentile(ascending, n, .5),
                    percentile(ascending, n, .9), percentile(ascending, n, .99)};
}

/* ,"key":value; a negative value is one that there is not. */
static void json_number(const char *key, int64_t value)
{
    if (value < 0)
        printf(",\"%s\":null", key);
    else
        printf(",\"%s\":%lld", key, (long long)value);
}

static void print_json(const program *p, const request *r, const result *f, const spread *s, const char *system)
{
    printf("{\"system\":\"%s\",\"image_crc32\":\"%08lx\"", system,
           (unsigned long)ey_crc32(p->image.bytes, p->image.size));
    json_number("image_bytes", (int64_t)p->image.size);
    json_number("arena_bytes", (int64_t)p->model.arena_bytes);
    json_number("operations", p->model.ops);
    json_number("cpu", (int64_t)r->option[CPU]);
    json_number("clock_khz_before", f->before.clock_khz);
    json_number("clock_khz_after", f->after.clock_khz);
    json_number("millidegrees_before", f->before.millidegrees);
    json_number("millidegrees_after", f->after.millidegrees);
    json_number("golden_elements", r->golden != NULL ? (int64_t)f->elements : -1);
    json_number("frames", (int64_t)f->frames);
    printf(",\"outputs_crc32\":\"%08lx\",\"settled\":%s", (unsigned long)f->crc, f->settled ? "true" : "false");
    printf(",\"load_ms\":%.6f,\"first_ms\":%.6f", (double)f->load / 1e6, (double)f->first / 1e6);
    printf(",\"ms\":{\"infer\":{\"mean\":%.6f,\"min\":%.6f,\"p50\":%.6f,\"p90\":%.6f,\"p99\":%.6f,\"jitter\":%.6f}}",
           s->mean, s->min, s->p50, s->p90, s->p99, s->p99 - s->p50);
    printf(",\"infer_ms\":");
    for (size_t i = 0; i < f->frames; i++)
        printf("%c%.6f", i == 0 ? '[' : ',', (double)f->times[i] / 1e6);
    printf("]}\n");
}

static void print_text(const program *p, const request *r, const result *f, const spread *s, const char *system)
{
    printf("program   %lu bytes, %lu operations, %lu bytes of arena\n", (unsigned long)p->image.size,
           (unsigned long)p->model.ops, (unsigned long)p->model.arena_bytes);
    printf("system    %s\n", system);
    if (f->before.clock_khz >= 0)
        printf("clock     %ld MHz before, %ld MHz after\n", f->before.clock_khz / 1000, f->after.clock_khz / 1000);
    if (f->before.millidegrees >= 0)
        printf("hottest   %ld C before, %ld C after\n", f->before.millidegrees / 1000, f->after.millidegrees / 1000);
    if (r->golden != NULL)
        printf("golden    %llu elements, 0 differ\n", (unsigned long long)f->elements);
    printf("outputs   CRC-32 %08lx of %s\n", (unsigned long)f->crc,
           r->golden != NULL ? r->golden : "a made-up picture");
    printf("load      %.3f ms, first inference %.3f ms\n", (double)f->load / 1e6, (double)f->first / 1e6);
    printf("inference p50 %.3f  p90 %.3f  p99 %.3f  mean %.3f  min %.3f ms over %lu frames\n", s->p50, s->p90, s->p99,
           s->mean, s->min, (unsigned long)f->frames);
    if (!f->settled && r->option[WARMUP] > 0)
        printf("warning   still changing after the warm-up\n");
}

/* What uname says, without what would end a JSON string or confuse a terminal. */
static void describe(char *text, size_t size)
{
    struct utsname u;
    if (uname(&u) < 0)
        snprintf(text, size, "unknown");
    else
        snprintf(text, size, "%s %s %s", u.sysname, u.release, u.machine);
    for (; *text != '\0'; text++)
        if (*text < ' ' || *text > '~' || *text == '"' || *text == '\\')
            *text = '?';
}

static int report(const program *p, const request *r, const result *f)
{
    char system[1024];
    const spread s = summary(f);
    describe(system, sizeof system);
    (r->json ? print_json : print_text)(p, r, f, &s, system);
    return fflush(stdout) == 0 ? 0 : fail("cannot write", "the results");
}

static int bench(const request *r)
{
    result found = {0};
    blob picture = {NULL, 0};
    program p;
    int64_t start;
    int status = pin((int)r->option[CPU]);
    if (status)
        return status;
    start = nanoseconds();
    if (open_program(r->image, &p))
        return FAILED;
    found.load = nanoseconds() - start;
    found.times = malloc(2 * MOST * sizeof *found.times);
    if (found.times == NULL)
        status = fail("no memory for", "the times");
    else
        status = r->golden != NULL ? read_picture(&p, r->golden, &picture) : make_up(&p, &picture);
    if (status == 0)
        status = measure(&p, &picture, r, &found);
    if (status == 0)
        status = report(&p, r, &found);
    free(found.times);
    free(picture.bytes);
    close_program(&p);
    return status;
}

/* Takes an option's value, a decimal number that is all of the text. */
static int set_option(request *r, const char *name, const char *text)
{
    char *end;
    int i = 0;
    while (i < OPTIONS && strcmp(name, LIMITS[i].name) != 0)
        i++;
    if (i == OPTIONS)
        return fail("unknown option", name);
    if (text != NULL) {
        double value = strtod(text, &end);
        r->option[i] = value;
        if (end != text && *end == '\0' && value >= LIMITS[i].low && value <= LIMITS[i].high)
            return 0;
    }
    fprintf(stderr, "error: %s: not a number from %g to %g: %s\n", name, LIMITS[i].low, LIMITS[i].high,
            text != NULL ? text : "nothing");
    return FAILED;
}

static int parse(char **words, request *r)
{
    for (; *words != NULL; words++) {
        if (strcmp(*words, "--json") == 0)
            r->json = 1;
        else if (strncmp(*words, "--", 2) != 0 && r->golden != NULL)
            return fail("one argument too many", *words);
        else if (strncmp(*words, "--", 2) != 0)
            *(r->image == NULL ? &r->image : &r->golden) = *words;
        else if (set_option(r, words[0], words[1]))
            return FAILED;
        else
            words++;
    }
    return 0;
}

int main(int argc, char **argv)
{
    request r = {NULL, NULL, {[SECONDS] = 5, [FRAMES] = 50, [WARMUP] = 10, [CPU] = NO_CPU}, 0};
    if (argc > 1 && parse(argv + 1, &r))
        return FAILED;
    if (r.image != NULL)
        return bench(&r);
    fprintf(stderr, "usage: bench PROGRAM [GOLDEN] [--seconds 5] [--frames 50] [--warmup 10] [--cpu N] [--json]\n");
    return FAILED;
}
