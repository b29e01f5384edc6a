/* tensor/cpu/stream.h: stores that pass the caches, for results too large to stay in them; and asking for what is read next.
 *
 * An ordinary store to a line that is in no cache reads the line first; writing whole lines around the caches saves that, a third of the traffic of
 * y = f(x). It pays only where nobody will find the result in a cache anyhow, hence TD_STREAM_BYTES. The bytes are the same. This file
 * uses x86 intrinsics; elsewhere it copies.
 */
#ifndef TD_STREAM_H
#define TD_STREAM_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

enum { TD_STREAM_BYTES = 24 << 20 };           /* results of at least so many bytes                                       */

#if defined(__AVX512F__)
enum { TD_STREAM_VECTOR = 64 };
#define TD_STREAM_STORE(to, from) _mm512_stream_si512((void *)(to), _mm512_loadu_si512((const void *)(from)))
#elif defined(__AVX2__)
enum { TD_STREAM_VECTOR = 32 };
#define TD_STREAM_STORE(to, from) _mm256_stream_si256((__m256i *)(void *)(to), _mm256_loadu_si256((const __m256i *)(const void *)(from)))
#elif defined(__SSE2__)
enum { TD_STREAM_VECTOR = 16 };
#define TD_STREAM_STORE(to, from) _mm_stream_si128((__m128i *)(void *)(to), _mm_loadu_si128((const __m128i *)(const void *)(from)))
#endif

/* As memcpy, around the caches. td__stream_end before anybody else reads it. */
static inline void td__stream(void *into, const void *source, size_t bytes)
{
#if defined(__SSE2__)
    char *to = into;
    const char *from = source;
    const size_t head = (size_t)(-(uintptr_t)to & 63) < bytes ? (size_t)(-(uintptr_t)to & 63) : bytes;
    memcpy(to, from, head);
    to += head, from += head, bytes -= head;
    for (; bytes >= 64; to += 64, from += 64, bytes -= 64)
        for (int i = 0; i < 64; i += TD_STREAM_VECTOR)
            TD_STREAM_STORE(to + i, from + i);
    memcpy(to, from, bytes);
#else
    memcpy(into, source, bytes);
#endif
}

static inline void td__stream_end(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

/* Asks for the lines of what is read next, for loops that compute too long on a line for the processor to run ahead of them by itself, and for pieces that
 * do not follow each other in memory. Nothing needs to lie there. */
static inline void td__ask(const void *next, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)next + i);
}
#endif
