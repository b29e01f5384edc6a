/* tests/fuzz/fuzz.h: what the harnesses share. A harness is LLVMFuzzerTestOneInput: libFuzzer calls it (run.sh), and so does replay.c, which
 * goes through the committed corpus as a normal test. */
#ifndef TD_FUZZ_H
#define TD_FUZZ_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <tandem.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The library reads files, so the bytes become one that lies in memory: its path; the file goes when *fd is closed. */
static inline const char *fuzz_file(const uint8_t *data, size_t size, int *fd)
{
    static char path[64];
    *fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (*fd < 0 || write(*fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", *fd);
    return path;
}

/* Nothing may outlive an input, and every error is one of these two. */
static inline void fuzz_done(int fd)
{
    int code = td_error_pending();
    if (code != 0 && code != TD_ERR_FORMAT && code != TD_ERR_DTYPE)
        abort();
    td_error_clear();
    close(fd);
}
#endif
