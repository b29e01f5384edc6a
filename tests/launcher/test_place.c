/* tests/launcher/test_place.c: which cores, memory, GPU and network device each rank gets, on made-up machines, with the placement written down.
 * A rank's row is "processors | memory nodes | GPU and its bus | network device"; "-" stands for none. */
#include <launcher.h>
#include <linux/mempolicy.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "machine.h"

/* As the launcher would read it. */
static hwloc_topology_t load(const char *processors, const char *devices)
{
    hwloc_topology_t topology;
    char *xml = machine_xml(processors, devices), path[] = "/tmp/tandem-test-place-XXXXXX";
    int fd = mkstemp(path);
    assert_int_equal(write(fd, xml, strlen(xml)), (ssize_t)strlen(xml));
    close(fd);
    free(xml);
    setenv("HWLOC_XMLFILE", path, 1);
    assert_int_equal(td__cores_load(&topology, true), 0);
    assert_false(hwloc_topology_is_thissystem(topology));
    unsetenv("HWLOC_XMLFILE");
    unlink(path);
    return topology;
}

typedef struct {
    const char *processors, *devices;
    const char *allowed;                       /* a list; NULL: all                                                       */
    double quota;
    const char *device, *visible, *root;       /* TANDEM_DEVICE, CUDA_VISIBLE_DEVICES; before /proc and /dev                */
} machine;

static void row(const td__division *d, int r, char *into, size_t size)
{
    char set[128] = "-", nodes[64] = "-";
    if (d->set)
        hwloc_bitmap_list_snprintf(set, sizeof set, d->set[r]);
    if (d->nodes)
        hwloc_bitmap_list_snprintf(nodes, sizeof nodes, d->nodes[r]);
    const td__seat *s = &d->seat[r];
    int n = snprintf(into, size, "%s | %s | ", set, nodes);
    n += s->gpu < 0 ? snprintf(into + n, size - (size_t)n, "-") : snprintf(into + n, size - (size_t)n, "%d %s", s->gpu, s->gpu_bus[0] ? s->gpu_bus + 5 : "?");
    snprintf(into + n, size - (size_t)n, " | %s", s->nic[0] ? s->nic : "-");
}

static void divide(const machine *m, int ranks, hwloc_topology_t *topology, td__division *out)
{
    td__gpus gpus;
    *topology = load(m->processors, m->devices);
    hwloc_bitmap_t allowed = td__cores_allowed(*topology);
    if (m->allowed)
        hwloc_bitmap_list_sscanf(allowed, m->allowed);
    td__gpus_find(*topology, m->device, m->visible, m->root, &gpus);
    td__place(*topology, allowed, m->quota, ranks, &gpus, out);
    hwloc_bitmap_free(allowed);
}

static void expect(const machine *m, int ranks, int threads, const char *const *rows)
{
    hwloc_topology_t topology;
    td__division d;
    char got[256];
    divide(m, ranks, &topology, &d);
    for (int r = 0; r < ranks; r++) {
        row(&d, r, got, sizeof got);
        assert_string_equal(got, rows[r]);
    }
    assert_int_equal(d.threads, threads);
    td__division_free(&d);
    hwloc_topology_destroy(topology);
}
#define ROWS(...) (const char *const[]){ __VA_ARGS__ }

/* ---- eight GPUs, eight InfiniBand devices, two sockets: 16 cores each, two hyper-threads a core ------------------------------------------ */
#define EIGHT "pack:2 [numa(memory=1TB)] core:16 pu:2"
#define EIGHT_DEVICES "0:10=gn 0:20=gn 0:30=gn 0:40=gn 1:90=gn 1:a0=gn 1:b0=gn 1:c0=gn"

