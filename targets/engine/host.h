/* What the programs around the engine share: files, an opened program image, comparing with golden data, the clock.
 *
 * Not part of the engine: this needs C99's library and POSIX. Functions that return int return 0, DIFFERENT or FAILED,
 * which is also the exit status, and have said what is wrong.
 */
#ifndef EDGEYOLO_HOST_H
#define EDGEYOLO_HOST_H

#include "engine.h"

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

/* A picture's golden folder, for compare_layer. */
typedef struct {
    const char *folder;
    uint64_t elements; /* compared so far */
    int status;
} golden;

/* Print what is wrong with what; returns FAILED. */
int fail(const char *what, const char *which);

/* All bytes of a plain file of at most 1 GiB; the caller frees b->bytes, which is NULL after a failure. */
int read_file(const char *path, blob *b);

/* Two-byte codes from little endian to host order, or back. */
void swap_codes(const ey_tensor *t, unsigned char *codes);

/* Read, check and bind a program image; after success the caller calls close_program. */
int open_program(const char *path, program *p);
void close_program(program *p);

/* Set the input: codes in host order, read from path. */
int feed(program *p, const blob *codes, const char *path);

/* Read an input's codes in host order; the caller frees b->bytes. */
int read_input(const program *p, const char *path, blob *b);

/* Run with a hook on one input file. */
int run_file(program *p, const char *path, ey_hook hook, void *user);

/* A hook; user is a golden. Prints the first element that is not as its folder says, and stops comparing there. */
void compare_layer(void *user, uint32_t op, const ey_tensor *t, const void *codes);

/* Of a clock that only goes forward. */
int64_t nanoseconds(void);

/* Ascending. */
void sort_times(int64_t *values, size_t n);

#endif
