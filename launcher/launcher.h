/* launcher/launcher.h: the parts of the program `tandem` from inside. It knows base/ only.
 *
 *   main.c      the table of subcommands, which also makes the help
 *   run.c       tandem run: options, plan, then a job       options.c  torchrun's, mpirun's and our own
 *   plan.c      which engine starts how many ranks where    hosts.c    -H and host files
 *   job.c       the life of a job: signals, ends of ranks, ending everything; one libuv loop
 *   start.c     what a job needs before its first rank; starting one with its pipes
 *   spawn.c     one rank: fork, session, cores, exec          environ.c  what a rank finds in its environment
 *   cores.c     which cores there are                          lines.c    the ranks' output, line by line
 *   place*.c    who gets which cores, memory, GPU; who is near  membind.c  a process's memory nodes
 *   tree.c      which processes descend from us                verdict.c  which rank is the cause, how and why
 *   signals.c   those that are passed on
 *   site.c      a place in a file of code as "train.c:41"      doctor.c, env.c: the other subcommands
 */
#ifndef TD_LAUNCHER_H
#define TD_LAUNCHER_H
#include <base.h>
#include <hwloc.h>
#include <sched.h>
#include <store.h>
#include <sys/types.h>
#include <uv.h>

/* ---- main.c ---------------------------------------------------------------------------------------------------------------- */
enum { TD_EXIT_USAGE = 2, TD_EXIT_NOT_EXECUTABLE = 126, TD_EXIT_NOT_FOUND = 127, TD_EXIT_SIGNAL = 128 };
typedef struct {
    const char *name, *usage, *summary;
    const char *details;                       /* the rest of `tandem help NAME`                                          */
    bool hidden;                               /* a part of another one: not in the help                                  */
    int (*run)(int argc, char **argv);         /* argv[0] is the subcommand's name; returns the exit status               */
} td__command;
extern const td__command td__command_run, td__command_doctor, td__command_env, td__command_agent;
/* "tandem NAME: sentence" on stderr, and where to read more. Returns TD_EXIT_USAGE. */
int td__usage(const char *name, const char *format, ...) TD_PRINTF(2, 3);

/* ---- cores.c: which cores there are ----------------------------------------------------------------------------------------------- */
/* devices: GPUs and network devices too (some ten milliseconds). 0 or -1. */
int    td__cores_load(hwloc_topology_t *topology, bool devices);
/* The processors that this process may run on, as far as the topology knows them; the caller frees. */
hwloc_bitmap_t td__cores_allowed(hwloc_topology_t topology);
int    td__cores_count(hwloc_topology_t topology, hwloc_const_bitmap_t allowed);
double td__cores_quota(void);                  /* processors' worth of time that the cgroup grants; 0: no limit            */
hwloc_obj_type_t td__cores_type(hwloc_topology_t topology);   /* CORE; on machines that show none (some virtual ones), PU    */

/* ---- place_gpu.c: the GPUs of this host as CUDA numbers them ------------------------------------------------------------------------ */
enum { TD_GPUS_MAX = 64 };
typedef struct {
    int n;
    hwloc_obj_t pci[TD_GPUS_MAX];              /* the topology's, by CUDA's number; NULL: it is there, but not known where   */
    int every;                                 /* TANDEM_DEVICE=cuda:N, every rank takes N; -1: rank r takes GPU r           */
} td__gpus;
/* device, visible: the values of TANDEM_DEVICE and CUDA_VISIBLE_DEVICES, or NULL. root: before /proc and /dev, where NVIDIA's driver tells
 * each GPU's UUID and device node ("" in life); NULL: it is not asked, all GPUs are usable. */
void   td__gpus_find(hwloc_topology_t topology, const char *device, const char *visible, const char *root, td__gpus *out);

