/* tests/base/test_scope.c: every way out of a block, forgotten scopes, escape, keep, threads, and the hint.
 */
#include "child.h"
#include <base.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

typedef struct {
    td__scoped scoped;                         /* first member */
    int id;
} object;

static __thread int dropped[64], drops;

static void drop(td__scoped *scoped)
{
    dropped[drops++ % 64] = ((object *)scoped)->id;
    free(scoped);
}

static object *make(int id)
{
    object *o = calloc(1, sizeof *o);
    o->scoped.drop = drop;
    o->id = id;
    td__scope_add(&o->scoped);
    return o;
}

static int begin(void **state)
{
    td_errors(TD_ERRORS_RETURN);
    drops = 0;
    return 0;
}

static int end(void **state)
{
    td__scope_close_root();
    if (td_memory().live_bytes != 0)
        fail_msg("%lld bytes live", (long long)td_memory().live_bytes);
    return 0;
}

#define DROPPED(...)                                                  \
    do {                                                              \
        const int wanted_[] = { __VA_ARGS__ };                        \
        assert_int_equal(drops, (int)TD_COUNT(wanted_));              \
        assert_memory_equal(dropped, wanted_, sizeof wanted_);        \
        drops = 0;                                                    \
    } while (0)

static int leave_by_return(void)
{
    TD_SCOPE();
    make(1);
    make(2);
    if (drops == 0)
        return 5;
    return 6;
}

static void every_way_out(void **state)
{
    {
        TD_SCOPE();
        make(1), make(2), make(3);
        assert_int_equal(drops, 0);
    }
    DROPPED(3, 2, 1);
    for (int i = 0; i < 3; i++) {
        TD_SCOPE();
        make(i);
        if (i == 0)
            continue;
        make(10 + i);
        if (i == 1)
            break;
    }
    DROPPED(0, 11, 1);
    assert_int_equal(leave_by_return(), 5);
    DROPPED(2, 1);
}

static void a_forgotten_inner_scope(void **state)
{
    td_scope outer = td_scope_begin();
    make(1);
    td_scope inner = td_scope_begin(), copy = inner;
    make(2);
    td_scope_end(&outer);
    DROPPED(2, 1);
    td_scope_end(&inner);                      /* ended with the outer one */
    td_scope_end(&outer);                      /* ended before */
    td_scope_end(NULL);
    make(3);
    td_scope fresh = td_scope_begin(), deeper = td_scope_begin();
    make(4);
    td_scope_end(&copy);                       /* same depth as `deeper`, but not the same scope */
    assert_int_equal(drops, 0);
    td_scope_end(&deeper);
    DROPPED(4);
    td_scope_end(&fresh);
    assert_int_equal(drops, 0);
    td__scope_close_root();
    DROPPED(3);
}

static void escaping(void **state)
{
    td_scope outer = td_scope_begin();
    td_scope inner = td_scope_begin();
    object *a = make(1), *b = make(2);
    make(3);
    assert_true(td__scope_holds(&b->scoped));
    assert_true(td__scope_escape(&b->scoped));
    assert_false(td__scope_holds(&b->scoped));
    assert_true(td__scope_holds(&a->scoped));
    td_scope_end(&inner);
    assert_true(td__scope_holds(&b->scoped));
    assert_int_equal(drops, 2);                /* 3 and 1 */
    assert_true(dropped[0] + dropped[1] == 4 && dropped[0] != dropped[1]);
    drops = 0;
    inner = td_scope_begin();
    make(4);
    assert_true(td__scope_escape(&b->scoped)); /* of an outer scope: to the one around that, here the root */
    td_scope_end(&inner);
    DROPPED(4);
    td_scope_end(&outer);
    assert_int_equal(drops, 0);
    assert_true(td__scope_escape(&b->scoped)); /* stays in the root */
    td__scope_close_root();
    DROPPED(2);
}

static void escaping_twice_through_three_levels(void **state)
{
    td_scope one = td_scope_begin(), two = td_scope_begin(), three = td_scope_begin();
    object *a = make(1);
    make(2);
    td__scope_escape(&a->scoped);
    td__scope_escape(&a->scoped);
    td_scope_end(&three);
    DROPPED(2);
    td_scope_end(&two);
    assert_int_equal(drops, 0);
    td_scope_end(&one);
    DROPPED(1);
}

static void keeping(void **state)
{
    object *kept;
    {
        TD_SCOPE();
        make(1);
        kept = make(2);
        make(3);
        assert_true(td__scope_remove(&kept->scoped));
        assert_false(td__scope_remove(&kept->scoped));
        assert_false(td__scope_escape(&kept->scoped));
    }
    DROPPED(3, 1);
    free(kept);
}

/* A queue in one scope: each round one handle comes and the oldest goes. The stack must not grow with the rounds. */
static void holes_are_squeezed_out(void **state)
{
    td_scope outer = td_scope_begin();
    make(-1);
    td_scope scope = td_scope_begin();
    object *queue[10];
    for (int i = 0; i < 10; i++)
        queue[i] = make(i);
    int64_t before = 0;
    for (int i = 0; i < 5000; i++) {
        object *oldest = queue[i % 10];
        queue[i % 10] = make(10 + i);
        assert_true(td__scope_remove(&oldest->scoped));
        free(oldest);
        if (i == 1000)
            before = td_memory().live_bytes;
    }
    assert_int_equal(td_memory().live_bytes, before);
    td_scope_end(&scope);
    DROPPED(5009, 5008, 5007, 5006, 5005, 5004, 5003, 5002, 5001, 5000);
    td_scope_end(&outer);
    DROPPED(-1);
}

