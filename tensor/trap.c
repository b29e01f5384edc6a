/* tensor/trap.c: index checks that the host does not wait for.
 *
 * A kernel that meets an index outside its table writes the number of its check, the place and what stands there into the device's trap, reads place
 * 0 instead and goes on; kernels that step weights write nothing from then on. The host looks at the trap wherever it waits anyway, and without
 * waiting before a backward and a step. What the sentence needs is kept here by the check's number: who asked, where in the program, the shapes.
 * A step makes the same few checks as the step before, so equal ones share a number, also in a graph that is replayed.
 */
#include "tensor_impl.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { PLACES = 512, TRIES = 8 };
static struct { td__check check; int64_t number; } place[PLACES];      /* number 0: nothing there */
static int64_t numbers;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
_Atomic uint64_t td__traps;

static size_t hash(const td__check *c)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < sizeof *c; i++)
        h = (h ^ ((const unsigned char *)c)[i]) * 1099511628211u;
    return (size_t)(h >> 20);
}

static void put_shape(td_shape *into, td_shape s)      /* what is not a dimension stays zero: checks are compared bytewise */
{
    into->ndim = s.ndim;
    for (int i = 0; i < s.ndim; i++)
        into->dim[i] = s.dim[i];
}

/* One among TRIES neighbours; where all are taken by others the oldest makes room. */
int64_t td__check_number(const td__check *check)
{
    td__check c;
    const char *label = td__scope_label();
    memset(&c, 0, sizeof c);
    c.say = check->say;
    c.op = check->op;
    put_shape(&c.at, check->at);
    put_shape(&c.of, check->of);
    c.size = check->size;
    c.ignore = check->ignore;
    c.axis = check->axis;
    c.has_ignore = check->has_ignore;
    c.site = td__site;
    snprintf(c.label, sizeof c.label, "%s", label ? label : "");
    const size_t h = hash(&c);
    size_t at = h % PLACES;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < TRIES; i++) {
        const size_t k = (h + i) % PLACES;
        if (place[k].number && memcmp(&place[k].check, &c, sizeof c) == 0) {
            at = k;
            break;
        }
        if (place[k].number < place[at].number)
            at = k;
    }
    if (!place[at].number || memcmp(&place[at].check, &c, sizeof c) != 0) {
        memcpy(&place[at].check, &c, sizeof c);
        place[at].number = ++numbers;
    }
    const int64_t number = place[at].number;
    pthread_mutex_unlock(&lock);
    return number;
}

static bool find(int64_t number, td__check *into)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (size_t k = 0; k < PLACES && !found; k++)
        if (place[k].number == number) {
            memcpy(into, &place[k].check, sizeof *into);
            found = true;
        }
    pthread_mutex_unlock(&lock);
    return found;
}

int td__trap_look(bool wait)
{
    const td_device_ops *ops = td__device_registered(TD_CUDA);
    td_trapped t;
    td__check c;
    if (!ops || !ops->trapped || !ops->trapped(wait, &t))
        return 0;
    td__traps++;
    if (!find(t.check, &c)) {
        td__fail(TD_ERR_ARGUMENT, "an index at position %lld is %lld and outside what it looks into; which operation asked is no longer known",
                 (long long)t.position, (long long)t.value);
    } else {
        const void *site = td__site;
        td_scope scope = td__scope_begin_labelled(c.label);
        td__site = c.site;
        c.say(&c, t.position, t.value);
        td__site = site;
        td_scope_end(&scope);
    }
    ops->trap_clear();
    return td__pending();
}
