/* tests/io/test_atomic.c: a file is the old one or the new one, whatever happens to its writer. */
#include "io_test.h"
#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N = 1 << 18, ROUNDS = 12 };

static int save_tensor(td_tensor *x)
{
    return td_safetensors_save(path_of("f"), &(td_named){ "x", x }, 1, NULL, 0);
}

static int save(double value, int64_t n)
{
    TD_SCOPE();
    return save_tensor(td_full((td_shape){ 1, { n } }, TD_F32, value));
}

/* The value that all elements of the file have. */
static double value_of(void)
{
    TD_SCOPE();
    td_safetensors *f = td_safetensors_open(path_of("f"));
    assert_string_equal(td_error_message(), "");
    td_tensor *x = td_safetensors_get(f, "x");
    const float *p = td_data(x);
    for (int64_t i = 1; i < td_numel(x); i++)
        assert_true(p[i] == p[0]);
    td_safetensors_free(f);
    return p[0];
}

static int files(void)
{
    int n = 0;
    DIR *d = opendir(io_folder);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* A writer that never stops is killed at a random moment; what it leaves is whole, and the next writer is not hindered. */
static void killed(void **state)
{
    int interrupted = 0;
    /* made here: OpenMP's threads do not follow into a fork */
    td_tensor *x[] = { td_full(TD_SHAPE(N), TD_F32, 1), td_full(TD_SHAPE(N), TD_F32, 2) };
    assert_int_equal(save_tensor(x[0]), 0);
    for (int round = 0; round < ROUNDS; round++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            for (int k = 0;; k++)
                if (save_tensor(x[k % 2]))
                    _exit(1);
        usleep(3000 + (unsigned)round * 1700);
        int status;
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        double v = value_of();
        assert_true(v == 1 || v == 2);
        interrupted += files() > 1 + interrupted;
    }
    if (interrupted == 0)                      /* at least one was hit between open and rename, or the test shows nothing         */
        fail_msg("no writer was killed in the middle of a file");
    assert_int_equal(save(9, N), 0);
    assert_true(value_of() == 9);
}

/* The disk is full (a limit on file sizes acts the same): one sentence, the old file, no litter. */
static void full(void **state)
{
    assert_int_equal(save(1, N), 0);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, small = { .rlim_cur = 100000 };
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small.rlim_max = old.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(save(2, N), TD_ERR_IO);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    expect_file_error(TD_ERR_IO, "td_safetensors_save", "f", ": writing at byte 100000 failed: File too large");
    assert_true(value_of() == 1);
    assert_int_equal(files(), 1);
}

static void targets(void **state)
{
    struct stat about;
    assert_int_equal(save(1, 4), 0);
    assert_int_equal(chmod(path_of("f"), 0640), 0);
    assert_int_equal(save(2, 4), 0);
    assert_int_equal(stat(path_of("f"), &about), 0);
    assert_int_equal(about.st_mode & 0777, 0640);        /* a file's permissions outlive its contents */
    /* a link stays a link, its target is replaced */
    assert_int_equal(rename(path_of("f"), path_of("real")), 0);
    assert_int_equal(symlink("real", path_of("f")), 0);
    assert_int_equal(save(3, 4), 0);
    assert_int_equal(lstat(path_of("f"), &about), 0);
    assert_true(S_ISLNK(about.st_mode));
    assert_int_equal(stat(path_of("real"), &about), 0);
    assert_true(S_ISREG(about.st_mode) && value_of() == 3);
    /* never over a device, a pipe, a folder */
    assert_int_equal(mkfifo(path_of("pipe"), 0600), 0);
    td_npy_save(path_of("pipe"), td_ones(TD_SHAPE(1), TD_F32));
    expect_file_error(TD_ERR_IO, "td_npy_save", "pipe", ": is no regular file, expected a file or a new name");
    td_npy_save("/dev/null", td_ones(TD_SHAPE(1), TD_F32));
    expect_error(TD_ERR_IO, "td_npy_save: /dev/null: is no regular file, expected a file or a new name");
    td_npy_save(path_of("no/such"), td_ones(TD_SHAPE(1), TD_F32));
    expect_file_error(TD_ERR_IO, "td_npy_save", "no/such", ": cannot be written (no file can be made in its folder): No such file or directory");
    td_npy_load(path_of("pipe"));                        /* does not wait for a writer */
    expect_file_error(TD_ERR_IO, "td_npy_load", "pipe", ": is no regular file, expected a file");
}

/* A relative path has no folder in its text. */
static void relative(void **state)
{
    char old[4096];
    assert_non_null(getcwd(old, sizeof old));
    assert_int_equal(chdir(io_folder), 0);
    int rc = td_npy_save("here.npy", td_ones(TD_SHAPE(2), TD_F32));
    td_tensor *x = td_npy_load("here.npy");
    assert_int_equal(chdir(old), 0);
    assert_int_equal(rc, 0);
    assert_true(td_at(x, TD_SHAPE(1)) == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(killed), TEST(full), TEST(targets), TEST(relative) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