/* Squeezing moves the starts of the levels above the holes. */
static void holes_below_an_inner_scope(void **state)
{
    td_scope outer = td_scope_begin();
    object *many[200];
    for (int i = 0; i < 200; i++)
        many[i] = make(i);
    td_scope inner = td_scope_begin();
    make(300);
    for (int i = 5; i < 200; i++) {
        td__scope_remove(&many[i]->scoped);
        free(many[i]);
    }
    for (int i = 0; i < 60; i++)               /* past the 256 that there is room for */
        make(301 + i);
    td_scope_end(&inner);
    assert_int_equal(drops, 61);
    drops = 0;
    assert_true(td__scope_remove(&many[2]->scoped));
    free(many[2]);
    td_scope_end(&outer);
    DROPPED(4, 3, 1, 0);
}

static td__scoped *victim;
static void drop_and_take(td__scoped *scoped)
{
    if (victim && td__scope_remove(victim)) {
        free(victim);
        victim = NULL;
    }
    TD_SCOPE();
    make(99);
    drop(scoped);
}

static void dropping_may_use_scopes(void **state)
{
    {
        TD_SCOPE();
        victim = &make(1)->scoped;
        make(2);
        make(3)->scoped.drop = drop_and_take;
    }
    DROPPED(3, 99, 2);
}

static object *of_main;
static void *thread_body(void *argument)
{
    int *seen = argument;
    assert_false(td__scope_remove(&of_main->scoped));
    assert_false(td__scope_escape(&of_main->scoped));
    td_scope_begin();                          /* never ended */
    make(1);
    make(2);
    seen[0] = drops;
    return NULL;
}

static _Atomic int thread_drops;
static void drop_elsewhere(td__scoped *scoped)
{
    thread_drops++;
    free(scoped);
}

static void *thread_with_root(void *unused)
{
    for (int i = 0; i < 100; i++)
        make(i)->scoped.drop = drop_elsewhere;
    return NULL;
}

static void threads(void **state)
{
    TD_SCOPE();
    of_main = make(7);
    int seen[1];
    pthread_t t[4];
    pthread_create(&t[0], NULL, thread_body, seen);
    pthread_join(t[0], NULL);
    assert_int_equal(seen[0], 0);
    assert_int_equal(drops, 0);
    for (int i = 0; i < 4; i++)
        pthread_create(&t[i], NULL, thread_with_root, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(thread_drops, 400);       /* their roots closed with them */
}

static void without_memory(void **state)
{
    td__scope_close_root();
    td__pool_fail_after(1);
    td_scope scope = td_scope_begin();         /* no room for the level: a scope that does nothing */
    assert_int_equal(td_error_pending(), TD_ERR_MEMORY);
    td_error_clear();
    td_scope_end(&scope);
    td__pool_fail_after(1);
    object *o = make(1);
    assert_int_equal(td_error_pending(), TD_ERR_MEMORY);
    assert_null(o->scoped.stack);              /* valid, and nobody's */
    td_error_clear();
    free(o);
}

static void pile_up(void *count)
{
    for (int i = 0; i < *(int *)count; i++)
        make(i);
    td__scope_close_root();
}

static void a_loop_without_scope_is_hinted_at_once(void **state)
{
    int few = 9999, many = 30000;
    assert_string_equal(child_run(pile_up, &few).err, "");
    assert_string_equal(child_run(pile_up, &many).err,
                        "[tandem] 10000 tensors in the root scope: does a loop lack its TD_SCOPE()?\n");
    setenv("TANDEM_QUIET", "1", 1);
    assert_string_equal(child_run(pile_up, &many).err, "");
    unsetenv("TANDEM_QUIET");
}

static void labels(void **state)
{
    assert_null(td__scope_label());
    td_scope a = td__scope_begin_labelled("net.0"), b = td_scope_begin();
    assert_string_equal(td__scope_label(), "net.0");
    td_scope_end(&b);
    td_scope_end(&a);
    assert_null(td__scope_label());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_way_out, begin, end),
        cmocka_unit_test_setup_teardown(a_forgotten_inner_scope, begin, end),
        cmocka_unit_test_setup_teardown(escaping, begin, end),
        cmocka_unit_test_setup_teardown(escaping_twice_through_three_levels, begin, end),
        cmocka_unit_test_setup_teardown(keeping, begin, end),
        cmocka_unit_test_setup_teardown(holes_are_squeezed_out, begin, end),
        cmocka_unit_test_setup_teardown(holes_below_an_inner_scope, begin, end),
        cmocka_unit_test_setup_teardown(dropping_may_use_scopes, begin, end),
        cmocka_unit_test_setup_teardown(threads, begin, end),
        cmocka_unit_test_setup_teardown(without_memory, begin, end),
        cmocka_unit_test_setup_teardown(a_loop_without_scope_is_hinted_at_once, begin, end),
        cmocka_unit_test_setup_teardown(labels, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
