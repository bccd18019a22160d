// Tasks on OpenMP's threads. What fails on one of them, most likely an allocation, is thrown where the work was asked
// for: an exception that leaves a parallel region ends the process.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>

namespace sparsecodec {

// Of the next region; 1 in builds without OpenMP.
inline std::ptrdiff_t max_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// The numbers [0, count), each taken once, by the thread that asks first.
class Tasks {
  public:
    explicit Tasks(std::ptrdiff_t count) : count_(count) {}

    bool take(std::ptrdiff_t& task) {
        task = next_.fetch_add(1, std::memory_order_relaxed);
        return task < count_;
    }
    void drop() { next_.store(count_, std::memory_order_relaxed); }

  private:
    const std::ptrdiff_t count_;
    std::atomic<std::ptrdiff_t> next_{0};
};

// Calls body(tasks) on every thread of a team, of one per task and no more than `threads`; body makes what its thread
// needs and takes tasks until there are none. Throws what a thread threw; some tasks are then not done.
template <class Body>
void in_parallel(std::ptrdiff_t count, Body body, std::ptrdiff_t threads = max_threads()) {
    [[maybe_unused]] const int team = static_cast<int>(std::max<std::ptrdiff_t>(1, std::min(threads, count)));
    Tasks tasks(count);
    std::exception_ptr failure;
#pragma omp parallel num_threads(team) if (team > 1)
    try {
        body(tasks);
    } catch (...) {
        tasks.drop();
#pragma omp critical(sparsecodec_failure)
        failure = std::current_exception();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace sparsecodec
