/* tandem/error.h: one path for errors, sticky and loud by default.
 *
 * Algebra and constructors return handles, never NULL. A misuse records the first error of the thread as one full
 * sentence (function, both shapes, the offending dimension, module path, rank, the caller's source line) and returns
 * the type's poisoned instance, which later calls pass on. Backward, optimizer steps and checkpoint writes refuse to
 * act while an error is pending, so weights are never updated from garbage. System functions return 0 or a negative
 * code from the list below. Errors of the library's own threads surface on the next call of a user's thread.
 */
#ifndef TANDEM_ERROR_H
#define TANDEM_ERROR_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define TD_API __attribute__((visibility("default")))

/* One list makes the codes, their names and their texts, so that the three can never disagree. */
#define TD_ERROR_LIST(X)                                                                                     \
    X(ARGUMENT, -1, "an argument has a value that the function cannot take")                                 \
    X(SHAPE, -2, "shapes do not fit together")                                                               \
    X(DTYPE, -3, "a dtype is not supported here, or two dtypes differ")                                      \
    X(DEVICE, -4, "tensors are on different devices, or the device cannot be used")                          \
    X(MEMORY, -5, "memory cannot be had")                                                                    \
    X(IO, -6, "a file or socket cannot be read or written")                                                  \
    X(FORMAT, -7, "a file does not hold what its format demands")                                            \
    X(STATE, -8, "the call is not allowed in this state")                                                    \
    X(TIMEOUT, -9, "a deadline has passed")                                                                  \
    X(PEER, -10, "another rank died, stopped, left or failed")                                               \
    X(MISMATCH, -11, "ranks called different collectives or hold different models")                          \
    X(UNSUPPORTED, -12, "this build, device or transport does not offer it")                                 \
    X(LAUNCH, -13, "the environment of the ranks is incomplete or contradicts itself")                       \
    X(ABORTED, -14, "the work was given up because of an earlier error")                                     \
    X(INTERNAL, -15, "a bug in Tandem")                                                                      \
    X(NOT_FINITE, -16, "an operation made NaN or Inf from finite numbers (TANDEM_ANOMALY)")

typedef enum {
    TD_OK = 0,
#define TD_ERROR_ENUM(name, code, text) TD_ERR_##name = code,
    TD_ERROR_LIST(TD_ERROR_ENUM)
#undef TD_ERROR_ENUM
} td_error;

/* TD_ERRORS_ABORT (default): print the sentence, mark the black box, abort the communicators so that no other rank
 * hangs, abort(). TD_ERRORS_RETURN: record and return (as with MPI_ERRORS_RETURN), for embedders and tests.
 * The policy is the process's, not the thread's. */
typedef enum { TD_ERRORS_ABORT, TD_ERRORS_RETURN } td_error_policy;
TD_API void td_errors(td_error_policy policy);

TD_API int         td_error_pending(void);   /* 0, or the code of this thread's first error                       */
TD_API const char *td_error_message(void);   /* its sentence; "" when none; valid until td_error_clear            */
TD_API void        td_error_clear(void);     /* forget it; the next one is the first again                        */
TD_API const char *td_error_name(int code);  /* "TD_ERR_SHAPE"; "TD_OK"; "TD_ERR_?" for anything else             */
TD_API const char *td_error_text(int code);  /* one line about the code                                           */

/* Bindings of other languages say where the user's call stands; `file` must outlive the next call. Normally the line
 * is found from the return address. NULL goes back to that. Per thread. */
TD_API void td_here(const char *file, int line);

#ifdef __cplusplus
}
#endif
#endif
