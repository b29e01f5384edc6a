/* base/ports.c: serving and finding a store on a host, where no port is agreed. See meet.h.
 *
 * The job's name gives the first port, so all ranks know where to look; if something else has it, the store takes one of the next. A client
 * knocks at all of them until one proves that it knows the secret. Whoever answers wrongly, or not at all, is left alone for a while, so that a
 * foreign program on a port costs little time.
 */
#include "meet.h"
#include <arpa/inet.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { ADDRESSES = 8, FIRST = 20000, SPAN = 20000 };
static const double TRY_TIME = 1, SAY_AFTER = 10;
/* Who answers wrongly costs little to ask again, and may be this job's last meeting that is just ending; who is silent costs TRY_TIME. */
static const double AGAIN_WRONG = 0.05, AGAIN_SILENT = 3;

typedef struct { char text[64]; bool loopback; } address;

TD_PRINTF(3, 4) static void say(char *error, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error, size, format, args);
    va_end(args);
}

int td__meet_port(const char *job)
{
    unsigned char hash[crypto_generichash_BYTES_MIN];
    crypto_generichash(hash, sizeof hash, (const unsigned char *)job, strlen(job), NULL, 0);
    return FIRST + (int)((hash[0] | (unsigned)hash[1] << 8 | (unsigned)hash[2] << 16 | (unsigned)(hash[3] & 127) << 24) % SPAN);
}

/* The addresses of a host in the resolver's order. 0 of them: error says why. */
static int resolve(const char *host, address found[ADDRESSES], char *error, size_t size)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *list = NULL;
    int code = getaddrinfo(host, NULL, &hints, &list), n = 0;
    for (struct addrinfo *a = list; a && n < ADDRESSES; a = a->ai_next) {
        if (getnameinfo(a->ai_addr, a->ai_addrlen, found[n].text, sizeof found[n].text, NULL, 0, NI_NUMERICHOST) != 0)
            continue;
        const struct sockaddr_in6 *six = (const void *)a->ai_addr;
        const struct sockaddr_in *four = (const void *)a->ai_addr;
        found[n].loopback = a->ai_family == AF_INET6 ? IN6_IS_ADDR_LOOPBACK(&six->sin6_addr) : ntohl(four->sin_addr.s_addr) >> 24 == 127;
        n++;
    }
    if (list)
        freeaddrinfo(list);
    if (n == 0)
        say(error, size, "host %s has no address that is known here (%s)", host, code ? gai_strerror(code) : "none");
    return n;
}

static int first_port(int port, const char *job, int *count)
{
    *count = port ? 1 : TD__MEET_PORTS;
    return port ? port : td__meet_port(job);
}

static void unreachable(const char *host, const address *at, char *error, size_t size)
{
    say(error, size, "%s is %s on this host, which other hosts cannot reach: set TANDEM_STORE=tcp:ADDRESS:0 to an address of rank 0's that they can", host,
        at->text);
}

/* ---- serving --------------------------------------------------------------------------------------------------------------- */

td__store_server *td__meet_serve(const char *host, int port, const char *job, const unsigned char secret[32], bool loopback, int *code, char *error,
                                 size_t error_size)
{
    address at[ADDRESSES];
    char where[700], why[400] = "";
    int ports, first = first_port(port, job, &ports), n = resolve(host, at, error, error_size), hidden = 0, taken = 0;
    *code = TD_ERR_LAUNCH;
    for (int i = 0; i < n; i++) {
        if (at[i].loopback && !loopback) {
            hidden = i + 1;
            continue;
        }
        taken = 0;
        for (int k = 0; k < ports; k++) {
            snprintf(where, sizeof where, "tcp:[%s]:%d", at[i].text, first + k);
            td__store_server *server = td__store_try_serve(where, secret, code, why, sizeof why);
            if (server)
                return server;
            taken += *code == TD_ERR_STATE;
            if (*code != TD_ERR_STATE)
                break;                         /* not an address of this machine */
        }
        if (taken == ports)
            break;
    }
    *code = TD_ERR_LAUNCH;
    if (taken && taken == ports && port)
        say(error, error_size, "port %d of %s is taken by another program", port, host);
    else if (taken && taken == ports)
        say(error, error_size, "ports %d to %d of %s are all taken by other programs", first, first + ports - 1, host);
    else if (hidden && !*why)
        unreachable(host, &at[hidden - 1], error, error_size);
    else if (n)
        say(error, error_size, "%s is %s here, which is no address of this host (%s): set TANDEM_STORE=tcp:ADDRESS:0 to one that is", host, at[0].text,
            why);
    return NULL;
}

