/* launcher/place.c: who gets which cores, memory and GPU.
 *
 * A rank with a GPU may have the cores that are near it (one NUMA node, one package), any other rank all that the launcher may use. Within
 * those, ranks share evenly, in runs of neighbours, so that a rank stays within a package and a cache where that is possible. Whole cores only,
 * both hyper-threads of a core for one rank, never one core for two ranks. All ranks get the same number of threads: the slowest sets the pace,
 * and a core that does not divide evenly is only room to move. With fewer cores than ranks, or less time than cores (a container's quota),
 * binding would do harm and is left out; with fewer GPUs than ranks GPUs play no part.
 *
 * Even shares, where some ranks may have more cores than others: the sets of cores ("areas") that ranks are confined to are nodes of hwloc's
 * tree, so any two are disjoint or one holds the other. Areas are dealt one core per rank and round, as long as every area that holds them
 * has a core left; that is Hall's condition, which for nested sets is enough. Then the innermost areas choose their cores first.
 */
#include "place_impl.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    hwloc_bitmap_t cpus;                       /* allowed processors in it                                                */
    int ranks;                                 /* confined to exactly this area                                           */
    int cores;
    int dealt;                                 /* to ranks of this area …                                                 */
    int used;                                  /* … and of all within it                                                  */
} area;

typedef struct {
    hwloc_topology_t topology;
    hwloc_const_bitmap_t allowed;
    area area[TD_GPUS_MAX + 1];                /* 0: everything                                                           */
    int areas;
    int *of;                                   /* each rank's area                                                        */
} plan;

/* ---- areas --------------------------------------------------------------------------------------------------------------------------- */

static bool contains(const plan *p, int outer, int inner)
{
    return hwloc_bitmap_isincluded(p->area[inner].cpus, p->area[outer].cpus);
}

static int area_of(plan *p, hwloc_const_bitmap_t near)
{
    hwloc_bitmap_t cpus = near ? hwloc_bitmap_dup(near) : NULL;
    int cores = 0;
    if (cpus) {
        hwloc_bitmap_and(cpus, cpus, p->allowed);
        cores = td__cores_count(p->topology, cpus);
        for (int i = 0; i < p->areas; i++)
            if (cores > 0 && hwloc_bitmap_isequal(p->area[i].cpus, cpus)) {
                hwloc_bitmap_free(cpus);
                return i;
            }
    }
    if (cores == 0) {                          /* a place that is not known, or not ours: anywhere */
        hwloc_bitmap_free(cpus);
        return 0;
    }
    p->area[p->areas] = (area){ .cpus = cpus, .cores = cores };
    return p->areas++;
}

/* An area that cannot give each of its ranks a core (a cgroup that took the rest) gives its ranks up to everything. */
static void widen(plan *p, int ranks)
{
    for (bool again = true; again;) {
        again = false;
        for (int a = 1; a < p->areas && !again; a++) {
            int wanted = 0;
            for (int b = 0; b < p->areas; b++)
                wanted += contains(p, a, b) ? p->area[b].ranks : 0;
            if (!(again = wanted > p->area[a].cores))
                continue;
            for (int r = 0; r < ranks; r++)
                if (p->of[r] != 0 && contains(p, a, p->of[r])) {
                    p->area[p->of[r]].ranks--;
                    p->area[0].ranks++;
                    p->of[r] = 0;
                }
        }
    }
}

static bool deal_one(plan *p, int a)
{
    for (int b = 0; b < p->areas; b++)
        if (contains(p, b, a) && p->area[b].used == p->area[b].cores)
            return false;
    for (int b = 0; b < p->areas; b++)
        p->area[b].used += contains(p, b, a);
    p->area[a].dealt++;
    return true;
}

static void deal(plan *p)
{
    for (bool any = true; any;) {
        any = false;
        for (int a = 0; a < p->areas; a++)
            for (int i = 0; i < p->area[a].ranks; i++)
                any |= deal_one(p, a);
    }
}

/* ---- cores ------------------------------------------------------------------------------------------------------------------------------ */

/* Ranks of one area, in their order, take runs of the cores in it that are still free. */
static void choose(plan *p, int a, int ranks, hwloc_bitmap_t taken, td__division *out)
{
    const area *from = &p->area[a];
    hwloc_obj_type_t type = td__cores_type(p->topology);
    hwloc_obj_t core = NULL;
    hwloc_bitmap_t part = hwloc_bitmap_alloc();
    for (int r = 0, nth = 0; part && r < ranks; r++) {
        if (p->of[r] != a)
            continue;
        int share = (int)((int64_t)(nth + 1) * from->dealt / from->ranks - (int64_t)nth * from->dealt / from->ranks);
        nth++;
        while (out->seat[r].cores < share && (core = hwloc_get_next_obj_by_type(p->topology, type, core))) {
            hwloc_bitmap_and(part, core->cpuset, from->cpus);
            if (hwloc_bitmap_iszero(part) || hwloc_bitmap_intersects(part, taken))
                continue;
            hwloc_bitmap_or(out->set[r], out->set[r], part);
            hwloc_bitmap_or(taken, taken, part);
            out->seat[r].cores++;
        }
    }
    hwloc_bitmap_free(part);
}

