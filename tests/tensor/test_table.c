/* tests/tensor/test_table.c: every table of kernels is complete, TANDEM_ISA chooses among them, and TANDEM_CONV among convolutions. The choice is made once
 * per process, so each name is tried in a child of its own.
 */
#include "tensor_test.h"
#include <cpu/cpu.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct { const char *name; size_t at; } rows[] = {
#define ROW(row) { #row, offsetof(td_kernels, row) },
    TD_CPU_ROWS(ROW)
};

static void no_row_is_empty(void **state)
{
    (void)state;
    const td_kernels *isa[3];
    size_t sets = test_isas(isa), missing = 0;
#define ONE(row) +1
    const size_t left_empty = 0 TD_CPU_EMPTY_ROWS(ONE);
    assert_int_equal(TD_COUNT(rows) + left_empty, sizeof(td_kernels) / sizeof(void *) - 1);     /* every field but the name is in one list */
    for (size_t k = 0; k < sets; k++)
        for (size_t i = 0; i < TD_COUNT(rows); i++) {
            void *kernel;
            memcpy(&kernel, (const char *)isa[k] + rows[i].at, sizeof kernel);
            if (!kernel) {
                print_error("%s: row %s is empty\n", isa[k]->name, rows[i].name);
                missing++;
            }
        }
    assert_int_equal(missing, 0);
}

static void names(void **state)
{
    (void)state;
    assert_string_equal(td__cpu_kernels_named("baseline")->name, "cpu baseline");
    assert_null(td__cpu_kernels_named("sse9"));
    if (td__cpu_kernels_named("avx512"))                           /* one that has the wider set has the narrower */
        assert_string_equal(td__cpu_kernels_named("avx2")->name, "cpu avx2");
}

/* What a child with variable=name chose, and the sentence of its error. */
static void choose_by(const char *variable, const char *name, char *chosen, char *error)
{
    int p[2];
    char text[1024] = "";
    assert_int_equal(pipe(p), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (name)
            setenv(variable, name, 1);
        else
            unsetenv(variable);
        int n = snprintf(text, sizeof text, "%s|", !strcmp(variable, "TANDEM_ISA") ? td__cpu_kernels()->name : td__conv_direct() ? "direct" : "auto");
        snprintf(text + n, sizeof text - (size_t)n, "%s", td_error_message());
        _exit(write(p[1], text, sizeof text) == (ssize_t)sizeof text ? 0 : 1);
    }
    close(p[1]);
    assert_int_equal(read(p[0], text, sizeof text), sizeof text);
    close(p[0]);
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    char *bar = strchr(text, '|');
    *bar = 0;
    strcpy(chosen, text);
    strcpy(error, bar + 1);
}

static void choose(const char *name, char *chosen, char *error)
{
    choose_by("TANDEM_ISA", name, chosen, error);
}

static void convolutions(void **state)
{
    (void)state;
    char chosen[1024], error[1024];
    const char *const names[] = { NULL, "auto", "direct" };
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        choose_by("TANDEM_CONV", names[i], chosen, error);
        assert_string_equal(chosen, names[i] ? names[i] : "auto");
        assert_string_equal(error, "");
    }
    choose_by("TANDEM_CONV", "fast", chosen, error);
    assert_non_null(strstr(error, "TANDEM_CONV is \"fast\": expected auto or direct"));
}

static void choice(void **state)
{
    (void)state;
    char chosen[1024], error[1024];
    const td_kernels *isa[3];
    size_t sets = test_isas(isa);
    choose(NULL, chosen, error);
    assert_string_equal(chosen, isa[sets - 1]->name);              /* the widest */
    assert_string_equal(error, "");
    choose("auto", chosen, error);
    assert_string_equal(chosen, isa[sets - 1]->name);
    for (size_t k = 0; k < sets; k++) {
        choose(isa[k]->name + 4, chosen, error);
        assert_string_equal(chosen, isa[k]->name);
        assert_string_equal(error, "");
    }
    choose("avx1024", chosen, error);
    assert_non_null(strstr(error, "TANDEM_ISA is \"avx1024\": expected auto, baseline, avx2 or avx512"));
    if (!td__cpu_kernels_named("avx512")) {
        choose("avx512", chosen, error);
        assert_non_null(strstr(error, "TANDEM_ISA is \"avx512\", but this processor or operating system lacks it"));
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)
    const struct CMUnitTest tests[] = { TEST(no_row_is_empty), TEST(names), TEST(choice), TEST(convolutions) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
