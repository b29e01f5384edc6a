/* bench/scaling/trace.c: a training step's communication as a trace that SimGrid replays (smpirun -replay).
 *
 *     trace PLAN FOLDER --hosts H --ranks R --algorithm ring|hier|halving --gbits G --forward MS --backward MS --optimizer MS
 *           [--latency US] [--inside GB/S] [--slice BYTES] [--slots N] [--fold K]
 *
 * PLAN is what `plan` prints: buckets, and when each is ready. Times of the step are said here, since they are another machine's. The steps between hosts are
 * those that comm/schedule.c makes for the library's own executor.
 *
 * A rank is two processes of the simulation on one host, as it is two threads in life: one computes and says when a bucket is ready, the other carries out the
 * bucket's list of steps. With `ring` every rank is simulated. With `hier` and `halving` the R ranks of a host are one: their lanes send at the same time and share
 * the host's link, which is one message of all their bytes, and what they do within the host is time, bytes/(GB/s of --inside), before and behind it.
 *
 * --fold: of a ring only the first K hosts are simulated, and the last of them sends to the first. All hosts of a ring do the same at the same time, each over its own
 * link, so K of them take the time of all; `run.py check` compares. K divides H.
 *
 * FOLDER gets platform.xml, hosts, index and a file for each process. Hosts have one link of G Gbit/s each way to a switch that is never full.
 */
#include <errno.h>
#include <getopt.h>
#include <schedule.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <tandem/error.h>

enum { MAX_BUCKETS = 256, BYTE_TYPE = 6, LINE = 64, LETTER = 128, READY_TAG = 1, DONE_TAG = 2, FIRST_TAG = 16 };
static const double SPEED = 1e9;               /* operations a second of a simulated core: all computing is said in seconds           */

static struct {
    const char *plan, *folder;
    long hosts, ranks, slice, slots, fold;
    td__algorithm algorithm;
    double gbits, forward, backward, optimizer, latency, inside;
    int buckets;
    struct { long long bytes; double ready; } bucket[MAX_BUCKETS];
} o = { .ranks = 1, .slice = 1 << 20, .slots = 4, .latency = 2.5, .inside = 200 };

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "trace: %s: %s\n", what, why);
    exit(1);
}

static FILE *create(const char *name)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", o.folder, name);
    FILE *f = fopen(path, "w");
    if (!f)
        fail(path, strerror(errno));
    return f;
}

static void read_plan(void)
{
    char line[200];
    FILE *f = fopen(o.plan, "r");
    if (!f)
        fail(o.plan, strerror(errno));
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, "bucket ", 7) != 0)
            continue;
        if (o.buckets == MAX_BUCKETS || sscanf(line, "bucket %lld %lf", &o.bucket[o.buckets].bytes, &o.bucket[o.buckets].ready) != 2)
            fail(o.plan, "a line is not \"bucket BYTES READY\", or there are more than 256");
        o.buckets++;
    }
    fclose(f);
    if (!o.buckets)
        fail(o.plan, "there is no bucket in it");
}

/* ---- one process's file ------------------------------------------------------------------------------------------------------------------------------ */

typedef struct {
    FILE *f;
    int me;                                    /* this process                                                                    */
    int *sent, *received;                      /* messages to and from each unit: their numbers are the tags                         */
} writer;

static int units;                              /* simulated: ranks, or hosts where a host's ranks are one                          */

static int compute_of(int unit) { return 2 * unit; }
static int comm_of(int unit) { return 2 * (unit % units) + 1; }

static void compute(writer *w, double seconds)
{
    if (seconds > 0)
        fprintf(w->f, "%d compute %.0f\n", w->me, seconds * SPEED);
}

static void write_computing(int unit)
{
    char name[40];
    snprintf(name, sizeof name, "%d", compute_of(unit));
    writer w = { .f = create(name), .me = compute_of(unit) };
    double at = -o.forward;
    fprintf(w.f, "%d init\n", w.me);
    for (int b = 0; b < o.buckets; b++) {
        compute(&w, o.bucket[b].ready * o.backward - at);
        at = o.bucket[b].ready * o.backward > at ? o.bucket[b].ready * o.backward : at;
        fprintf(w.f, "%d isend %d %d 1 %d\n", w.me, comm_of(unit), READY_TAG, BYTE_TYPE);
    }
    compute(&w, o.backward - at);
    fprintf(w.f, "%d recv %d %d 1 %d\n", w.me, comm_of(unit), DONE_TAG, BYTE_TYPE);
    compute(&w, o.optimizer);
    fprintf(w.f, "%d finalize\n", w.me);
    fclose(w.f);
}

/* ---- a list of steps as the executor goes through it --------------------------------------------------------------------------------------------------- */

typedef struct {
    const td__schedule *list;
    int *tag;                                  /* of each SEND and RECV                                                            */
    int next, under_way;                       /* RECV to be started; started and not waited for                                     */
    int sends_waited;                          /* all SENDs before this step are                                                  */
} progress;

