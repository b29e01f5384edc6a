/* tests/base/test_error.c: the sticky first error, its sentence, both policies and the mailbox of the library's threads.
 */
#include "child.h"
#include <base.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static int begin(void **state)
{
    td_errors(TD_ERRORS_RETURN);
    td_error_clear();
    td__site = NULL;
    td__world_set(&(td__world){ .size = 1, .local_size = 1, .launcher = "none", .job = "test" });
    return 0;
}

static void no_error_at_first(void **state)
{
    assert_false(td__had_error());
    assert_int_equal(td_error_pending(), 0);
    assert_string_equal(td_error_message(), "");
}

static void the_first_one_stays(void **state)
{
    assert_int_equal(td__fail(TD_ERR_SHAPE, "td_add: %d and %d", 1, 2), TD_ERR_SHAPE);
    assert_int_equal(td__fail(TD_ERR_DTYPE, "second"), TD_ERR_DTYPE);
    assert_int_equal(td_error_pending(), TD_ERR_SHAPE);
    assert_string_equal(td_error_message(), "td_add: 1 and 2");
    td_error_clear();
    assert_int_equal(td_error_pending(), 0);
    assert_string_equal(td_error_message(), "");
    td__fail(TD_ERR_IO, "third");
    assert_string_equal(td_error_message(), "third");
    td_error_clear();
    assert_true(td__had_error());              /* though cleared */
}

static void a_code_that_is_none_is_our_bug(void **state)
{
    assert_int_equal(td__fail(7, "x"), TD_ERR_INTERNAL);
    assert_int_equal(td_error_pending(), TD_ERR_INTERNAL);
    td_error_clear();
}

static void the_sentence_names_module_and_rank(void **state)
{
    td__world_set(&(td__world){ .rank = 2, .size = 4, .launcher = "none" });
    td_scope outer = td__scope_begin_labelled("net"), inner = td__scope_begin_labelled("net.2");
    td_scope plain = td_scope_begin();
    td_here("train.py", 41);
    td__fail(TD_ERR_SHAPE, "td_add: no");
    assert_string_equal(td_error_message(), "td_add: no (in net.2) at train.py:41 on rank 2");
    td_error_clear();
    td_here(NULL, 0);
    td_scope_end(&plain);
    td_scope_end(&inner);
    td__fail(TD_ERR_SHAPE, "td_add: no");
    assert_string_equal(td_error_message(), "td_add: no (in net) on rank 2");
    td_error_clear();
    td_scope_end(&outer);
    td__fail_verbatim(TD_ERR_PEER, "rank 1 died");
    assert_string_equal(td_error_message(), "rank 1 died");
    td_error_clear();
}

static void an_endless_sentence_is_cut(void **state)
{
    char *text = malloc(10000);
    memset(text, 'x', 9999);
    text[9999] = '\0';
    td__fail(TD_ERR_FORMAT, "%s", text);
    assert_int_equal(strlen(td_error_message()), 1535);
    td_error_clear();
    free(text);
}

static void *another_thread(void *argument)
{
    int *seen = argument;
    seen[0] = td_error_pending();
    td__fail(TD_ERR_IO, "other");
    seen[1] = td_error_pending();
    return NULL;
}

static void threads_have_their_own(void **state)
{
    int seen[2];
    pthread_t t;
    td__fail(TD_ERR_SHAPE, "mine");
    pthread_create(&t, NULL, another_thread, seen);
    pthread_join(t, NULL);
    assert_int_equal(seen[0], 0);
    assert_int_equal(seen[1], TD_ERR_IO);
    assert_string_equal(td_error_message(), "mine");
    td_error_clear();
}

static void *library_thread(void *unused)
{
    td__library_thread();
    td__fail(TD_ERR_FORMAT, "loader: file %s is short", "a.gz");
    td__fail_background(TD_ERR_IO, "a later one");
    td_error_clear();                          /* its own, not the user's, and not the black box's */
    return NULL;
}