/* ---- place.c, place_near.c, place_here.c: which of it each rank of this host gets ----------------------------------------------------- */
typedef struct {
    int  cores;                                /* whole ones                                                              */
    int  gpu;                                  /* CUDA's number; -1: none                                                 */
    char gpu_bus[16];                          /* "0000:11:00.0"                                                          */
    char nic[32];                              /* the nearest network device, "mlx5_0"; "": none. Reported only             */
} td__seat;
typedef struct {
    int cores;                                 /* whole cores that this process may use                                   */
    double quota;                              /* processors' worth of time that the cgroup grants; 0: no limit            */
    int threads;                               /* per rank                                                                */
    int ranks;                                 /* of this host                                                            */
    hwloc_bitmap_t *set;                       /* one per rank; NULL: ranks are not bound                                  */
    hwloc_bitmap_t *nodes;                     /* memory nodes, one set per rank; NULL: memory is not bound                 */
    td__seat *seat;                            /* one per rank; NULL: nothing is known                                     */
} td__division;
/* A pure function: the same on every rank of a host that asks with the same values. gpus: NULL for none. */
void td__place(hwloc_topology_t topology, hwloc_const_bitmap_t allowed, double quota, int ranks, const td__gpus *gpus, td__division *out);
/* td__place on this machine with this process's cores and environment; binds nothing yet. network: the nearest network device, too (jobs on
 * several hosts). On a made-up machine (hwloc's variables) set and nodes are NULL: its processors are not ours to bind to. The processors that
 * an engine hands to each of its processes must be all of the job's on this host: mpirun --bind-to none, srun --cpu-bind=none. */
void td__place_here(int ranks, bool network, td__division *out);
void td__division_free(td__division *division);
void td__division_unbind(td__division *division);          /* neither cores nor memory; what is near stays known            */
void td__division_unbind_memory(td__division *division);
/* "processors 0-7 (4 cores), node 0, GPU 0 at 0000:11:00.0, mlx5_0" or "not bound, …". Returns `into`. */
const char *td__place_text(const td__division *division, int rank, char *into, size_t size);
/* What --nproc-per-node auto, gpu or cpu means here: GPUs; cores (no more than the quota grants); auto: GPUs, cores where there are none.
 * 0: after a sentence in `error`, there is no GPU or `word` is none of the three. */
int  td__place_ranks(const char *word, char *error, size_t size);

/* ---- membind.c: a process's memory nodes ------------------------------------------------------------------------------------------------- */
enum { TD_MEMORY_NODES_MAX = 1024 };
typedef struct {
    int nodes;                                 /* 0: memory is left as it is                                              */
    unsigned long mask[TD_MEMORY_NODES_MAX / (8 * sizeof(unsigned long))];
} td__membind;
bool td__membind_free(void);                   /* this process has the kernel's default policy (numactl has not been here)   */
void td__membind_make(hwloc_const_bitmap_t nodes, td__membind *out);
void td__membind_apply(const td__membind *membind);   /* between fork and exec                                              */

/* ---- streams.c: which ranks' output goes where ------------------------------------------------------------------------------- */
enum { TD_STREAM_OUT = 1, TD_STREAM_ERR = 2, TD_STREAMS_TEXT = 512, TD_LOG_DIR_MAX = 2048 };
typedef struct {
    const char *log_dir, *tee, *redirects, *filter;   /* NULL: not said                                                   */
} td__streams;
bool td__streams_valid(const char *text);      /* "3" or "0:3,1:2"                                                        */
bool td__filter_valid(const char *text);       /* "0,2"                                                                   */
bool td__stream_shown(const td__streams *s, int local_rank, int stream);
bool td__stream_kept(const td__streams *s, int local_rank, int stream);   /* in a file                                      */
/* LOG_DIR/JOB/RANK/stdout.log or stderr.log, made. A descriptor, or -1 and a sentence in `why`. */
int  td__stream_open(const td__streams *s, const char *job, int rank, int stream, char *why, size_t size);

/* ---- options.c, hosts.c, plan.c ------------------------------------------------------------------------------------------------ */
enum { TD_RANKS_MAX = 4096, TD_EXPORTS_MAX = 64 };
typedef enum { TD_ENGINE_AUTO, TD_ENGINE_LOCAL, TD_ENGINE_MPIRUN, TD_ENGINE_SRUN, TD_ENGINE_HAND } td__engine_kind;
typedef enum { TD_PER_NODE_NUMBER, TD_PER_NODE_AUTO, TD_PER_NODE_GPU, TD_PER_NODE_CPU } td__per_node_kind;
typedef struct {
    char name[256];
    int slots;                                 /* 0: not said                                                             */
} td__named_host;
typedef struct {
    td__named_host *host;
    int count;
} td__hosts;

