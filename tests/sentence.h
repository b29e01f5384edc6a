/* tests/sentence.h: an error's sentence compared whole. Include it after <cmocka.h>. */
#ifndef TD_TEST_SENTENCE_H
#define TD_TEST_SENTENCE_H
#include <string.h>
#include <tandem/error.h>
#include <tandem/tensor.h>

/* The pending error is this code and sentence (module path and the caller's place may follow); it is cleared. */
static inline void expect_error(int code, const char *sentence)
{
    const char *got = td_error_message();
    size_t n = strlen(sentence);
    if (strncmp(got, sentence, n) != 0 || (got[n] != '\0' && strncmp(got + n, " at ", 4) != 0 && strncmp(got + n, " (in ", 5) != 0))
        fail_msg("expected the sentence\n    %s\ngot\n    %s", sentence, got);
    assert_int_equal(td_error_pending(), code);
    td_error_clear();
}

/* x is poisoned, and the pending error has this code and a sentence that begins so; it is cleared. */
static inline void expect_poisoned(td_tensor *x, int code, const char *beginning)
{
    assert_true(td_is_poisoned(x));
    assert_int_equal(td_error_pending(), code);
    if (strncmp(td_error_message(), beginning, strlen(beginning)) != 0)
        assert_string_equal(td_error_message(), beginning);
    td_error_clear();
}

#endif
