/* base/error.c: one path for errors, sticky and loud by default.
 *
 * Each thread keeps its first error as one full sentence. Under TD_ERRORS_ABORT an error is printed, written into the
 * black box, told to the other ranks (td__on_abort) and ends the process; under TD_ERRORS_RETURN it is only recorded.
 * Threads of the library cannot return errors to anybody: theirs go to a mailbox of the process, and the next user's
 * thread that asks whether an error is pending adopts it. Nothing here allocates, so running out of memory can be told.
 */
#include "base.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    int  code;                                 /* 0: none */
    int  spoken;                               /* length of the part before " on rank N", which td__say's prefix says anyway */
    bool boxed;                                /* this one is the sentence in the black box */
    char text[1536];
} record;

static __thread record first;
static __thread bool library_thread;
static __thread bool giving_up;                /* this thread is ending the process */
static record mailbox;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;       /* of the mailbox and of the black box's error */
static atomic_bool mailbox_full;
static atomic_bool ever;
static atomic_int policy = TD_ERRORS_ABORT;
static void (*_Atomic abort_hook)(const char *sentence);

/* ---- composing ------------------------------------------------------------------------------------------------------- */

TD_PRINTF(2, 3) static void append(record *r, const char *format, ...)
{
    size_t used = strlen(r->text);
    va_list args;
    va_start(args, format);
    vsnprintf(r->text + used, sizeof r->text - used, format, args);
    va_end(args);
}

static void finish_sentence(record *r, bool with_place)
{
    if (with_place) {
        const char *module = td__scope_label();
        if (module && *module)
            append(r, " (in %s)", module);
        char place[320];
        const char *site = td__site_text(td__site, place, sizeof place);
        if (*site)
            append(r, " at %s", site);
    }
    r->spoken = (int)strlen(r->text);
    const td__world *world = td__world_now();
    if (world->size > 1)
        append(r, " on rank %d", world->rank);
}

/* ---- what happens with a finished sentence ------------------------------------------------------------------------------ */

static void write_box(record *r, bool failed)
{
    td__box *box = td__box_get();
    pthread_mutex_lock(&lock);
    if (atomic_load(&box->error_ns) == 0) {    /* the process's first one is the cause; later ones follow from it */
        snprintf(box->error, sizeof box->error, "%s", r->text);
        box->error_code = r->code;
        atomic_store(&box->error_ns, td__wall_ns());
        r->boxed = true;
    }
    if (failed)
        atomic_store(&box->state, TD_BOX_FAILED);
    pthread_mutex_unlock(&lock);
}

/* Ends the process. A second thread that fails meanwhile waits for the first to do it, but not for ever, as the first may
 * be waiting for it. */
static void give_up(record *r)
{
    static atomic_bool begun;
    if (atomic_exchange(&begun, true)) {
        sleep(10);
        abort();
    }
    giving_up = true;
    td__say("%.*s", r->spoken, r->text);
    write_box(r, true);
    void (*hook)(const char *) = atomic_load(&abort_hook);
    if (hook)
        hook(r->text);
    abort();
}

static int deliver(record *r)
{
    atomic_store(&ever, true);
    if (library_thread) {
        write_box(r, false);
        pthread_mutex_lock(&lock);
        if (mailbox.code == 0) {
            mailbox = *r;
            atomic_store(&mailbox_full, true);
        }
        pthread_mutex_unlock(&lock);
        return r->code;
    }
    if (atomic_load(&policy) == TD_ERRORS_ABORT)
        give_up(r);
    write_box(r, false);
    return r->code;
}

/* ---- the ways in --------------------------------------------------------------------------------------------------------- */

/* A second error must not cost the first one its sentence, neither later nor when the abort hook itself fails. */
static bool already_failed(void)
{
    return giving_up || (first.code != 0 && (library_thread || atomic_load(&policy) == TD_ERRORS_RETURN));
}