static void choose_all(plan *p, int ranks, td__division *out)
{
    bool done[TD_GPUS_MAX + 1] = { false };
    hwloc_bitmap_t taken = hwloc_bitmap_alloc();
    for (int i = 0; taken && i < p->areas; i++) {
        int least = -1;
        for (int a = 0; a < p->areas; a++)
            if (!done[a] && (least < 0 || p->area[a].cores < p->area[least].cores))
                least = a;
        done[least] = true;
        choose(p, least, ranks, taken, out);
    }
    hwloc_bitmap_free(taken);
}

/* ---- the whole -------------------------------------------------------------------------------------------------------------------------- */

static int at_least_one(int n)
{
    return n > 0 ? n : 1;
}

static hwloc_bitmap_t *sets_new(int n)
{
    hwloc_bitmap_t *set = calloc((size_t)n, sizeof *set);
    for (int i = 0; set && i < n; i++)
        if (!(set[i] = hwloc_bitmap_alloc())) {
            while (i-- > 0)
                hwloc_bitmap_free(set[i]);
            free(set);
            return NULL;
        }
    return set;
}

static void sets_free(hwloc_bitmap_t **set, int n)
{
    for (int i = 0; *set && i < n; i++)
        hwloc_bitmap_free((*set)[i]);
    free(*set);
    *set = NULL;
}

/* The GPU that td_init will give to the rank; -1: none. */
static int gpu_of(const td__gpus *gpus, int rank, int ranks)
{
    if (!gpus || gpus->n == 0)
        return -1;
    if (gpus->every >= 0)
        return gpus->every < gpus->n ? gpus->every : -1;
    return ranks <= gpus->n ? rank : -1;
}

static void divide(plan *p, td__division *out)
{
    if (!(out->set = sets_new(out->ranks)))
        return;
    widen(p, out->ranks);
    deal(p);
    choose_all(p, out->ranks, out);
    int least = out->cores;
    for (int r = 0; r < out->ranks; r++)
        least = out->seat[r].cores < least ? out->seat[r].cores : least;
    out->threads = at_least_one(least);
    if (hwloc_get_nbobjs_by_type(p->topology, HWLOC_OBJ_NUMANODE) < 2 || !(out->nodes = sets_new(out->ranks)))
        return;
    for (int r = 0; r < out->ranks; r++) {
        hwloc_cpuset_to_nodeset(p->topology, out->set[r], out->nodes[r]);
        hwloc_bitmap_and(out->nodes[r], out->nodes[r], hwloc_topology_get_allowed_nodeset(p->topology));
    }
}

static void seat_devices(plan *p, const td__gpus *gpus, td__division *out)
{
    td__nics nics;
    td__nics_find(p->topology, &nics);
    for (int r = 0; r < out->ranks; r++) {
        td__seat *seat = &out->seat[r];
        seat->gpu = gpu_of(gpus, r, out->ranks);
        hwloc_obj_t pci = seat->gpu >= 0 ? gpus->pci[seat->gpu] : NULL;
        if (pci) {
            const struct hwloc_pcidev_attr_s *at = &pci->attr->pcidev;
            snprintf(seat->gpu_bus, sizeof seat->gpu_bus, "%04x:%02x:%02x.%x", at->domain & 0xffff, at->bus, at->dev & 0xff, at->func & 0xf);
        }
        snprintf(seat->nic, sizeof seat->nic, "%s", td__nics_take(p->topology, &nics, pci, out->set ? out->set[r] : p->allowed));
    }
}

void td__place(hwloc_topology_t topology, hwloc_const_bitmap_t allowed, double quota, int ranks, const td__gpus *gpus, td__division *out)
{
    plan p = { .topology = topology, .allowed = allowed, .areas = 1 };
    int cores = td__cores_count(topology, allowed);
    *out = (td__division){ .cores = cores, .quota = quota, .ranks = ranks, .threads = at_least_one(cores / ranks) };
    p.of = calloc((size_t)ranks, sizeof *p.of);
    p.area[0] = (area){ .cpus = hwloc_bitmap_dup(allowed), .cores = cores };
    out->seat = calloc((size_t)ranks, sizeof *out->seat);
    if (p.of && p.area[0].cpus && out->seat) {
        for (int r = 0; r < ranks; r++) {
            int gpu = gpu_of(gpus, r, ranks);
            p.of[r] = area_of(&p, gpu >= 0 ? td__near_processors(topology, gpus->pci[gpu]) : NULL);
            p.area[p.of[r]].ranks++;
        }
        if (quota > 0 && quota < cores)
            out->threads = at_least_one((int)(quota / ranks));
        else if (cores >= ranks)
            divide(&p, out);
        seat_devices(&p, gpus, out);
    }
    for (int a = 0; a < p.areas; a++)
        hwloc_bitmap_free(p.area[a].cpus);
    free(p.of);
}

void td__division_unbind_memory(td__division *division)
{
    sets_free(&division->nodes, division->ranks);
}

void td__division_unbind(td__division *division)
{
    sets_free(&division->set, division->ranks);
    td__division_unbind_memory(division);
}

void td__division_free(td__division *division)
{
    td__division_unbind(division);
    free(division->seat);
    division->seat = NULL;
}