static void wait_for_sends(writer *w, progress *p, int up_to)
{
    for (; p->sends_waited <= up_to; p->sends_waited++) {
        const td__step *s = &p->list->step[p->sends_waited];
        if (s->kind == TD_STEP_SEND)
            fprintf(w->f, "%d wait %d %d %d\n", w->me, w->me, comm_of(s->peer), p->tag[p->sends_waited]);
    }
}

/* Starts receives as far ahead as slots and memory allow. `at`: the step that is about to be carried out. */
static void post(writer *w, progress *p, int at)
{
    for (; p->next < p->list->count && (p->under_way < o.slots || p->next <= at); p->next++) {
        const td__step *s = &p->list->step[p->next];
        if (s->kind != TD_STEP_RECV)
            continue;
        bool sends = s->after >= 0 && p->list->step[s->after].kind == TD_STEP_SEND && s->after >= p->sends_waited;
        if ((s->after >= at || sends) && p->next > at)
            return;
        if (sends)
            wait_for_sends(w, p, s->after);
        fprintf(w->f, "%d irecv %d %d %lld %d\n", w->me, comm_of(s->peer), p->tag[p->next], (long long)s->n, BYTE_TYPE);
        p->under_way++;
    }
}

static void write_list(writer *w, const td__schedule *list)
{
    progress p = { .list = list, .tag = calloc((size_t)list->count + 1, sizeof *p.tag) };
    for (int i = 0; i < list->count && p.tag; i++) {
        const td__step *s = &list->step[i];
        if (s->kind == TD_STEP_SEND)
            p.tag[i] = FIRST_TAG + w->sent[s->peer % units]++;
        else if (s->kind == TD_STEP_RECV)
            p.tag[i] = FIRST_TAG + w->received[s->peer % units]++;
    }
    for (int i = 0; i < list->count && p.tag; i++) {
        const td__step *s = &list->step[i];
        post(w, &p, i);
        if (s->kind == TD_STEP_SEND)
            fprintf(w->f, "%d isend %d %d %lld %d\n", w->me, comm_of(s->peer), p.tag[i], (long long)s->n, BYTE_TYPE);
        else if (s->kind == TD_STEP_RECV) {
            fprintf(w->f, "%d wait %d %d %d\n", w->me, comm_of(s->peer), w->me, p.tag[i]);
            p.under_way--;
        } else if (s->kind == TD_STEP_COMBINE || s->kind == TD_STEP_COPY) {
            compute(w, (double)s->n / (o.inside * 1e9));
        }
    }
    wait_for_sends(w, &p, list->count - 1);
    free(p.tag);
}

static void message(writer *w, const char *call, int peer, bool send, long long bytes)
{
    int p = peer % units;
    fprintf(w->f, "%d %s %d %d %lld %d\n", w->me, call, comm_of(p), FIRST_TAG + (send ? w->sent[p]++ : w->received[p]++), bytes, BYTE_TYPE);
}

/* How every collective begins (comm/comm_hier_agree.c): the hosts' first ranks exchange letters in log2 H rounds, the others of their host wait for them. */
static void write_agreement(writer *w, int unit, const td__layout *layout)
{
    int host = layout->host[unit], first = layout->member[layout->first[host]], mates = layout->first[host + 1] - layout->first[host];
    for (int far = 1; unit == first && far < layout->hosts; far *= 2) {
        int to = layout->member[layout->first[(host + far) % layout->hosts]], from = layout->member[layout->first[(host + layout->hosts - far) % layout->hosts]];
        if (to % units == unit) {              /* folded: to a host that this one stands for                                       */
            compute(w, 2 * o.latency * 1e-6);
            continue;
        }
        message(w, "isend", to, true, LETTER);
        message(w, "recv", from, false, LETTER);
    }
    for (int i = 1; i < mates; i++)
        if (unit == first)
            message(w, "isend", layout->member[layout->first[host] + i], true, 1);
    if (unit != first)
        message(w, "recv", first, false, 1);
}

static void write_communication(int unit, const td__layout *layout)
{
    char name[40];
    snprintf(name, sizeof name, "%d", comm_of(unit));
    writer w = { .f = create(name), .me = comm_of(unit), .sent = calloc((size_t)layout->ranks, sizeof *w.sent),
                 .received = calloc((size_t)layout->ranks, sizeof *w.received) };
    bool lanes = o.algorithm != TD_ALGORITHM_RING;
    fprintf(w.f, "%d init\n", w.me);
    for (int b = 0; b < o.buckets && w.sent && w.received; b++) {
        td__schedule list = { 0 };
        const long long even = o.fold < o.hosts ? (long long)layout->ranks * LINE : 1;     /* folded, all parts must be alike */
        td__plan plan = { .kind = TD_PLAN_ALL_REDUCE, .algorithm = o.algorithm, .count = (o.bucket[b].bytes + even - 1) / even * even, .slice = o.slice, .line = LINE,
                          .slots = (int)o.slots };
        fprintf(w.f, "%d recv %d %d 1 %d\n", w.me, compute_of(unit), READY_TAG, BYTE_TYPE);
        if (layout->ranks > 1)
            write_agreement(&w, unit, layout);
        double inside = lanes ? (double)o.bucket[b].bytes * (double)(o.ranks - 1) / (double)o.ranks / (o.inside * 1e9) : 0;
        compute(&w, inside);
        if (layout->ranks > 1 && td__schedule_make(&list, layout, &plan, unit))
            fail("schedule", td_error_message());
        write_list(&w, &list);
        compute(&w, inside);
        td__schedule_free(&list);
    }
    fprintf(w.f, "%d send %d %d 1 %d\n%d finalize\n", w.me, compute_of(unit), DONE_TAG, BYTE_TYPE, w.me);
    fclose(w.f);
    free(w.sent);
    free(w.received);
}

