/* launcher/map.c: who is where: the hosts' numbers, and the map that is shown at the start of a job across hosts.
 */
#include "across.h"
#include <stdio.h>
#include <string.h>

int td__map_hosts(const td__hello *hello, int size, int32_t *node_rank)
{
    int hosts = 0;
    for (int r = 0; r < size; r++) {
        node_rank[r] = -1;
        for (int k = r - 1; k >= 0 && node_rank[r] < 0; k--)   /* neighbours first: mostly the one before */
            if (strcmp(hello[k].host, hello[r].host) == 0)
                node_rank[r] = node_rank[k];
        if (node_rank[r] < 0)
            node_rank[r] = hosts++;
    }
    return hosts;
}

void td__map_say(const td__hello *hello, const int32_t *node_rank, int size, int hosts)
{
    td__lines_say("%d rank%s on %d host%s", size, size == 1 ? "" : "s", hosts, hosts == 1 ? "" : "s");
    for (int h = 0; h < hosts; h++)
        for (int r = 0; r < size; r++)
            if (node_rank[r] == h)
                td__lines_say("  host %d, %s (%s): rank %d, %s", h, hello[r].host, hello[r].address, r, hello[r].binding);
}
