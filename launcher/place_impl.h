/* launcher/place_impl.h: placement from inside: what place.c asks place_near.c. */
#ifndef TD_PLACE_IMPL_H
#define TD_PLACE_IMPL_H
#include "launcher.h"

/* The processors at a device; NULL for no device. */
hwloc_const_bitmap_t td__near_processors(hwloc_topology_t topology, hwloc_obj_t device);

enum { TD_NICS_MAX = 64 };
typedef struct {
    int n;
    hwloc_obj_t device[TD_NICS_MAX];
    int taken[TD_NICS_MAX];                    /* by how many ranks                                                       */
} td__nics;
void td__nics_find(hwloc_topology_t topology, td__nics *out);   /* OpenFabrics devices; where there are none, network interfaces */
/* The nearest to the GPU, or without one to the processors. "": there is none. The topology's. */
const char *td__nics_take(hwloc_topology_t topology, td__nics *nics, hwloc_obj_t gpu, hwloc_const_bitmap_t set);

#endif