/* ---- finding --------------------------------------------------------------------------------------------------------------- */

typedef struct {
    double again[ADDRESSES][TD__MEET_PORTS];   /* when to knock there next                                                */
    int odd_port, other_secret;                /* a port where something else answers; one where a store knows another secret */
} knocked;

static td__store *knock(const address *at, int i, int port, int k, const unsigned char *secret, double end, knocked *seen)
{
    char where[700], why[400];
    double now = td__now();
    int code = 0;
    if (now < seen->again[i][k])
        return NULL;
    snprintf(where, sizeof where, "tcp:[%s]:%d", at[i].text, port);
    td__store *store = td__store_try(where, secret, fmin(TRY_TIME, fmax(end - now, 0.05)), &code, why, sizeof why);
    if (code == TD_ERR_MISMATCH)
        seen->other_secret = port;
    else if (code == TD_ERR_TIMEOUT || code == TD_ERR_PEER)
        seen->odd_port = port;
    if (!store && code != TD_ERR_IO)
        seen->again[i][k] = td__now() + (code == TD_ERR_TIMEOUT ? AGAIN_SILENT : AGAIN_WRONG);
    return store;
}

static void vain(const char *host, const address *at, int first, int ports, double timeout, const knocked *seen, char *error, size_t size)
{
    char range[48], more[160] = "";
    if (ports > 1)
        snprintf(range, sizeof range, "ports %d to %d", first, first + ports - 1);
    else
        snprintf(range, sizeof range, "port %d", first);
    if (seen->other_secret)
        snprintf(more, sizeof more, "; on port %d another secret is known: is the key (`tandem env` shows its file) the same on all hosts?",
                 seen->other_secret);
    else if (seen->odd_port)
        snprintf(more, sizeof more, "; on port %d there is another program", seen->odd_port);
    say(error, size, "host %s%s%s%s did not answer on %s within %g s (TANDEM_TIMEOUT)%s", host, strcmp(host, at->text) ? " (" : "",
        strcmp(host, at->text) ? at->text : "", strcmp(host, at->text) ? ")" : "", range, timeout, more);
}

td__store *td__meet_connect(const char *host, int port, const char *job, const unsigned char secret[32], bool loopback, double timeout_s, int *code,
                            char *error, size_t error_size)
{
    address at[ADDRESSES];
    knocked seen = { .odd_port = 0 };
    int ports, first = first_port(port, job, &ports), n = resolve(host, at, error, error_size);
    double begun = td__now(), end = begun + timeout_s;
    bool said = false, hidden = n > 0 && !loopback;
    for (int i = 0; i < n; i++)
        hidden &= at[i].loopback;
    if (hidden) {
        unreachable(host, &at[0], error, error_size);
        n = 0;
    }
    *code = n ? TD_ERR_TIMEOUT : TD_ERR_LAUNCH;
    for (long pause_ns = 2000000; n;) {
        for (int k = 0; k < ports; k++)
            for (int i = 0; i < n; i++) {
                td__store *store = knock(at, i, first + k, k, secret, end, &seen);
                if (store)
                    return *code = 0, store;
            }
        double now = td__now();
        if (now >= end) {
            vain(host, at, first, ports, timeout_s, &seen, error, error_size);
            return NULL;
        }
        if (!said && now - begun > SAY_AFTER) {
            char text[500];
            vain(host, at, first, ports, floor(now - begun), &seen, text, sizeof text);
            td__info("still waiting: %s", text);
            said = true;
        }
        nanosleep(&(struct timespec){ .tv_nsec = pause_ns }, NULL);
        pause_ns = pause_ns < 50000000 ? 2 * pause_ns : pause_ns;
    }
    return NULL;
}
