/* tests/base/test_blackbox.c: a killed process leaves a readable box; a folder that is not ours alone is refused; sweeping.
 */
#include "child.h"
#include <base.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <time.h>
#include <cmocka.h>

static char folder[64];

static int begin(void **state)
{
    snprintf(folder, sizeof folder, "/tmp/tandem-test-XXXXXX");
    assert_non_null(mkdtemp(folder));
    setenv("TANDEM_RUNTIME_DIR", folder, 1);
    setenv("TANDEM_QUIET", "1", 1);
    td_errors(TD_ERRORS_RETURN);
    td__world_set(&(td__world){ .rank = 3, .size = 4, .launcher = "none", .job = "job-a" });
    return 0;
}

static int end(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

static const char *inside(const char *name)
{
    static char path[4][200];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

static void open_and_die(void *how)
{
    td__box_open();
    td__box *box = td__box_get();
    atomic_store(&box->collectives, 17);
    snprintf(box->doing, sizeof box->doing, "all_reduce(f32, 1000) #17 of world");
    if (how)
        td__fail(TD_ERR_SHAPE, "td_add: no");
    raise(SIGKILL);
}

static void a_killed_process_leaves_its_box(void **state)
{
    child_result r = child_run(open_and_die, NULL);
    assert_true(WIFSIGNALED(r.status) && WTERMSIG(r.status) == SIGKILL);
    td__box box;
    assert_int_equal(td__box_read(inside("job-a.3.box"), &box), 0);
    assert_int_equal(box.rank, 3);
    assert_int_equal(box.size, 4);
    assert_int_equal(box.state, TD_BOX_RUNNING);
    assert_int_equal(box.collectives, 17);
    assert_string_equal(box.doing, "all_reduce(f32, 1000) #17 of world");
    assert_int_equal(box.error_ns, 0);
    assert_true(llabs(box.started_ns / 1000000000 - (long long)time(NULL)) < 60);
    child_run(open_and_die, &box);
    assert_int_equal(td__box_read(inside("job-a.3.box"), &box), 0);
    assert_string_equal(box.error, "td_add: no on rank 3");
    assert_true(box.error_ns >= box.started_ns);
}

static void modes_and_life(void **state)
{
    chmod(folder, 0755);
    assert_string_equal(td__box_path(), "");
    assert_int_equal(td__box_open(), 0);
    struct stat s;
    assert_int_equal(stat(folder, &s), 0);
    assert_int_equal(s.st_mode & 0777, 0700);  /* closed to others */
    assert_string_equal(td__box_path(), inside("job-a.3.box"));
    assert_int_equal(stat(td__box_path(), &s), 0);
    assert_int_equal(s.st_mode & 0777, 0600);
    assert_int_equal(td__box_get()->state, TD_BOX_RUNNING);
    assert_int_equal(td__box_get()->pid, getpid());
    td__box *held = td__box_get();
    td__box_close(true);
    assert_string_equal(td__box_path(), "");
    assert_int_equal(access(inside("job-a.3.box"), F_OK), -1);
    held->collectives = 1;                     /* a thread that still holds the pointer writes into a private page */

    assert_int_equal(td__box_open(), 0);
    assert_ptr_equal(td__box_get(), held);
    assert_int_equal(held->collectives, 0);
    td__box_close(false);
    td__box box;
    assert_int_equal(td__box_read(inside("job-a.3.box"), &box), 0);          /* kept when the job did not end well */
    assert_int_equal(box.state, TD_BOX_FAILED);
}

static void folders_that_are_not_ours(void **state)
{
    if (geteuid() == 0)
        assert_int_equal(chown(folder, 12345, 12345), 0);
    else
        setenv("TANDEM_RUNTIME_DIR", "/", 1);
    assert_int_equal(td__box_open(), TD_ERR_IO);
    assert_string_equal(td__box_path(), "");
    td__box_get()->collectives = 5;            /* works without a file */
    td__box_close(true);

    if (geteuid() == 0)
        assert_int_equal(chown(folder, 0, 0), 0);
    assert_int_equal(mkdir(inside("real"), 0700), 0);
    assert_int_equal(symlink(inside("real"), inside("link")), 0);
    setenv("TANDEM_RUNTIME_DIR", inside("link"), 1);
    assert_int_equal(td__box_open(), TD_ERR_IO);
    char into[200];
    assert_null(td__runtime_dir(into, sizeof into));
    assert_null(td__runtime_dir(into, 10));
    setenv("TANDEM_RUNTIME_DIR", inside("made"), 1);
    assert_non_null(td__runtime_dir(into, sizeof into));
    assert_string_equal(into, inside("made"));
    assert_int_equal(access(into, F_OK), 0);
    setenv("TANDEM_RUNTIME_DIR", "/dev/null/x", 1);
    assert_int_equal(td__box_open(), TD_ERR_IO);
    assert_int_equal(td_error_pending(), 0);   /* a run without a black box is still a run */
}

static void a_link_in_place_of_the_box(void **state)
{
    FILE *f = fopen(inside("precious"), "w");
    fputs("keep me", f);
    fclose(f);
    assert_int_equal(symlink(inside("precious"), inside("job-a.3.box")), 0);
    assert_int_equal(td__box_open(), 0);
    td__box_close(false);
    char text[16] = "";
    f = fopen(inside("precious"), "r");
    assert_non_null(fgets(text, sizeof text, f));
    fclose(f);
    assert_string_equal(text, "keep me");
}

static void write_box(const char *name, int pid, double days)
{
    td__box box = { .magic = "TDBOX1\0", .pid = pid };
    FILE *f = fopen(inside(name), "wb");
    fwrite(&box, sizeof box, 1, f);
    fclose(f);
    struct timespec t[2] = { { .tv_sec = time(NULL) - (time_t)(days * 86400) }, { .tv_sec = time(NULL) - (time_t)(days * 86400) } };
    assert_int_equal(utimensat(AT_FDCWD, inside(name), t, 0), 0);
}


static void old_boxes_are_swept(void **state)
{
    fflush(NULL);
    pid_t gone = fork();
    if (gone == 0)
        _exit(0);
    waitpid(gone, NULL, 0);
    write_box("old-dead.0.box", gone, 2);
    write_box("old-live.0.box", getpid(), 2);
    write_box("new-dead.0.box", gone, 0.5);
    write_box("old-dead.txt", gone, 2);
    assert_int_equal(td__box_open(), 0);
    assert_int_equal(access(inside("old-dead.0.box"), F_OK), -1);
    assert_int_equal(access(inside("old-live.0.box"), F_OK), 0);
    assert_int_equal(access(inside("new-dead.0.box"), F_OK), 0);
    assert_int_equal(access(inside("old-dead.txt"), F_OK), 0);
    td__box_close(true);
}

static void what_is_no_box(void **state)
{
    td__box box;
    assert_int_equal(td__box_read(inside("absent"), &box), TD_ERR_IO);
    FILE *f = fopen(inside("short"), "w");
    fputs("TDBOX1", f);
    fclose(f);
    assert_int_equal(td__box_read(inside("short"), &box), TD_ERR_FORMAT);
    f = fopen(inside("other"), "w");
    for (size_t i = 0; i < sizeof box; i++)
        fputc('x', f);
    fclose(f);
    assert_int_equal(td__box_read(inside("other"), &box), TD_ERR_FORMAT);
    assert_int_equal(td__box_read(folder, &box), TD_ERR_FORMAT);
    /* a writer that died between two bytes: no end of the text */
    memset(&box, 'x', sizeof box);
    memcpy(box.magic, "TDBOX1\0", 8);
    f = fopen(inside("endless"), "w");
    fwrite(&box, sizeof box, 1, f);
    fclose(f);
    assert_int_equal(td__box_read(inside("endless"), &box), 0);
    assert_int_equal(strlen(box.error), sizeof box.error - 1);
    assert_int_equal(strlen(box.doing), sizeof box.doing - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_killed_process_leaves_its_box, begin, end),
        cmocka_unit_test_setup_teardown(modes_and_life, begin, end),
        cmocka_unit_test_setup_teardown(folders_that_are_not_ours, begin, end),
        cmocka_unit_test_setup_teardown(a_link_in_place_of_the_box, begin, end),
        cmocka_unit_test_setup_teardown(old_boxes_are_swept, begin, end),
        cmocka_unit_test_setup_teardown(what_is_no_box, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
