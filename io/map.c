/* io/map.c: one file in memory, without reading it.
 *
 * Pages are private and writable, so that whoever changes a tensor in place changes his own copy and never the file. Every tensor that lies
 * in a map has a storage of its own that starts at its first byte and holds a reference to the map.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io_impl.h"

static int map_file(const char *who, const char *path, td__map *map)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);     /* a pipe without a writer must not hang the job               */
    struct stat about;
    if (fd < 0 || fstat(fd, &about) != 0) {
        int rc = td__fail(TD_ERR_IO, "%s: %s: cannot be opened: %s", who, path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return rc;
    }
    int rc = 0;
    if (!S_ISREG(about.st_mode)) {
        rc = td__fail(TD_ERR_IO, "%s: %s: is %s, expected a file", who, path, S_ISDIR(about.st_mode) ? "a folder" : "no regular file");
    } else if (about.st_size > 0) {
        map->size = (size_t)about.st_size;
        void *data = mmap(NULL, map->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
        if (data == MAP_FAILED)
            rc = td__fail(TD_ERR_IO, "%s: %s: its %zu bytes cannot be mapped: %s", who, path, map->size, strerror(errno));
        else
            map->data = data;
    }
    close(fd);
    return rc;
}

td__map *td__map_open(const char *who, const char *path)
{
    if (!path || !*path) {
        td__fail(TD_ERR_ARGUMENT, "%s: the path is %s, expected a file", who, path ? "empty" : "NULL");
        return NULL;
    }
    td__map *map = td__calloc(sizeof *map);
    if (!map)
        return NULL;
    atomic_init(&map->refs, 1);
    map->path = td__strdup(path);
    if (!map->path || map_file(who, path, map) != 0) {
        td__map_unref(map);
        return NULL;
    }
    return map;
}

void td__map_unref(td__map *map)
{
    if (!map || atomic_fetch_sub_explicit(&map->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (map->data)
        munmap(map->data, map->size);
    td__free(map->path);
    td__free(map);
}

static void release(void *owner, void *data)
{
    td__map_unref(owner);
}

bool td__map_aligned(const td__map *map, size_t at, td_dtype dtype)
{
    return ((uintptr_t)map->data + at) % td_dtype_size(dtype) == 0;
}

td_tensor *td__map_tensor(td__map *map, size_t at, td_shape shape, td_dtype dtype)
{
    size_t bytes = (size_t)td__shape_numel(shape) * td_dtype_size(dtype);
    td_storage *s = td__storage_foreign((td_device){ TD_CPU, 0 }, map->data + at, bytes, release, map);
    if (!s)
        return td__poison();
    atomic_fetch_add_explicit(&map->refs, 1, memory_order_relaxed);
    td_tensor *x = td__tensor_on(s, shape, dtype, 0);
    td__storage_unref(s);                      /* the tensor's reference is the only one                                   */
    return x;
}

int td__map_check_bool(const char *who, const td__map *map, const char *what, size_t at, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (map->data[at + i] > 1)
            return td__fail(TD_ERR_FORMAT, "%s: %s: at byte %zu: %s is of booleans, expected 0 or 1, got %u", who, map->path, at + i, what,
                            map->data[at + i]);
    return 0;
}