typedef struct {
    int total;                                 /* -n; 0: not said                                                         */
    int per_node;                              /* --nproc-per-node; 0: not said                                           */
    td__per_node_kind per_node_kind;
    int nodes, node_rank;                      /* --nnodes, 0: not said; --node-rank, -1: not said                        */
    const char *master_addr;                   /* NULL: not said                                                          */
    int master_port;                           /* 0: not said                                                             */
    char endpoint_host[256];
    const char *job_id;
    bool standalone, dry_run;
    td__engine_kind engine;                    /* plan.c: never TD_ENGINE_AUTO afterwards                                 */
    td__hosts hosts;                           /* plan.c gives every host its slots                                       */
    char export[TD_EXPORTS_MAX][128];          /* names of variables for every host                                       */
    int exports;
    td__streams streams;
    bool no_binding, report_bindings, tag_output;
    int threads;                               /* 0: the share of cores                                                   */
    bool no_prefix;
    double kill_after_s;                       /* between SIGTERM and SIGKILL                                             */
    char **argv;                               /* the program as the user named it, and its arguments                     */
    int ranks;                                 /* plan.c: of the whole job; hand-started: of this node                    */
    char *path;                                /* the file that is executed (local ranks)                                 */
} td__run_options;
/* 0, or the exit status after one sentence. */
int td__options_take(td__run_options *o, int argc, char **argv);
int td__hosts_parse(td__hosts *hosts, const char *option, const char *list);
int td__hosts_read(td__hosts *hosts, const char *option, const char *path);
int td__plan(td__run_options *o);
int td__engine_show(const td__run_options *o); /* --dry-run                                                               */
int td__head_run(const td__run_options *o);    /* a job across hosts: returns the exit status of `tandem run`             */
bool td__in_slurm(void);                       /* within an allocation, and not within a step of several tasks            */

/* ---- job.c ------------------------------------------------------------------------------------------------------------------- */
typedef struct {
    int rank;
    pid_t pid;
    bool ended;
    bool asked_to_end;                         /* it ended after the job had begun to end everything                       */
    int status;                                /* of waitpid                                                              */
    int64_t ended_ns;                          /* CLOCK_REALTIME of this host, when we saw it                             */
    struct td__far *far;                       /* what an agent has told of a rank on another host; NULL: a rank of ours      */
} td__rank;

/* A rank that an agent looks after. Its box's times are of our clock. */
typedef struct td__far {
    char host[64], place[320], box_path[600];
    bool has_box, kept, finished;              /* finished: it has come to the end of td_finish                            */
    td__box box;
} td__far;

typedef struct {
    const td__run_options *options;
    int size;                                  /* ranks of the job                                                        */
    char name[64];                             /* TANDEM_JOB                                                              */
    char secret[65];                           /* 64 hex digits                                                           */
    const char *store;                         /* its address                                                             */
    int port;                                  /* MASTER_PORT                                                             */
    bool prefix;                               /* "[rank] " before each line                                              */
    int columns;                               /* TANDEM_TERMINAL                                                         */
    char folder[300];                          /* of the black boxes; "": none can be had                                  */
    td__division division;
    td__rank *rank;
} td__job;

void td__to_hex(const unsigned char *bytes, size_t n, char *into);   /* 2n digits and a zero                                 */
int td__columns_for_ranks(bool prefix, int size);  /* the terminal's, that are left for a rank's line; 0: nobody watches       */
int td__job_run(const td__run_options *options);   /* returns the exit status of `tandem run`                            */

/* ---- start.c ----------------------------------------------------------------------------------------------------------------- */
/* Name, secret, meeting point, port, cores. 0, or the exit status after saying why. */
int td__job_prepare(td__job *job, td__store_server **server);
/* 0, or a negative errno. piped: through td__lines_add, else the rank has our own output. */
int td__job_start_rank(td__job *job, int rank, bool piped);
/* A TCP port that nobody has now, on loopback or on every address: for MASTER_PORT, whoever may use it. 0: none. */
int td__free_port(bool loopback);

