/* launcher/address.c: the one address of this machine that the job's hosts reach, where the head's store is bound.
 *
 * The system is asked which of our addresses it would send from to each host (a UDP socket that is connected sends nothing). When all
 * hosts are this machine, that is the loopback address and the store is not to be reached from outside; else the one that other hosts see,
 * which this machine itself reaches too. --master-addr says it instead, for hosts whose names only ssh knows.
 */
#include "across.h"
#include <nodelist.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool is_loopback(const char *address)
{
    return strncmp(address, "127.", 4) == 0 || strcmp(address, "::1") == 0;
}

/* The address from which we reach `host`; false with the reason. */
static bool address_toward(const char *host, char *into, size_t size, char *why, size_t why_size)
{
    struct addrinfo hints = { .ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICSERV }, *found = NULL;
    int error = getaddrinfo(host, "9", &hints, &found);
    bool known = false;
    if (error)
        snprintf(why, why_size, "%s", error == EAI_SYSTEM ? strerror(errno) : gai_strerror(error));
    for (struct addrinfo *a = error ? NULL : found; a && !known; a = a->ai_next) {
        struct sockaddr_storage ours;
        socklen_t length = sizeof ours;
        int fd = socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        known = fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) == 0 && getsockname(fd, (struct sockaddr *)&ours, &length) == 0 &&
                getnameinfo((struct sockaddr *)&ours, length, into, (socklen_t)size, NULL, 0, NI_NUMERICHOST) == 0;
        if (!known)
            snprintf(why, why_size, "%s", strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    if (!error)
        freeaddrinfo(found);
    return known;
}

static int toward_hosts(char *const *name_of, size_t n, char *into, size_t size)
{
    char one[256], why[256], other[256] = "", other_host[256] = "";
    into[0] = '\0';
    for (size_t i = 0; i < n; i++) {
        const char *name = name_of[i];
        if (!address_toward(name, one, sizeof one, why, sizeof why)) {
            fprintf(stderr, "tandem run: host %s cannot be found from here (%s): say an address of this machine that the hosts reach, with "
                    "--master-addr\n", name, why);
            return 1;
        }
        if (!is_loopback(one) && other[0] && strcmp(one, other) != 0) {
            fprintf(stderr, "tandem run: host %s is reached from %s and host %s from %s: say which address of this machine all hosts reach, "
                    "with --master-addr\n", other_host, other, name, one);
            return 1;
        }
        if (!is_loopback(one)) {
            snprintf(other, sizeof other, "%s", one);
            snprintf(other_host, sizeof other_host, "%s", name);
        }
    }
    snprintf(into, size, "%s", other[0] ? other : "127.0.0.1");
    return 0;
}

static int toward_slurm(const char *list, char *into, size_t size)
{
    char why[300];
    td__nodes nodes;
    if (td__nodelist(list, &nodes, why, sizeof why) != 0) {
        fprintf(stderr, "tandem run: SLURM_JOB_NODELIST: %s\n", why);
        return 1;
    }
    int status = toward_hosts(nodes.name, nodes.n, into, size);
    td__nodelist_free(&nodes);
    return status;
}

int td__address_for(const td__run_options *o, char *into, size_t size)
{
    const char *list = td__getenv("SLURM_JOB_NODELIST");
    if (o->master_addr) {
        snprintf(into, size, "%s", o->master_addr);
        return 0;
    }
    if (o->hosts.count == 0 && list && *list)
        return toward_slurm(list, into, size);
    char **names = calloc((size_t)o->hosts.count + 1, sizeof *names);
    for (int i = 0; names && i < o->hosts.count; i++)
        names[i] = o->hosts.host[i].name;
    int status = names ? toward_hosts(names, (size_t)o->hosts.count, into, size) : 1;
    free(names);
    return status;
}
