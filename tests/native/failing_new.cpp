// To be preloaded into Python: after as many allocations by C++ as it is told, on all threads together, memory has run
// out. What it gives is malloc's, so that the deletes of all libraries can stay their own.
#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<long> until_failure{-1};  // -1: never

void* allocate(std::size_t size) {
    long left = until_failure;
    while (left > 0 && !until_failure.compare_exchange_weak(left, left - 1)) {
    }
    if (left == 0) throw std::bad_alloc();
    if (void* const memory = std::malloc(size != 0 ? size : 1)) return memory;
    throw std::bad_alloc();
}
}  // namespace

extern "C" void fail_after(long allocations) { until_failure = allocations; }
extern "C" long left() { return until_failure; }

void* operator new(std::size_t size) { return allocate(size); }
void* operator new[](std::size_t size) { return allocate(size); }