static void background_errors_surface_once(void **state)
{
    pthread_t t;
    pthread_create(&t, NULL, library_thread, NULL);
    pthread_join(t, NULL);
    assert_string_equal(td__box_get()->error, "loader: file a.gz is short");
    assert_int_equal(td__pending(), TD_ERR_FORMAT);
    assert_string_equal(td_error_message(), "loader: file a.gz is short");
    td_error_clear();
    assert_string_equal(td__box_get()->error, "");
    assert_int_equal(td__pending(), 0);
    /* an own error comes first; the background one waits for it to be cleared */
    td__fail(TD_ERR_SHAPE, "mine");
    td__fail_background(TD_ERR_IO, "theirs");
    assert_string_equal(td_error_message(), "mine");
    td_error_clear();
    assert_string_equal(td_error_message(), "theirs");
    td_error_clear();
}

static void box_holds_the_first(void **state)
{
    td__box *box = td__box_get();
    td__fail(TD_ERR_SHAPE, "the cause");
    assert_string_equal(box->error, "the cause");
    assert_int_equal(box->error_code, TD_ERR_SHAPE);
    assert_true(box->error_ns > 0);
    td_error_clear();
    assert_string_equal(box->error, "");       /* dealt with: not the cause of what comes later */
    assert_true(box->error_ns == 0);
    assert_int_equal(box->error_code, 0);
    td__fail_background(TD_ERR_IO, "theirs");
    assert_string_equal(box->error, "theirs");
    td_error_clear();
    assert_string_equal(box->error, "");
}

static void hook(const char *sentence)
{
    td__fail(TD_ERR_PEER, "a failure inside the hook must not recurse");
    printf("hook: %s; state %d; box: %s\n", sentence, (int)td__box_get()->state, td__box_get()->error);
    fflush(stdout);
}

static void fail_loudly(void *background)
{
    td__world_set(&(td__world){ .rank = 2, .size = 3, .launcher = "none" });
    td_errors(TD_ERRORS_ABORT);
    td__on_abort(hook);
    if (background) {
        td__fail_background(TD_ERR_IO, "loader: no");
        td__pending();
    } else {
        td__fail(TD_ERR_SHAPE, "td_add: no");
    }
}

static void aborting_prints_once_and_tells(void **state)
{
    child_result r = child_run(fail_loudly, NULL);
    assert_true(WIFSIGNALED(r.status));
    assert_int_equal(WTERMSIG(r.status), SIGABRT);
    assert_string_equal(r.err, "[tandem rank 2] td_add: no\n");
    assert_string_equal(r.out, "hook: td_add: no on rank 2; state 3; box: td_add: no on rank 2\n");
    r = child_run(fail_loudly, &r);
    assert_true(WIFSIGNALED(r.status));
    assert_string_equal(r.err, "[tandem rank 2] loader: no\n");
}

static void names_and_texts_agree(void **state)
{
    assert_string_equal(td_error_name(TD_ERR_SHAPE), "TD_ERR_SHAPE");
    assert_string_equal(td_error_name(0), "TD_OK");
    assert_string_equal(td_error_name(5), "TD_ERR_?");
    for (int code = -15; code < 0; code++) {
        assert_string_not_equal(td_error_name(code), "TD_ERR_?");
        assert_true(strlen(td_error_text(code)) > 5);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(no_error_at_first, begin),
        cmocka_unit_test_setup(the_first_one_stays, begin),
        cmocka_unit_test_setup(a_code_that_is_none_is_our_bug, begin),
        cmocka_unit_test_setup(the_sentence_names_module_and_rank, begin),
        cmocka_unit_test_setup(an_endless_sentence_is_cut, begin),
        cmocka_unit_test_setup(threads_have_their_own, begin),
        cmocka_unit_test_setup(background_errors_surface_once, begin),
        cmocka_unit_test_setup(box_holds_the_first, begin),
        cmocka_unit_test_setup(aborting_prints_once_and_tells, begin),
        cmocka_unit_test_setup(names_and_texts_agree, begin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
