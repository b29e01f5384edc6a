/* base/store_client_meet.c: the asking side of meetings: bring some bytes, take everybody's, or learn who did not come. Nothing here calls td__fail.
 */
#include "store_wire.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- small questions --------------------------------------------------------------------------------------------------------- */

static void is_done(const td__store_frame *answer, void *of)
{
    *(int *)of = answer->op == TD__STORE_DONE;
}

int td__store_has(td__store *store, const char *key)
{
    unsigned char wait_ms[8] = { 0 };
    td__store_frame question = { TD__STORE_GET, (const void *)key, wait_ms, strlen(key), sizeof wait_ms };
    int there = 0, code = td__store_ask(store, &question, 0, NULL, is_done, &there);
    return code ? code : there;
}

static void take_counter(const td__store_frame *answer, void *of)
{
    if (answer->op == TD__STORE_DONE && answer->value_size == 8)
        *(int64_t *)of = td__store_get_i64(answer->value);
}

int64_t td__store_count(td__store *store, const char *key)
{
    unsigned char one[8];
    int64_t now = TD_ERR_STATE;
    td__store_put_i64(one, 1);
    td__store_frame question = { TD__STORE_ADD, (const void *)key, one, strlen(key), sizeof one };
    int code = td__store_ask(store, &question, 0, NULL, take_counter, &now);
    return code ? code : now;
}

/* ---- meetings ---------------------------------------------------------------------------------------------------------------- */

typedef struct {
    void *all;
    size_t room, got;
    int code;
    td__store_absent *absent;
} taking;

/* What the server says when the meeting cannot take place. */
static int told_why(const td__store_frame *answer, td__store_absent *absent)
{
    *absent = (td__store_absent){ .why = TD__ABSENT_SERVER };
    if (answer->op == TD__STORE_LATE && answer->value_size >= 4) {
        absent->why = TD__ABSENT_LATE;
        absent->count = td__store_get_i32(answer->value);
        size_t named = answer->value_size / 4 - 1;
        for (size_t i = 0; i < named && i < TD_COUNT(absent->rank); i++)
            absent->rank[i] = td__store_get_i32(answer->value + 4 * (i + 1));
        return TD_ERR_TIMEOUT;
    }
    if (answer->op == TD__STORE_ABSENT && answer->value_size >= 8) {
        size_t n = answer->value_size - 8;
        absent->count = 1;
        absent->rank[0] = td__store_get_i32(answer->value);
        absent->why = (td__store_absence)td__store_get_i32(answer->value + 4);
        n = n < sizeof absent->text ? n : sizeof absent->text - 1;
        memcpy(absent->text, answer->value + 8, n);
        return TD_ERR_PEER;
    }
    snprintf(absent->text, sizeof absent->text, "the store has no room");
    return TD_ERR_MEMORY;
}

static void take(const td__store_frame *answer, void *of)
{
    taking *t = of;
    if (answer->op != TD__STORE_DONE) {
        t->code = told_why(answer, t->absent);
    } else if (answer->value_size > t->room) {
        t->code = TD_ERR_MISMATCH;
        snprintf(t->absent->text, sizeof t->absent->text, "it sends %zu bytes where %zu were expected", answer->value_size, t->room);
    } else {
        *t->absent = (td__store_absent){ 0 };
        t->got = answer->value_size;
        if (t->got)
            memcpy(t->all, answer->value, t->got);
    }
}

/* The connection's own failure. */
static int broken(int code, td__store_absent *absent)
{
    bool peer = code == TD_ERR_TIMEOUT || code == TD_ERR_STATE || code == TD_ERR_MISMATCH;
    snprintf(absent->text, sizeof absent->text, "%s",
             code == TD_ERR_STATE ? "the connection broke in an earlier call" :
             code == TD_ERR_TIMEOUT ? "it does not answer" :
             code == TD_ERR_MISMATCH ? "its answer is not from the server that was greeted" : "it closed the connection, or cannot be reached");
    return peer ? TD_ERR_PEER : code;
}

int td__store_meet(td__store *store, const char *key, int rank, int ranks, const void *mine, size_t bytes, void *all, size_t room, size_t *got,
                   double timeout_s, const td__store_patience *patience, td__store_absent *absent)
{
    *absent = (td__store_absent){ .why = TD__ABSENT_SERVER };
    bool fits = bytes <= TD__STORE_MEET_BYTES && strlen(key) <= TD__STORE_KEY_MAX;
    unsigned char *value = fits ? td__alloc(TD__STORE_MEET_HEAD + bytes) : NULL;
    if (!value) {
        snprintf(absent->text, sizeof absent->text, "%zu bytes are too many, or there is no memory", bytes);
        return TD_ERR_ARGUMENT;
    }
    timeout_s = fmin(fmax(timeout_s, 0), 1e9);
    td__store_put_i32(value, rank);
    td__store_put_i32(value + 4, ranks);
    td__store_put_i64(value + 8, (int64_t)ceil(timeout_s * 1000));
    if (bytes)
        memcpy(value + TD__STORE_MEET_HEAD, mine, bytes);
    taking t = { .all = all, .room = room, .absent = absent };
    td__store_frame question = { TD__STORE_MEET, (const void *)key, value, strlen(key), TD__STORE_MEET_HEAD + bytes };
    int code = td__store_ask(store, &question, timeout_s, patience, take, &t);
    code = code ? broken(code, absent) : t.code;
    *got = t.got;
    td__free(value);
    return code;
}

int td__store_gather(td__store *store, const char *scope, uint64_t *turn, int rank, int ranks, const void *mine, size_t bytes, void *all,
                     double timeout_s, const td__store_patience *patience, td__store_absent *absent)
{
    size_t piece = TD__STORE_MEET_BYTES / (size_t)ranks, n = 0, got = 0;
    unsigned char *pieces = td__alloc(TD__STORE_MEET_BYTES);
    char key[TD__STORE_KEY_MAX + 1];
    int code = pieces ? 0 : TD_ERR_MEMORY;
    *absent = (td__store_absent){ .why = TD__ABSENT_SERVER };
    for (size_t at = 0; at < bytes && !code; at += n) {
        n = bytes - at < piece ? bytes - at : piece;
        snprintf(key, sizeof key, "%s/%llu", scope, (unsigned long long)(*turn)++);
        code = td__store_meet(store, key, rank, ranks, (const char *)mine + at, n, pieces, n * (size_t)ranks, &got, timeout_s, patience, absent);
        if (!code && got != n * (size_t)ranks) {
            code = TD_ERR_MISMATCH;
            snprintf(absent->text, sizeof absent->text, "ranks brought different numbers of bytes");
        }
        for (size_t r = 0; r < (size_t)ranks && !code; r++)
            memcpy((char *)all + r * bytes + at, pieces + r * n, n);
    }
    td__free(pieces);
    return code;
}

static void nothing(const td__store_frame *answer, void *of)
{
    (void)answer, (void)of;
}

int td__store_leave(td__store *store, const char *scope, int rank, const char *sentence)
{
    unsigned char value[TD__STORE_LEAVE_HEAD + 1024];
    size_t n = sentence ? strnlen(sentence, sizeof value - TD__STORE_LEAVE_HEAD) : 0;
    td__store_put_i32(value, rank);
    td__store_put_i32(value + 4, sentence != NULL);
    if (n)
        memcpy(value + TD__STORE_LEAVE_HEAD, sentence, n);
    td__store_frame question = { TD__STORE_LEAVE, (const void *)scope, value, strlen(scope), TD__STORE_LEAVE_HEAD + n };
    return td__store_ask(store, &question, 0, NULL, nothing, NULL);
}