static void eight_gpus(void **state)
{
    (void)state;
    machine m = { EIGHT, EIGHT_DEVICES };
    expect(&m, 8, 4, ROWS("0-7 | 0 | 0 11:00.0 | mlx5_0", "8-15 | 0 | 1 21:00.0 | mlx5_1", "16-23 | 0 | 2 31:00.0 | mlx5_2", "24-31 | 0 | 3 41:00.0 | mlx5_3",
                          "32-39 | 1 | 4 91:00.0 | mlx5_4", "40-47 | 1 | 5 a1:00.0 | mlx5_5", "48-55 | 1 | 6 b1:00.0 | mlx5_6",
                          "56-63 | 1 | 7 c1:00.0 | mlx5_7"));
    /* the first four GPUs are all at the first socket: near them, although the other socket idles */
    expect(&m, 4, 4, ROWS("0-7 | 0 | 0 11:00.0 | mlx5_0", "8-15 | 0 | 1 21:00.0 | mlx5_1", "16-23 | 0 | 2 31:00.0 | mlx5_2", "24-31 | 0 | 3 41:00.0 | mlx5_3"));
    expect(&m, 3, 5, ROWS("0-9 | 0 | 0 11:00.0 | mlx5_0", "10-19 | 0 | 1 21:00.0 | mlx5_1", "20-31 | 0 | 2 31:00.0 | mlx5_2"));
    expect(&m, 5, 4, ROWS("0-7 | 0 | 0 11:00.0 | mlx5_0", "8-15 | 0 | 1 21:00.0 | mlx5_1", "16-23 | 0 | 2 31:00.0 | mlx5_2", "24-31 | 0 | 3 41:00.0 | mlx5_3",
                          "32-63 | 1 | 4 91:00.0 | mlx5_4"));
    expect(&m, 1, 16, ROWS("0-31 | 0 | 0 11:00.0 | mlx5_0"));
}

static void more_ranks_than_gpus(void **state)
{
    (void)state;
    machine m = { EIGHT, EIGHT_DEVICES };      /* td_init would refuse 16 ranks on 8 GPUs: these are ranks of the CPU; two to a network device */
    expect(&m, 16, 2, ROWS("0-3 | 0 | - | mlx5_0", "4-7 | 0 | - | mlx5_1", "8-11 | 0 | - | mlx5_2", "12-15 | 0 | - | mlx5_3", "16-19 | 0 | - | mlx5_0",
                           "20-23 | 0 | - | mlx5_1", "24-27 | 0 | - | mlx5_2", "28-31 | 0 | - | mlx5_3", "32-35 | 1 | - | mlx5_4", "36-39 | 1 | - | mlx5_5",
                           "40-43 | 1 | - | mlx5_6", "44-47 | 1 | - | mlx5_7", "48-51 | 1 | - | mlx5_4", "52-55 | 1 | - | mlx5_5", "56-59 | 1 | - | mlx5_6",
                           "60-63 | 1 | - | mlx5_7"));
    m.device = "cpu";
    expect(&m, 2, 16, ROWS("0-31 | 0 | - | mlx5_0", "32-63 | 1 | - | mlx5_4"));
    m.device = "cuda:6";                       /* all on one GPU, by the user's word */
    expect(&m, 3, 5, ROWS("32-41 | 1 | 6 b1:00.0 | mlx5_6", "42-51 | 1 | 6 b1:00.0 | mlx5_6", "52-63 | 1 | 6 b1:00.0 | mlx5_6"));
    m.device = "cuda:8";                       /* there is none: td_init will say so */
    expect(&m, 2, 16, ROWS("0-31 | 0 | - | mlx5_0", "32-63 | 1 | - | mlx5_4"));
}

static void visible_gpus(void **state)
{
    (void)state;
    machine m = { EIGHT, EIGHT_DEVICES, .visible = "5,0" };
    expect(&m, 2, 16, ROWS("32-63 | 1 | 0 a1:00.0 | mlx5_5", "0-31 | 0 | 1 11:00.0 | mlx5_0"));
    m.visible = " 6, 7 ,1";
    expect(&m, 3, 8, ROWS("32-47 | 1 | 0 b1:00.0 | mlx5_6", "48-63 | 1 | 1 c1:00.0 | mlx5_7", "0-31 | 0 | 2 21:00.0 | mlx5_1"));
    m.visible = "3,9,1";                       /* CUDA stops at the first that it does not know: one GPU, too few for two ranks */
    expect(&m, 2, 16, ROWS("0-31 | 0 | - | mlx5_0", "32-63 | 1 | - | mlx5_4"));
    expect(&m, 1, 16, ROWS("0-31 | 0 | 0 41:00.0 | mlx5_3"));
    m.visible = "";
    expect(&m, 2, 16, ROWS("0-31 | 0 | - | mlx5_0", "32-63 | 1 | - | mlx5_4"));
    m.visible = "MIG-5c89852c-d268-5e5d-9b47-d4f8a5a5b1f5,2";      /* a part of some GPU; the other rank keeps to its own GPU's cores */
    expect(&m, 2, 16, ROWS("32-63 | 1 | 0 ? | mlx5_4", "0-31 | 0 | 1 31:00.0 | mlx5_2"));
}

