/* comm/box.c: what the black box is told of collectives: which one this rank is in, from where it was called, and the last one that ended well.
 *
 * Several communicators may be in a collective at once; the box shows the one that was entered last of those that are not left. bench/costs
 * shows what it costs.
 */
#include <dlfcn.h>
#include <stdio.h>
#include "comm_room.h"

enum { BOX_TEXTS = 8 };
static pthread_mutex_t box_lock = PTHREAD_MUTEX_INITIALIZER;
static struct { const td_coll *coll; char text[TD_CALL_TEXT]; } in_box[BOX_TEXTS];
static int boxed;

static void note_site(td__box *box, const void *site)
{
    static __thread struct { const void *site; const char *module; uint64_t offset; } cache[8];
    static const char *written;
    size_t i = ((uintptr_t)site >> 2) % TD_COUNT(cache);
    if (cache[i].site != site) {
        Dl_info info;
        bool known = site && dladdr(site, &info) && info.dli_fname;
        cache[i].site = site;
        cache[i].module = known ? info.dli_fname : "";
        cache[i].offset = known ? (uint64_t)((uintptr_t)site - (uintptr_t)info.dli_fbase) : 0;
    }
    if (!cache[i].module)
        return;
    if (written != cache[i].module || !box->module[0])
        snprintf(box->module, sizeof box->module, "%s", cache[i].module);
    written = cache[i].module;
    box->offset = cache[i].offset;
}

void td__comm_box_enter(const td_coll *coll)
{
    char text[TD_CALL_TEXT];
    td_fingerprint p;
    td__coll_fingerprint(coll, &p);
    td__coll_text(&p, coll->label, coll->group, text);
    td__box *box = td__box_get();
    pthread_mutex_lock(&box_lock);
    if (boxed < BOX_TEXTS) {
        in_box[boxed].coll = coll;
        memcpy(in_box[boxed++].text, text, sizeof text);
    }
    memcpy(box->doing, text, sizeof box->doing - 1);
    note_site(box, coll->site);
    pthread_mutex_unlock(&box_lock);
    atomic_fetch_add_explicit(&box->collectives, 1, memory_order_relaxed);
}

void td__comm_box_leave(const td_coll *coll, bool well)
{
    td__box *box = td__box_get();
    pthread_mutex_lock(&box_lock);
    int i = boxed - 1;
    while (i >= 0 && in_box[i].coll != coll)
        i--;
    if (i >= 0) {
        if (well)
            memcpy(box->last, in_box[i].text, sizeof box->last - 1);
        boxed--;
        memmove(&in_box[i], &in_box[i + 1], (size_t)(boxed - i) * sizeof *in_box);
    }
    if (well && boxed)                         /* what failed is what it is doing: the black box keeps it                     */
        memcpy(box->doing, in_box[boxed - 1].text, sizeof box->doing - 1);
    else if (well)
        box->doing[0] = '\0';
    pthread_mutex_unlock(&box_lock);
}
