/* launcher/engine_mpirun.c: agents by Open MPI's mpirun.
 *
 * Debian's mpirun.openmpi first, because another MPI may own plain mpirun. Ranks fill host after host, so that those of a host are
 * neighbours; cores are ours to divide, so mpirun binds nothing; slots have been checked by plan.c, so it does not count cores.
 * The keepalives end its daemons within seconds of a cut link; its defaults take five minutes. How it reaches the hosts (ssh, another
 * agent, which interfaces) is the user's business: OMPI_MCA_* in the environment is mpirun's own and passes by itself.
 *
 * Secrets go by -x, that is within the message with which mpirun's daemons are told what to start, over their own connections: names
 * stand on the command line, values never. On the hosts the value is in the environment of the user's own processes, which only
 * the user and root can read, as with any launcher.
 */
#include "across.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Open MPI's options mean nothing to another MPI's mpirun. */
static bool is_openmpi(const char *program)
{
    char command[64], line[256] = "";
    snprintf(command, sizeof command, "%s --version 2>&1", program);
    FILE *f = popen(command, "re");
    bool found = f && fgets(line, sizeof line, f) && strstr(line, "Open MPI");
    if (f)
        pclose(f);
    return found;
}

static void add_hosts(const td__run_options *o, td__words *w)
{
    td__words_add(w, "--host");
    td__words_add(w, "%s:%d", o->hosts.host[0].name, o->hosts.host[0].slots);
    for (int i = 1; i < o->hosts.count; i++)
        td__words_append(w, ",%s:%d", o->hosts.host[i].name, o->hosts.host[i].slots);
}

static void add_variables(const td__run_options *o, td__words *w)
{
    static const char *const always[] = { "TANDEM_STORE", "TANDEM_SECRET" }, *const ours[] = { "TANDEM_", "NCCL_", "OMP_" };
    for (size_t i = 0; i < TD_COUNT(always); i++) {
        td__words_add(w, "-x");
        td__words_add(w, "%s", always[i]);
    }
    for (char **e = environ; *e; e++) {
        size_t n = strcspn(*e, "=");
        bool goes = false;
        for (size_t i = 0; i < TD_COUNT(ours); i++)
            goes |= strncmp(*e, ours[i], strlen(ours[i])) == 0;
        for (size_t i = 0; i < TD_COUNT(always); i++)
            goes &= !(strlen(always[i]) == n && strncmp(*e, always[i], n) == 0);
        for (int i = 0; i < o->exports; i++)
            goes &= !(strlen(o->export[i]) == n && strncmp(*e, o->export[i], n) == 0);
        if (!goes)
            continue;
        td__words_add(w, "-x");
        td__words_add(w, "%.*s", (int)n, *e);
    }
    for (int i = 0; i < o->exports; i++) {
        td__words_add(w, "-x");
        td__words_add(w, "%s", o->export[i]);
    }
}

int td__engine_mpirun(const td__run_options *o, td__words *w)
{
    static const char *const keepalive[][2] = {
        { "oob_tcp_keepalive_time", "2" }, { "oob_tcp_keepalive_intvl", "1" }, { "oob_tcp_keepalive_probes", "2" },
    };
    bool debian = td__in_path("mpirun.openmpi");
    if (!debian && !td__in_path("mpirun"))
        return td__usage("run", "the engine mpirun is not there: there is neither mpirun.openmpi nor mpirun in PATH");
    if (!debian && !is_openmpi("mpirun"))
        return td__usage("run", "the mpirun in PATH is not Open MPI's, which is the one that is known here");
    td__words_add(w, debian ? "mpirun.openmpi" : "mpirun");
    td__words_add(w, "-n");
    td__words_add(w, "%d", o->ranks);
    if (o->hosts.count > 0)
        add_hosts(o, w);
    td__words_add(w, "--map-by");
    if (o->hosts.count == 0 && o->per_node)
        td__words_add(w, "ppr:%d:node", o->per_node);
    else
        td__words_add(w, "slot");
    td__words_add(w, "--oversubscribe");
    td__words_add(w, "--bind-to");
    td__words_add(w, "none");
    for (size_t i = 0; i < TD_COUNT(keepalive); i++) {
        td__words_add(w, "--mca");
        td__words_add(w, "%s", keepalive[i][0]);
        td__words_add(w, "%s", keepalive[i][1]);
    }
    add_variables(o, w);
    return 0;
}
