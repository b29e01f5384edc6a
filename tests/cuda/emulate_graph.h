/* tests/cuda/emulate_graph.h: graphs of the emulated device: between begin and end launches are kept with their arguments, by value, and nothing
 * runs; a launch of the graph runs them in order. So a number that was given as an argument shows that it was. Memory taken meanwhile, and what is
 * given back meanwhile, stays until the graph is freed.
 */
#ifndef TD_EMULATE_GRAPH_H
#define TD_EMULATE_GRAPH_H
#include <stdbool.h>
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif
bool  td__emulated_recording(void);
void  td__emulated_move(void *to, const void *from, size_t n);   /* a copy on the device: now, or when the graph runs             */
bool  td__emulated_call(void (*fn)(void *of), void *of);          /* recorded, to run with every launch? Else it is the caller's      */
int   td__emulated_refuses(const char *what);          /* 0, or td__fail while recording                                        */
void  td__emulated_taken(void *block);                 /* block was handed out                                                  */
bool  td__emulated_keeps(void *block, void (*give)(void *));   /* block comes back: does a graph keep it, to be given by `give` later? */
int   td__emulated_graph_begin(int index);
int   td__emulated_graph_end(int index, void **graph);
int   td__emulated_graph_launch(int index, void *graph);
void  td__emulated_graph_free(int index, void *graph);
#ifdef __cplusplus
}
#endif
#endif
