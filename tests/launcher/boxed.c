/* tests/launcher/boxed.c: a rank with a black box, that ends as its argument says. No collectives are needed: the box is
 * written as comm/ writes it.
 */
#include <base.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void enter_collective(const void *site)
{
    td__box *box = td__box_get();
    Dl_info info;
    if (dladdr(site, &info)) {
        snprintf(box->module, sizeof box->module, "%s", info.dli_fname);
        box->offset = (uint64_t)((const char *)site - (const char *)info.dli_fbase);
    }
    snprintf(box->doing, sizeof box->doing, "all_reduce(f32, 1000) #17 of world");
}

__attribute__((noinline)) static void note_site(void)
{
    enter_collective(__builtin_return_address(0));
}

static int end_as(const char *how)
{
    if (strcmp(how, "struck") == 0) {
        note_site();                           /* the line that boxes.sh looks for */
        raise(SIGKILL);
    }
    if (strcmp(how, "error") == 0)             /* the default policy: prints, marks the box, aborts */
        td__fail(TD_ERR_SHAPE, "td_add: shapes (64,128) and (64,127) do not broadcast at dimension 1");
    if (strcmp(how, "late-error") == 0) {      /* is recorded in time, but the process ends after the others */
        td_errors(TD_ERRORS_RETURN);
        td__fail(TD_ERR_IO, "td_dataset_idx: \"data\" cannot be read");
        atomic_store(&td__box_get()->state, TD_BOX_FAILED);
        usleep(500000);
        return 7;
    }
    if (strcmp(how, "peer") == 0) {            /* reports another rank, and is gone before that one */
        usleep(200000);
        td_errors(TD_ERRORS_RETURN);
        td__fail(TD_ERR_PEER, "td_all_reduce: rank 1 died");
        return 1;
    }
    if (strcmp(how, "well") == 0) {
        td__box_close(true);
        return 0;
    }
    if (strcmp(how, "early") == 0)             /* leaves without closing its box */
        return 0;
    sleep(60);
    return 0;
}

/* argument r says how rank r ends */
int main(int argc, char **argv)
{
    td__world world;
    char error[256];
    if (td__world_find(td__getenv, &world, error, sizeof error) != 0 || world.rank + 1 >= argc) {
        fprintf(stderr, "boxed: %s\n", error);
        return 99;
    }
    td__world_set(&world);
    if (td__box_open() != 0)
        return 98;
    return end_as(argv[world.rank + 1]);
}
