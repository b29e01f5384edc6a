/* tests/launcher/test_cores.c: dividing cores, on machines made up for the purpose by hwloc.
 */
#include <launcher.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

static hwloc_topology_t machine(const char *description)
{
    hwloc_topology_t topology;
    assert_int_equal(hwloc_topology_init(&topology), 0);
    assert_int_equal(hwloc_topology_set_synthetic(topology, description), 0);
    assert_int_equal(hwloc_topology_load(topology), 0);
    return topology;
}

/* Each rank's processors as a list, "0-7" or with two threads a core "0-15". */
static void expect(const char *description, const char *allowed_list, double quota, int ranks, int threads, const char *const *sets)
{
    hwloc_topology_t topology = machine(description);
    hwloc_bitmap_t allowed = td__cores_allowed(topology);
    assert_non_null(allowed);
    if (allowed_list)
        hwloc_bitmap_list_sscanf(allowed, allowed_list);
    td__division division;
    td__place(topology, allowed, quota, ranks, NULL, &division);
    assert_int_equal(division.threads, threads);
    if (!sets)
        assert_null(division.set);
    for (int r = 0; sets && r < ranks; r++) {
        char *list;
        assert_non_null(division.set);
        hwloc_bitmap_list_asprintf(&list, division.set[r]);
        assert_string_equal(list, sets[r]);
        free(list);
    }
    td__division_free(&division);
    hwloc_bitmap_free(allowed);
    hwloc_topology_destroy(topology);
}

static void even(void **state)
{
    (void)state;
    expect("pack:1 core:8 pu:1", NULL, 0, 2, 4, (const char *const[]){ "0-3", "4-7" });
    expect("pack:2 core:4 pu:2", NULL, 0, 2, 4, (const char *const[]){ "0-7", "8-15" });      /* a package each, both threads of a core */
    expect("pack:2 core:4 pu:2", NULL, 0, 8, 1, (const char *const[]){ "0-1", "2-3", "4-5", "6-7", "8-9", "10-11", "12-13", "14-15" });
    expect("pack:1 core:8 pu:1", NULL, 0, 1, 8, (const char *const[]){ "0-7" });
}

static void uneven(void **state)
{
    (void)state;
    /* the same number of threads for all; no core for two, none left out */
    expect("core:8 pu:1", NULL, 0, 3, 2, (const char *const[]){ "0-1", "2-4", "5-7" });
    expect("core:5 pu:1", NULL, 0, 2, 2, (const char *const[]){ "0-1", "2-4" });
}

static void restricted(void **state)
{
    (void)state;
    expect("core:8 pu:1", "2,4-6", 0, 2, 2, (const char *const[]){ "2,4", "5-6" });
    expect("core:4 pu:2", "1,3,6-7", 0, 3, 1, (const char *const[]){ "1", "3", "6-7" });         /* half a core is a core */
}

static void too_many(void **state)
{
    (void)state;
    expect("core:2 pu:2", NULL, 0, 3, 1, NULL);
    expect("core:8 pu:1", "3", 0, 2, 1, NULL);
}

static void quota(void **state)
{
    (void)state;
    expect("core:64 pu:2", NULL, 4.0, 2, 2, NULL);                  /* a container: all cores, the time of four */
    expect("core:64 pu:2", NULL, 1.5, 2, 1, NULL);
    expect("core:2 pu:1", NULL, 2.0, 2, 1, (const char *const[]){ "0", "1" });
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(even), cmocka_unit_test(uneven), cmocka_unit_test(restricted),
                                        cmocka_unit_test(too_many), cmocka_unit_test(quota) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
