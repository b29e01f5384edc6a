/* tests/cuda/emulate_later.h: a launch, for emulate_graph.cpp to keep: true when a graph is being recorded. */
#ifndef TD_EMULATE_LATER_H
#define TD_EMULATE_LATER_H
#include <functional>
bool td__emulated_later(const std::function<void()> &work);
#endif
