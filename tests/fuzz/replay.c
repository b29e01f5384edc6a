/* tests/fuzz/replay.c: calls a harness with every file of a folder: the committed corpus as a normal test, with any compiler.
 * An empty folder fails, since it would show nothing. */
#include "fuzz.h"
#include <dirent.h>

int main(int argc, char **argv)
{
    DIR *d = argc == 2 ? opendir(argv[1]) : NULL;
    if (!d) {
        fprintf(stderr, "usage: %s FOLDER (one that can be read)\n", argv[0]);
        return 2;
    }
    int files = 0;
    static uint8_t bytes[1 << 20];
    for (struct dirent *e; (e = readdir(d));) {
        char path[4096];
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", argv[1], e->d_name);
        FILE *f = fopen(path, "rb");
        if (!f) {
            perror(path);
            return 1;
        }
        size_t n = fread(bytes, 1, sizeof bytes, f);
        fclose(f);
        LLVMFuzzerTestOneInput(bytes, n);
        files++;
    }
    closedir(d);
    td_finish();                               /* the root scope; its status tells only that there were errors                 */
    td_memory_stats left = td_memory();
    printf("%d files, %lld tensors and %lld bytes left\n", files, (long long)left.live_tensors, (long long)left.live_bytes);
    return files == 0 || left.live_tensors != 0 || left.live_bytes != 0;
}
