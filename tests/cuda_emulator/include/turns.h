// How the emulator runs the threads of a kernel. Included by cuda_runtime.h, behind what each of them has of its own.
//
// As threads of the CPU, for the sanitizers; with SC_TURNS in turns on the one that calls, each up to its next barrier.
// Tens of threads that meet thousands of times wait for the scheduler: ten times as long where other work runs, too.
#pragma once

#if !defined(SC_TURNS)
#include <barrier>
#include <thread>
#include <vector>

namespace emulator {

using Barrier = std::barrier<>;

inline void give_way() { std::this_thread::yield(); }

// f(i) for each i below `count`, all at a time.
template <class F>
void side_by_side(unsigned count, F f) {
    std::vector<std::thread> running;
    for (unsigned i = 0; i < count; ++i) running.emplace_back(f, i);
    for (std::thread& one : running) one.join();
}

}  // namespace emulator

#else
#include <ucontext.h>

#include <functional>
#include <memory>
#include <tuple>
#include <vector>

namespace emulator {

struct Turn {
    ucontext_t context;
    std::function<void()> work;
    bool done = false;
};

inline thread_local Turn* current = nullptr;
inline thread_local ucontext_t between_turns;

inline void give_way() {
    const auto own = std::tuple(threadIdx, blockIdx, blockDim, gridDim, slot, thread, syncs, exchanges);
    swapcontext(&current->context, &between_turns);
    std::tie(threadIdx, blockIdx, blockDim, gridDim, slot, thread, syncs, exchanges) = own;
}

class Barrier {
public:
    explicit Barrier(unsigned threads) : threads_(threads) {}

    void arrive_and_wait() {
        const unsigned phase = phase_;
        if (++arrived_ == threads_) {
            arrived_ = 0;
            ++phase_;
        }
        while (phase_ == phase) give_way();
    }

private:
    unsigned threads_, arrived_ = 0, phase_ = 0;
};

// f(i) for each i below `count`, in turns.
template <class F>
void side_by_side(unsigned count, F f) {
    constexpr std::size_t kStack = 1 << 16;
    const auto stacks = std::make_unique_for_overwrite<char[]>(count * kStack);
    std::vector<Turn> turns(count);
    for (unsigned i = 0; i < count; ++i) {
        turns[i].work = [f, i] { f(i); };
        getcontext(&turns[i].context);
        turns[i].context.uc_stack.ss_sp = &stacks[i * kStack];
        turns[i].context.uc_stack.ss_size = kStack;
        turns[i].context.uc_link = &between_turns;
        makecontext(&turns[i].context, +[] {
            current->work();
            current->done = true;
        }, 0);
    }
    for (unsigned left = count; left > 0;) {
        for (Turn& turn : turns) {
            if (turn.done) continue;
            current = &turn;
            swapcontext(&between_turns, &turn.context);
            left -= turn.done;
        }
    }
}

}  // namespace emulator
#endif