/* ---- all files ------------------------------------------------------------------------------------------------------------------------------------------- */

static void write_platform(void)
{
    FILE *f = create("platform.xml");
    fprintf(f, "<?xml version='1.0'?>\n<!DOCTYPE platform SYSTEM \"https://simgrid.org/simgrid.dtd\">\n<platform version=\"4.1\">\n"
               "  <cluster id=\"c\" prefix=\"h\" suffix=\"\" radical=\"0-%ld\" speed=\"%.0ff\" core=\"%ld\" bw=\"%.0fBps\" lat=\"%gus\"\n"
               "           sharing_policy=\"SPLITDUPLEX\" loopback_bw=\"%.0fBps\" loopback_lat=\"0.5us\"/>\n</platform>\n",
            o.fold - 1, SPEED, 2 * o.ranks, o.gbits * 1e9 / 8, o.latency, o.inside * 1e9);
    fclose(f);
}

static void parse(int argc, char **argv)
{
    static const struct option known[] = {
        { "hosts", 1, NULL, 'h' },   { "ranks", 1, NULL, 'r' },    { "algorithm", 1, NULL, 'a' }, { "gbits", 1, NULL, 'g' },  { "forward", 1, NULL, 'f' },
        { "backward", 1, NULL, 'b' }, { "optimizer", 1, NULL, 'o' }, { "latency", 1, NULL, 'l' },   { "inside", 1, NULL, 'i' }, { "slice", 1, NULL, 's' },
        { "slots", 1, NULL, 'n' },   { "fold", 1, NULL, 'k' },     { 0 },
    };
    o.algorithm = TD_ALGORITHMS;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;)
        switch (c) {
        case 'h': o.hosts = atol(optarg); break;
        case 'r': o.ranks = atol(optarg); break;
        case 'g': o.gbits = atof(optarg); break;
        case 'f': o.forward = atof(optarg) * 1e-3; break;
        case 'b': o.backward = atof(optarg) * 1e-3; break;
        case 'o': o.optimizer = atof(optarg) * 1e-3; break;
        case 'l': o.latency = atof(optarg); break;
        case 'i': o.inside = atof(optarg); break;
        case 's': o.slice = atol(optarg); break;
        case 'n': o.slots = atol(optarg); break;
        case 'k': o.fold = atol(optarg); break;
        case 'a':
            for (o.algorithm = 0; o.algorithm < TD_ALGORITHMS && strcmp(optarg, td__algorithm_names[o.algorithm]); )
                o.algorithm++;
            break;
        default: exit(2);
        }
    o.fold = o.fold ? o.fold : o.hosts;
    if (optind + 2 != argc || o.fold < 1 || o.hosts % o.fold || (o.fold < o.hosts && o.algorithm == TD_ALGORITHM_HALVING) || o.hosts < 1 || o.ranks < 1 || o.algorithm == TD_ALGORITHMS || !(o.gbits > 0) || !(o.backward > 0) || o.slice < LINE || o.slots < 1) {
        fprintf(stderr, "trace: usage: see the head of trace.c; hosts, algorithm, gbits and backward must be said\n");
        exit(2);
    }
    o.plan = argv[optind];
    o.folder = argv[optind + 1];
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    read_plan();
    if (mkdir(o.folder, 0777) && errno != EEXIST)
        fail(o.folder, strerror(errno));
    const long per_host = o.algorithm == TD_ALGORITHM_RING ? o.ranks : 1, all = o.hosts * per_host;
    units = (int)(o.fold * per_host);
    td__layout layout;
    int *host_of = calloc((size_t)all, sizeof *host_of);
    for (long u = 0; host_of && u < all; u++)
        host_of[u] = (int)(u / per_host);
    if (!host_of || td__layout_make(&layout, (int)all, host_of))
        fail("layout", td_error_message());
    FILE *index = create("index"), *hosts = create("hosts");
    for (int u = 0; u < units; u++) {
        write_computing(u);
        write_communication(u, &layout);
        for (int k = 0; k < 2; k++) {
            fprintf(index, "%s/%d\n", o.folder, 2 * u + k);
            fprintf(hosts, "h%d\n", layout.host[u]);
        }
    }
    fclose(index);
    fclose(hosts);
    write_platform();
    td__layout_free(&layout);
    free(host_of);
    return 0;
}