int td__vfail(int code, const char *format, va_list args)
{
    if (code >= 0)
        code = TD_ERR_INTERNAL;
    if (already_failed())
        return code;
    first = (record){ .code = code };
    vsnprintf(first.text, sizeof first.text, format, args);
    finish_sentence(&first, true);
    return deliver(&first);
}

/* THE breakpoint of the library: `break td__fail` in a debugger stops at every error, with the user's call on the stack. */
__attribute__((noinline)) int td__fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int result = td__vfail(code, format, args);
    va_end(args);
    return result;
}

int td__fail_verbatim(int code, const char *sentence)
{
    if (code >= 0)
        code = TD_ERR_INTERNAL;
    if (already_failed())
        return code;
    first = (record){ .code = code };
    snprintf(first.text, sizeof first.text, "%s", sentence);
    first.spoken = (int)strlen(first.text);
    return deliver(&first);
}

int td__fail_background(int code, const char *format, ...)
{
    if (code >= 0)
        code = TD_ERR_INTERNAL;
    record r = { .code = code };
    va_list args;
    va_start(args, format);
    vsnprintf(r.text, sizeof r.text, format, args);
    va_end(args);
    finish_sentence(&r, false);
    bool kept = library_thread;
    library_thread = true;                     /* whoever calls this speaks for the library, whatever its thread */
    deliver(&r);
    library_thread = kept;
    return code;
}

void td__library_thread(void)
{
    library_thread = true;
}

static void adopt(void)
{
    pthread_mutex_lock(&lock);
    bool taken = first.code == 0 && mailbox.code != 0;
    if (taken) {
        first = mailbox;
        mailbox.code = 0;
        atomic_store(&mailbox_full, false);
    }
    pthread_mutex_unlock(&lock);
    if (taken && atomic_load(&policy) == TD_ERRORS_ABORT)
        give_up(&first);
}

int td__pending(void)
{
    if (first.code == 0 && !library_thread && atomic_load_explicit(&mailbox_full, memory_order_acquire))
        adopt();
    return first.code;
}

int td__pending_here(void)
{
    return first.code;
}

void td__on_abort(void (*fn)(const char *sentence))
{
    atomic_store(&abort_hook, fn);
}

bool td__had_error(void)
{
    return atomic_load(&ever);
}

/* ---- the public face --------------------------------------------------------------------------------------------------------- */

void td_errors(td_error_policy wanted)
{
    atomic_store(&policy, wanted == TD_ERRORS_RETURN ? TD_ERRORS_RETURN : TD_ERRORS_ABORT);
}

int td_error_pending(void)
{
    return td__pending();
}

const char *td_error_message(void)
{
    return td__pending() ? first.text : "";
}

void td_error_clear(void)
{
    td__pending();                             /* a background error that has arrived is forgotten too */
    if (first.boxed && !library_thread) {      /* what the user has dealt with must not be named as the cause of a later death */
        td__box *box = td__box_get();
        pthread_mutex_lock(&lock);
        atomic_store(&box->error_ns, 0);
        box->error[0] = '\0';
        box->error_code = 0;
        pthread_mutex_unlock(&lock);
    }
    first.code = 0;
    first.boxed = false;
    first.text[0] = '\0';
}

const char *td_error_name(int code)
{
    switch (code) {
    case TD_OK:
        return "TD_OK";
#define TD_ERROR_NAME(name, value, text) \
    case value:                          \
        return "TD_ERR_" #name;
        TD_ERROR_LIST(TD_ERROR_NAME)
#undef TD_ERROR_NAME
    default:
        return "TD_ERR_?";
    }
}

const char *td_error_text(int code)
{
    switch (code) {
    case TD_OK:
        return "no error";
#define TD_ERROR_TEXT(name, value, text) \
    case value:                          \
        return text;
        TD_ERROR_LIST(TD_ERROR_TEXT)
#undef TD_ERROR_TEXT
    default:
        return "not a code of Tandem";
    }
}
