/* io/atomic.c: one file, written whole or not at all.
 *
 * A temporary file beside the target, because rename is atomic only within a file system. fsync comes before the rename, or a crash of
 * the machine could leave the new name with no contents; the folder's fsync makes the rename itself last. A symbolic link is followed:
 * its target is replaced. The first error sticks in the record, later writes do nothing, and close cleans up.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io_impl.h"

static int trouble(td__atomic_file *f, const char *what)
{
    f->rc = td__fail(TD_ERR_IO, "%s: %s: %s: %s", f->who, f->path, what, strerror(errno));
    return f->rc;
}

/* The file that `path` means; what exists there must be one that can be replaced. */
static int find_target(td__atomic_file *f, const char *path, mode_t *mode)
{
    struct stat about;
    char real[PATH_MAX];
    bool there = stat(path, &about) == 0;
    f->path = td__strdup(there && realpath(path, real) ? real : path);
    if (!f->path)
        return TD_ERR_MEMORY;
    if (there && !S_ISREG(about.st_mode))
        return td__fail(TD_ERR_IO, "%s: %s: is %s, expected a file or a new name", f->who, path,
                        S_ISDIR(about.st_mode) ? "a folder" : "no regular file");
    *mode = there ? about.st_mode & 0777 : 0;
    return 0;
}

int td__atomic_open(td__atomic_file *f, const char *who, const char *path)
{
    *f = (td__atomic_file){ .who = who, .fd = -1 };
    f->rc = td__pending();                     /* a broken step must not overwrite a good file                              */
    if (f->rc != 0)
        return f->rc;
    if (!path || !*path)
        return f->rc = td__fail(TD_ERR_ARGUMENT, "%s: the path is %s, expected a file", who, path ? "empty" : "NULL");
    mode_t mode = 0;
    f->rc = find_target(f, path, &mode);
    if (f->rc != 0)
        return f->rc;
    size_t size = strlen(f->path) + 48;
    f->temporary = td__alloc(size);
    if (!f->temporary)
        return f->rc = TD_ERR_MEMORY;
    for (unsigned i = 0; f->fd < 0; i++) {
        snprintf(f->temporary, size, "%s.tmp-%ld-%u", f->path, (long)getpid(), i);
        f->fd = open(f->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (f->fd < 0 && (errno != EEXIST || i == 1000)) {
            *f->temporary = '\0';
            return trouble(f, "cannot be written (no file can be made in its folder)");
        }
    }
    if (mode && fchmod(f->fd, mode) != 0)
        return trouble(f, "the old file's permissions cannot be kept");
    return 0;
}

int td__atomic_write(td__atomic_file *f, const void *bytes, size_t n)
{
    const char *from = bytes;
    if (f->hash && f->rc == 0)
        crypto_generichash_update(f->hash, bytes, n);
    while (n > 0 && f->rc == 0) {
        ssize_t done = write(f->fd, from, n < (1u << 30) ? n : 1u << 30);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0) {
            char what[64];
            snprintf(what, sizeof what, "writing at byte %lld failed", (long long)f->written);
            return trouble(f, what);
        }
        from += done;
        n -= (size_t)done;
        f->written += done;
    }
    return f->rc;
}

int td__atomic_patch(td__atomic_file *f, int64_t at, const void *bytes, size_t n)
{
    const char *from = bytes;
    while (n > 0 && f->rc == 0) {
        ssize_t done = pwrite(f->fd, from, n, at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return trouble(f, "writing failed");
        from += done;
        at += done;
        n -= (size_t)done;
    }
    return f->rc;
}

int td__atomic_tensor(td__atomic_file *f, td_tensor *x)
{
    size_t bytes = (size_t)td__shape_numel(x->shape) * td_dtype_size(x->dtype);
    if (f->rc != 0 || bytes == 0)
        return f->rc;
    const td_device_ops *ops = x->storage->ops;
    if (ops->host_memory && td_is_contiguous(x)) {
        f->rc = ops->synchronize(x->storage->device.index);
        return f->rc ? f->rc : td__atomic_write(f, td__ptr(x), bytes);
    }
    void *copy = td__alloc(bytes);
    f->rc = copy ? td_copy_out(x, copy, bytes) : TD_ERR_MEMORY;
    if (f->rc == 0)
        td__atomic_write(f, copy, bytes);
    td__free(copy);
    return f->rc;
}

static int sync_folder(td__atomic_file *f)
{
    char *slash = strrchr(f->path, '/');
    char kept = slash ? slash[1] : 0;
    if (slash)
        slash[1] = '\0';
    int fd = open(slash ? f->path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (slash)
        slash[1] = kept;
    /* some file systems cannot sync a folder: they say EINVAL, and there is nothing more to do */
    int failed = fd < 0 || (fsync(fd) != 0 && errno != EINVAL);
    if (failed)
        trouble(f, "written, but its folder cannot be synchronised with the disk");
    if (fd >= 0)
        close(fd);
    return f->rc;
}

int td__atomic_close(td__atomic_file *f)
{
    if (f->fd >= 0 && f->rc == 0 && fsync(f->fd) != 0)
        trouble(f, "cannot be synchronised with the disk");
    if (f->fd >= 0 && close(f->fd) != 0 && f->rc == 0)
        trouble(f, "cannot be closed");
    if (f->rc == 0 && rename(f->temporary, f->path) != 0)
        trouble(f, "cannot be put in place");
    else if (f->rc == 0) {
        *f->temporary = '\0';
        sync_folder(f);
    }
    if (f->temporary && *f->temporary)
        unlink(f->temporary);
    td__free(f->temporary);
    td__free(f->path);
    f->temporary = f->path = NULL;
    return f->rc;
}
