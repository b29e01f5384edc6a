/* launcher/engine_srun.c: agents by Slurm's srun, within an allocation.
 *
 * With PMIx where Slurm offers it, so that ranks can use MPI; without, the head's store is all that they need to meet. Cores are ours
 * to divide among those that Slurm grants, so srun binds nothing. --wait=0: a rank that has ended early is no reason to end the others.
 * srun hands its whole environment on through Slurm's own authenticated messages: secrets stand on no command line.
 */
#include "across.h"
#include <stdio.h>
#include <string.h>

static bool offers_pmix(void)
{
    char line[256];
    bool found = false;
    FILE *f = popen("srun --mpi=list 2>&1", "re");
    while (f && fgets(line, sizeof line, f)) {
        const char *word = line + strspn(line, " \t");
        found |= strncmp(word, "pmix", 4) == 0 && (word[4] == '\n' || word[4] == '\0' || word[4] == ' ');
    }
    if (f)
        pclose(f);
    return found;
}

static void add_hosts(const td__run_options *o, td__words *w)
{
    td__words_add(w, "--nodelist=%s", o->hosts.host[0].name);
    for (int i = 1; i < o->hosts.count; i++)
        td__words_append(w, ",%s", o->hosts.host[i].name);
}

int td__engine_srun(const td__run_options *o, td__words *w)
{
    if (!td__in_path("srun"))
        return td__usage("run", "the engine srun is not there: there is no srun in PATH");
    td__words_add(w, "srun");
    td__words_add(w, "--ntasks=%d", o->ranks);
    if (o->nodes)
        td__words_add(w, "--nodes=%d", o->nodes);
    if (o->per_node)
        td__words_add(w, "--ntasks-per-node=%d", o->per_node);
    if (o->hosts.count)
        add_hosts(o, w);
    if (offers_pmix())
        td__words_add(w, "--mpi=pmix");
    td__words_add(w, "--distribution=block");  /* ranks of a host are neighbours */
    td__words_add(w, "--kill-on-bad-exit=1");
    td__words_add(w, "--wait=0");
    td__words_add(w, "--cpu-bind=none");
    td__words_add(w, "--input=0");
    td__words_add(w, "--export=ALL");
    return 0;
}