/* ---- environ.c, spawn.c, tree.c ---------------------------------------------------------------------------------------------------- */
/* Who a rank is, and what else it finds in its environment. */
typedef struct {
    int rank, size, local_rank, local_size, node_rank, hosts;
    const char *job, *secret, *store, *master_addr;
    int master_port, columns;
    int threads;                               /* --threads; 0: not said                                                  */
    int share;                                 /* of the cores                                                            */
} td__identity;
/* The environment of one rank; td__environ_free when it has been used. */
char **td__environ_make(const td__identity *who);
void   td__environ_free(char **variables);
/* Looks for `program` as a shell does. 0 and *path (free it), else TD_EXIT_NOT_FOUND or TD_EXIT_NOT_EXECUTABLE after saying so. */
int td__program_find(const char *program, char **path);
int td__program_look(const char *program, char **path, char *why, size_t size);   /* the same, the sentence in `why`          */

typedef struct {
    const char *path;
    char **argv, **variables;
    int in, out, err;                          /* descriptors that become 0, 1, 2                                         */
    int death_signal;                          /* when this process dies; 0: SIGKILL                                      */
    hwloc_const_bitmap_t cores;                /* NULL: not bound                                                         */
    hwloc_const_bitmap_t nodes;                /* where its memory shall lie; NULL: left as it is                           */
} td__start;
/* The rank leads a session of its own and dies with this process. 0 and *pid, or a negative errno. */
int td__spawn(const td__start *start, pid_t *pid);

/* Every process that descends from this one, zombies left out. Returns how many; *list is the caller's to free. */
size_t td__tree_below(pid_t **list);
size_t td__tree_signal(int number);            /* to each of them; 0: to none. How many there are                         */

/* ---- signals.c: those that are passed on --------------------------------------------------------------------------------------------- */
enum { TD_SIGNALS = 5 };
typedef struct { uv_signal_t passed[TD_SIGNALS], child_ended; } td__signals;
/* What nohup made ignored, for us and for the ranks, stays so, unless ignored_too. SIGPIPE is ignored from now on. 0, or a libuv error. */
int  td__signals_watch(td__signals *s, uv_loop_t *loop, void *data, uv_signal_cb on_passed, uv_signal_cb on_child_ended, bool ignored_too);
void td__signals_close(td__signals *s);

/* ---- lines.c --------------------------------------------------------------------------------------------------------------------- */
void td__lines_begin(uv_loop_t *loop, bool prefix, bool live);   /* live: a terminal shows it; unfinished lines appear at once */
/* Reads `from` to its end and writes whole lines to `to` (-1: nowhere) and, as they come, the bytes to `log` (-1: nowhere; closed at the end). */
int  td__lines_add(int rank, int from, int to, int log);
typedef struct td__lines td__lines;              /* the same for bytes that come another way                               */
td__lines *td__lines_open_fed(int rank, int to); /* NULL: no memory                                                        */
bool td__lines_feed(td__lines *lines, const char *bytes, size_t n);   /* false: nobody reads our output any more; close it    */
void td__lines_close_fed(td__lines *lines);
void td__lines_stop(void);                       /* close what is still open                                               */
bool td__lines_open(void);                       /* is any stream still open?                                              */
void td__lines_say(const char *format, ...) TD_PRINTF(1, 2);   /* "tandem run: …" on stderr, past any unfinished line         */

/* ---- verdict.c, site.c ---------------------------------------------------------------------------------------------------------------- */
typedef struct {
    int rank;                                  /* the cause; -1: no rank has failed                                       */
    bool certain;                              /* nothing that is still to come can change it                              */
} td__cause;
td__cause td__verdict_find(const td__job *job);
/* `passed_on`: the signal that the launcher handed to the ranks, 0: none. `oom_before`: td__verdict_oom_kills at the start. */
void td__verdict_say(const td__job *job, int rank, int passed_on, int64_t oom_before);
void td__verdict_boxes(const td__job *job, int rank);   /* names and keeps boxes of failed ranks, removes the others       */
int  td__verdict_exit(const td__rank *rank);            /* exit code, or 128 + signal                                      */
int64_t td__verdict_oom_kills(void);                    /* so far on this machine; -1: not known                           */
/* "train.c:41", "main+0x1f" or "train+0x4f1" of a return address; "" when module is "". */
const char *td__site_in_file(const char *module, uint64_t offset, char *into, size_t size);

#endif