/* ---- what NVIDIA's driver tells: UUIDs, and device nodes that a cgroup may close ------------------------------------------------------------- */

static void write_file(const char *text, const char *format, ...)
{
    char path[512], *slash;
    va_list args;
    va_start(args, format);
    vsnprintf(path, sizeof path, format, args);
    va_end(args);
    for (slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void driver(void **state)
{
    (void)state;
    char root[] = "/tmp/tandem-test-place-XXXXXX", text[256], command[128];
    assert_non_null(mkdtemp(root));
    const int bus[] = { 0x11, 0x21, 0x31, 0x41, 0x91, 0xa1, 0xb1, 0xc1 };
    for (int i = 0; i < 8; i++) {              /* the driver counts its nodes backwards here */
        snprintf(text, sizeof text, "Model: \t\t NVIDIA H200\nIRQ:   \t\t 120\nGPU UUID: \t GPU-%d1111111-2222-3333-4444-555555555555\nDevice Minor: \t %d\n", i, 7 - i);
        write_file(text, "%s/proc/driver/nvidia/gpus/0000:%02x:00.0/information", root, bus[i]);
        write_file("", "%s/dev/nvidia%d", root, 7 - i);
    }
    machine m = { EIGHT, EIGHT_DEVICES, .root = root, .visible = "GPU-71111111-2222-3333-4444-555555555555,GPU-0" };
    expect(&m, 2, 16, ROWS("32-63 | 1 | 0 c1:00.0 | mlx5_7", "0-31 | 0 | 1 11:00.0 | mlx5_0"));
    m.visible = NULL;
    for (int i = 0; i < 6; i++) {              /* Slurm left two GPUs to this job: the last but one of each socket's four */
        snprintf(text, sizeof text, "%s/dev/nvidia%d", root, 7 - (int[]){ 0, 1, 3, 4, 5, 7 }[i]);
        unlink(text);
    }
    expect(&m, 2, 16, ROWS("0-31 | 0 | 0 31:00.0 | mlx5_2", "32-63 | 1 | 1 b1:00.0 | mlx5_6"));
    m.visible = "0,1";                         /* so Slurm numbers them */
    expect(&m, 2, 16, ROWS("0-31 | 0 | 0 31:00.0 | mlx5_2", "32-63 | 1 | 1 b1:00.0 | mlx5_6"));
    expect(&m, 3, 10, ROWS("0-19 | 0 | - | mlx5_0", "20-41 | 0-1 | - | mlx5_1", "42-63 | 1 | - | mlx5_4"));
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    assert_int_equal(system(command), 0);
}

/* ---- other machines ------------------------------------------------------------------------------------------------------------------------------ */

static void one_socket_two_nodes(void **state)
{
    (void)state;                               /* sub-NUMA clustering: two nodes and 12 cores in one package */
    machine m = { "pack:1 group:2 [numa(memory=64GB)] core:6 pu:1", "0:10=g 1:20=gn 1:30=g" };
    expect(&m, 3, 3, ROWS("0-5 | 0 | 0 11:00.0 | mlx5_0", "6-8 | 1 | 1 21:00.0 | mlx5_0", "9-11 | 1 | 2 31:00.0 | mlx5_0"));
    m.device = "cpu";
    expect(&m, 4, 3, ROWS("0-2 | 0 | - | mlx5_0", "3-5 | 0 | - | mlx5_0", "6-8 | 1 | - | mlx5_0", "9-11 | 1 | - | mlx5_0"));
}

static void all_at_one_socket(void **state)
{
    (void)state;
    machine m = { "pack:2 [numa(memory=64GB)] core:8 pu:1", "1:80=gg 1:90=gg" };
    expect(&m, 4, 2, ROWS("8-9 | 1 | 0 81:00.0 | -", "10-11 | 1 | 1 82:00.0 | -", "12-13 | 1 | 2 91:00.0 | -", "14-15 | 1 | 3 92:00.0 | -"));
}

static void uneven_cores(void **state)
{
    (void)state;                               /* the cgroup leaves 3 cores of the first socket and 5 of the second */
    machine m = { "pack:2 [numa(memory=64GB)] core:8 pu:1", "0:10=g 1:80=gg", .allowed = "1-3,8-9,12-14" };
    expect(&m, 2, 3, ROWS("1-3 | 0 | 0 11:00.0 | -", "8-9,12-14 | 1 | 1 81:00.0 | -"));
    expect(&m, 3, 2, ROWS("1-3 | 0 | 0 11:00.0 | -", "8-9 | 1 | 1 81:00.0 | -", "12-14 | 1 | 2 82:00.0 | -"));
    machine odd = { "pack:3 [numa(memory=64GB)] core:3 pu:1", "" };
    expect(&odd, 2, 4, ROWS("0-3 | 0-1 | - | -", "4-8 | 1-2 | - | -"));
}

static void cores_elsewhere(void **state)
{
    (void)state;
    /* only the first socket's cores are ours: ranks whose GPU is at the other share them */
    machine m = { EIGHT, EIGHT_DEVICES, .allowed = "0-31" };
    expect(&m, 8, 2, ROWS("0-3 | 0 | 0 11:00.0 | mlx5_0", "4-7 | 0 | 1 21:00.0 | mlx5_1", "8-11 | 0 | 2 31:00.0 | mlx5_2", "12-15 | 0 | 3 41:00.0 | mlx5_3",
                          "16-19 | 0 | 4 91:00.0 | mlx5_4", "20-23 | 0 | 5 a1:00.0 | mlx5_5", "24-27 | 0 | 6 b1:00.0 | mlx5_6",
                          "28-31 | 0 | 7 c1:00.0 | mlx5_7"));
    /* one core at the first two GPUs, four at the others: the first socket's ranks may go anywhere, and nobody has two others' cores */
    machine few = { "pack:2 [numa(memory=64GB)] core:4 pu:1", "0:10=gg 1:80=gg", .allowed = "3,4-7" };
    expect(&few, 4, 1, ROWS("3 | 0 | 0 11:00.0 | -", "6-7 | 1 | 1 12:00.0 | -", "4 | 1 | 2 81:00.0 | -", "5 | 1 | 3 82:00.0 | -"));
    /* not known where the GPU is (a virtual machine): what the others leave */
    machine lost = { "pack:2 [numa(memory=64GB)] core:4 pu:1", "0:10=g m:80=g" };
    expect(&lost, 2, 4, ROWS("0-3 | 0 | 0 11:00.0 | -", "4-7 | 1 | 1 81:00.0 | -"));
}

static void hyper_threads(void **state)
{
    (void)state;                               /* as Linux numbers them: the second thread of core i is i + 8; one core has one thread left */
    machine m = { "pack:2 [numa(memory=64GB)] core:4 pu:2(indexes=0,8,1,9,2,10,3,11,4,12,5,13,6,14,7,15)", "0:10=g 1:80=g" };
    expect(&m, 2, 4, ROWS("0-3,8-11 | 0 | 0 11:00.0 | -", "4-7,12-15 | 1 | 1 81:00.0 | -"));
    m.device = "cpu";
    m.allowed = "0-7,8-14";
    expect(&m, 4, 2, ROWS("0-1,8-9 | 0 | - | -", "2-3,10-11 | 0 | - | -", "4-5,12-13 | 1 | - | -", "6-7,14 | 1 | - | -"));
}

static void one_node(void **state)
{
    (void)state;                               /* no NUMA: memory is not bound */
    machine m = { "pack:1 core:8 pu:1", "m:10=gc" };
    expect(&m, 1, 8, ROWS("0-7 | - | 0 12:00.0 | -"));       /* hwloc's CUDA part says which of the two is one */
    machine plain = { "core:4 pu:1", "m:10=ve m:20=e" };     /* a display adapter of another make is no GPU */
    expect(&plain, 2, 2, ROWS("0-1 | - | - | eth0", "2-3 | - | - | eth1"));
    expect(&plain, 5, 1, ROWS("- | - | - | eth0", "- | - | - | eth1", "- | - | - | eth0", "- | - | - | eth1", "- | - | - | eth0"));
    plain.quota = 2.5;                         /* a container: the time of two and a half cores */
    expect(&plain, 2, 1, ROWS("- | - | - | eth0", "- | - | - | eth1"));
}

static void network_devices(void **state)
{
    (void)state;
    /* the nearest is behind the GPU's own switch, though another comes first; one whose port is down is none; InfiniBand before Ethernet */
    machine m = { "pack:2 [numa(memory=64GB)] core:4 pu:1", "0:08=n 0:10=gn 1:80=dg 1:90=n 1:a0=e" };
    expect(&m, 2, 4, ROWS("0-3 | 0 | 0 11:00.0 | mlx5_1", "4-7 | 1 | 1 82:00.0 | mlx5_3"));
    machine shared = { "pack:1 [numa(memory=64GB)] core:8 pu:1", "0:10=ggnn 0:20=gg" };   /* two at one switch: one each; the rest spread */
    expect(&shared, 4, 2, ROWS("0-1 | - | 0 11:00.0 | mlx5_0", "2-3 | - | 1 12:00.0 | mlx5_1", "4-5 | - | 2 21:00.0 | mlx5_0",
                               "6-7 | - | 3 22:00.0 | mlx5_1"));
}

/* ---- any machine ------------------------------------------------------------------------------------------------------------------------------------ */

/* Whatever the machine: everybody has a core, nobody another's, no core is cut in two, none that is not allowed, none is left over while all may have
 * it, threads are the poorest rank's cores. */
static void invariants(void **state)
{
    (void)state;
    uint32_t seed = 12345;
    for (int round = 0; round < 300; round++) {
        int number[8];
        for (int i = 0; i < 8; i++)
            number[i] = (int)((seed = seed * 1664525u + 1013904223u) >> 16);
        char processors[96], devices[256] = "";
        int packs = 1 + number[0] % 3, cores = 1 + number[1] % 6, threads = 1 + number[2] % 2, gpus = number[3] % 9, all = packs * cores;
        snprintf(processors, sizeof processors, "pack:%d [numa(memory=1GB)] core:%d pu:%d", packs, cores, threads);
        for (int g = 0; g < gpus; g++) {
            char word[32], node[8] = "m";
            int at = (number[4] >> g) % (packs + 1);
            if (at < packs)
                snprintf(node, sizeof node, "%d", at);
            snprintf(word, sizeof word, "%s:%x=g ", node, 0x10 + 8 * g);
            strcat(devices, word);
        }
        machine m = { processors, devices };
        hwloc_topology_t topology = load(processors, devices);
        hwloc_bitmap_t allowed = td__cores_allowed(topology), seen = hwloc_bitmap_alloc();
        for (int i = 0; i < all * threads; i++)
            if (number[5] % 3 == 0 && (number[6] + i * 7) % 5 == 0 && hwloc_bitmap_weight(allowed) > 1)
                hwloc_bitmap_clr(allowed, (unsigned)i);
        int usable = td__cores_count(topology, allowed), ranks = 1 + number[7] % usable;
        td__gpus found;
        td__division d;
        td__gpus_find(topology, m.device, m.visible, NULL, &found);
        assert_int_equal(found.n, gpus);
        td__place(topology, allowed, 0, ranks, &found, &d);
        assert_non_null(d.set);
        int least = usable, sum = 0;
        for (int r = 0; r < ranks; r++) {
            assert_true(hwloc_bitmap_isincluded(d.set[r], allowed) && !hwloc_bitmap_intersects(d.set[r], seen));
            assert_int_equal(td__cores_count(topology, d.set[r]), d.seat[r].cores);
            least = d.seat[r].cores < least ? d.seat[r].cores : least;
            sum += d.seat[r].cores;
            hwloc_bitmap_or(seen, seen, d.set[r]);
        }
        assert_true(least >= 1 && d.threads == least);
        assert_int_equal(td__cores_count(topology, seen), sum);               /* no core is cut in two */
        if (ranks > gpus)
            assert_int_equal(sum, usable);
        td__division_free(&d);
        hwloc_bitmap_free(allowed);
        hwloc_bitmap_free(seen);
        hwloc_topology_destroy(topology);
    }
}

/* ---- this process: words, environment, memory ----------------------------------------------------------------------------------------------------- */

static void described_machine(void **state)
{
    (void)state;
    char path[] = "/tmp/tandem-test-place-XXXXXX", text[256], error[256];
    char *xml = machine_xml(EIGHT, EIGHT_DEVICES);
    int fd = mkstemp(path);
    assert_int_equal(write(fd, xml, strlen(xml)), (ssize_t)strlen(xml));
    close(fd);
    free(xml);
    unsetenv("CUDA_VISIBLE_DEVICES");
    unsetenv("TANDEM_DEVICE");
    setenv("HWLOC_XMLFILE", path, 1);
    td__division d;
    td__place_here(8, true, &d);               /* not this machine: threads and what is near are known, nothing is bound */
    assert_true(!d.set && !d.nodes && d.threads == 4 && d.seat[5].gpu == 5);
    assert_string_equal(td__place_text(&d, 5, text, sizeof text), "not bound, GPU 5 at 0000:a1:00.0, mlx5_5");
    td__division_free(&d);
    assert_int_equal(td__place_ranks("gpu", error, sizeof error), 8);
    assert_int_equal(td__place_ranks("auto", error, sizeof error), 8);
    assert_int_equal(td__place_ranks("cpu", error, sizeof error), 32);
    setenv("CUDA_VISIBLE_DEVICES", "1,2", 1);
    assert_int_equal(td__place_ranks("auto", error, sizeof error), 2);
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    assert_int_equal(td__place_ranks("auto", error, sizeof error), 32);
    assert_int_equal(td__place_ranks("gpu", error, sizeof error), 0);
    assert_string_equal(error, "no GPU can be used here (CUDA_VISIBLE_DEVICES is set): say a number of ranks, auto or cpu");
    assert_int_equal(td__place_ranks("all", error, sizeof error), 0);
    assert_string_equal(error, "\"all\" is no number of ranks: expected a number, auto, gpu or cpu");
    unsetenv("CUDA_VISIBLE_DEVICES");
    unsetenv("HWLOC_XMLFILE");
    unlink(path);
}

static void in_words(void **state)
{
    (void)state;
    hwloc_topology_t topology;
    td__division d;
    char text[256], little[24];
    machine m = { EIGHT, EIGHT_DEVICES };
    divide(&m, 8, &topology, &d);
    assert_string_equal(td__place_text(&d, 6, text, sizeof text), "processors 48-55 (4 cores), node 1, GPU 6 at 0000:b1:00.0, mlx5_6");
    assert_string_equal(td__place_text(&d, 6, little, sizeof little), "processors 48-55 (4 cor");
    td__division_free(&d);
    hwloc_topology_destroy(topology);
    machine small = { "core:2 pu:1", "" };
    divide(&small, 2, &topology, &d);
    assert_string_equal(td__place_text(&d, 1, text, sizeof text), "processor 1 (1 core)");
    td__division_free(&d);
    hwloc_topology_destroy(topology);
}

/* Containers may forbid the system call; then there is nothing to see. */
static void memory(void **state)
{
    (void)state;
    if (syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0) != 0)
        skip();
    pid_t child = fork();
    if (child == 0) {
        td__membind bind;
        int mode = -1;
        unsigned long mask[16] = { 0 };
        hwloc_bitmap_t node = hwloc_bitmap_alloc();
        td__membind_make(NULL, &bind);
        td__membind_apply(&bind);
        if (!td__membind_free())
            _exit(1);
        hwloc_bitmap_set(node, 0);
        td__membind_make(node, &bind);
        td__membind_apply(&bind);
        if (syscall(SYS_get_mempolicy, &mode, mask, 1024, NULL, 0) != 0 || mode != MPOL_PREFERRED || mask[0] != 1 || td__membind_free())
            _exit(2);
        hwloc_bitmap_set(node, 70);            /* the mask itself, beyond one word */
        td__membind_make(node, &bind);
        _exit(bind.nodes == 2 && bind.mask[0] == 1 && bind.mask[1] == 1ul << 6 ? 0 : 3);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eight_gpus), cmocka_unit_test(more_ranks_than_gpus), cmocka_unit_test(visible_gpus), cmocka_unit_test(driver),
        cmocka_unit_test(one_socket_two_nodes), cmocka_unit_test(all_at_one_socket), cmocka_unit_test(uneven_cores), cmocka_unit_test(cores_elsewhere),
        cmocka_unit_test(hyper_threads), cmocka_unit_test(one_node), cmocka_unit_test(network_devices), cmocka_unit_test(invariants),
        cmocka_unit_test(described_machine), cmocka_unit_test(in_words), cmocka_unit_test(memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
