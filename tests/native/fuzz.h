// A fuzz driver for one target, deterministic for a seed: mutated inputs, kept when they reach new code. A program
// includes this, defines kName, kMaxInput, corpus() and run(), and is built by native.py with g++'s sanitizers.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <bitset>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "entropy/rans.h"

namespace fuzz {

using Bytes = std::vector<std::uint8_t>;

// What no input may bring about; unlike the errors of ours it ends the program.
struct Broken : std::logic_error {
    using std::logic_error::logic_error;
};

inline void require(bool condition, const char* promise) {
    if (!condition) throw Broken(promise);
}

// Each target's own. run() returns whether the input was accepted, and may throw what our code promises to throw.
extern const char* const kName;
extern const std::size_t kMaxInput;  // mutated inputs are cut to this many bytes
std::vector<Bytes> corpus();
bool run(const Bytes& input);

// splitmix64: the same numbers everywhere.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t next() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    std::size_t below(std::size_t limit) { return limit == 0 ? 0 : next() % limit; }

private:
    std::uint64_t state_;
};

// Reads numbers from an input; behind its end there are zeros.
class Source {
public:
    explicit Source(const Bytes& bytes) : bytes_(bytes) {}
    template <class T>
    T take() {
        T value{};
        const std::size_t size = std::min(sizeof(T), bytes_.size() - position_);
        if (size != 0) std::memcpy(&value, bytes_.data() + position_, size);
        position_ += size;
        return value;
    }
    std::size_t left() const { return bytes_.size() - position_; }
    Bytes rest() const { return Bytes(bytes_.begin() + static_cast<std::ptrdiff_t>(position_), bytes_.end()); }

private:
    const Bytes& bytes_;
    std::size_t position_ = 0;
};

template <class T>
void append(Bytes& bytes, T value) {
    const auto* first = reinterpret_cast<const std::uint8_t*>(&value);
    bytes.insert(bytes.end(), first, first + sizeof(T));
}

inline void mutate(Bytes& bytes, const std::vector<Bytes>& pool, Random& random) {
    static constexpr std::uint32_t kEdges[] = {0,          1,          0x7f,       0x80,       0xff,      0xffff,
                                               0x10000,    0x10001,    0x7fffffff, 0x80000000, 0xffffffff, 0x40000000,
                                               0xc0000000, 0x3f800000, 0x7f800000, 0x7fc00000};
    const auto at = [&](std::size_t extra = 0) {
        return bytes.begin() + static_cast<std::ptrdiff_t>(random.below(bytes.size() + extra));
    };
    switch (random.below(bytes.empty() ? 2 : 9)) {
        case 0: {  // random bytes inserted
            Bytes fresh(1 + random.below(8));
            for (std::uint8_t& byte : fresh) byte = static_cast<std::uint8_t>(random.next());
            bytes.insert(at(1), fresh.begin(), fresh.end());
            break;
        }
        case 1: {  // the tail of another input
            const Bytes& other = pool[random.below(pool.size())];
            bytes.resize(random.below(bytes.size() + 1));
            bytes.insert(bytes.end(), other.begin() + static_cast<std::ptrdiff_t>(random.below(other.size() + 1)),
                         other.end());
            break;
        }
        case 2: bytes.resize(random.below(bytes.size())); break;
        case 3: {  // a piece removed
            const auto first = at();
            bytes.erase(first, first + std::min<std::ptrdiff_t>(1 + random.below(8), bytes.end() - first));
            break;
        }
        case 4: {  // a number at the edge of something
            const std::uint32_t edge = kEdges[random.below(std::size(kEdges))];
            const std::size_t place = random.below(bytes.size()), width = std::size_t{1} << random.below(3);
            std::memcpy(&bytes[place], &edge, std::min(width, bytes.size() - place));
            break;
        }
        case 5: *at() = static_cast<std::uint8_t>(random.next()); break;
        case 6: *at() += random.below(2) ? 1 : -1; break;
        default: *at() ^= static_cast<std::uint8_t>(1u << random.below(8)); break;
    }
}

// Coverage: every place reached, by hash of its address. Filled by code built with -fsanitize-coverage=trace-pc.
inline std::bitset<1 << 16> reached;

// Limits the processor time of one input: a busy machine is no hang.
constexpr int kLimitSeconds = 5;

inline void too_long(int) {
    static const char message[] = "one input took longer than its limit\n";
    const auto written = ::write(2, message, sizeof(message) - 1);
    ::_exit(written > 0 ? 3 : 4);
}

inline void start_clock() {
    const itimerval limit{{0, 0}, {kLimitSeconds, 0}};
    ::setitimer(ITIMER_PROF, &limit, nullptr);
}

// A file with the current input, for a post-mortem of whatever ends the program.
class Trace {
public:
    explicit Trace(const std::string& path) {
        if (path.empty()) return;
        const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
        if (file < 0 || ::ftruncate(file, kSize) != 0) throw std::runtime_error("cannot write " + path);
        map_ = static_cast<std::uint8_t*>(::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
        ::close(file);
        if (map_ == MAP_FAILED) throw std::runtime_error("cannot map " + path);
    }
    void set(const Bytes& input) {
        if (map_ == nullptr) return;
        const std::uint32_t size = static_cast<std::uint32_t>(std::min(input.size(), kSize - 4));
        std::memcpy(map_, &size, 4);
        if (size != 0) std::memcpy(map_ + 4, input.data(), size);
    }

private:
    static constexpr std::size_t kSize = std::size_t{1} << 20;
    std::uint8_t* map_ = nullptr;
};

struct Counts {
    std::uint64_t executions = 0, accepted = 0;
};

// One input: whether it was accepted. What our code does not promise to throw goes through.
inline bool execute(const Bytes& input, Counts& counts) {
    const Bytes exact(input);  // no spare capacity: the byte behind the end is not ours
    start_clock();
    ++counts.executions;
    try {
        const bool accepted = run(exact);
        counts.accepted += accepted;
        return accepted;
    } catch (const sparsecodec::BitstreamError&) {
    } catch (const std::invalid_argument&) {
    }
    return false;
}

// --seconds S, --executions N (the first one reached ends it), --seed K, --trace FILE; or files to run.
inline int main(int argc, char** argv) {
    double seconds = 1e9;
    std::uint64_t executions = ~std::uint64_t{0}, seed = 0;
    std::string trace_path;
    std::vector<Bytes> pool;
    Counts counts;
    std::signal(SIGPROF, too_long);
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
        if (word == "--seconds") seconds = std::stod(value), ++i;
        else if (word == "--executions") executions = std::stoull(value), ++i;
        else if (word == "--seed") seed = std::stoull(value), ++i;
        else if (word == "--trace") trace_path = value, ++i;
        else {
            std::ifstream file(word, std::ios::binary);
            pool.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        }
    }
    Trace trace(trace_path);
    try {
        const bool replay = !pool.empty();
        if (!replay) pool = corpus();
        std::size_t good = 0;
        for (const Bytes& input : pool) {
            trace.set(input);
            good += execute(input, counts);
        }
        const std::size_t seeds = pool.size();
        if (!replay) require(good > 0, "some input of the corpus is accepted");
        const auto begin = std::chrono::steady_clock::now();
        Random random(seed);
        std::size_t places = reached.count();
        while (!replay && counts.executions < executions) {
            const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
            if (spent.count() >= seconds) break;
            Bytes input = pool[random.below(pool.size())];
            for (std::size_t n = std::size_t{1} << random.below(4); n-- > 0;) mutate(input, pool, random);
            if (input.size() > kMaxInput) input.resize(kMaxInput);
            trace.set(input);
            execute(input, counts);
            if (reached.count() > places && pool.size() < 4096) {
                places = reached.count();
                pool.push_back(std::move(input));
            }
        }
        std::printf("%s: %llu executions, %llu refused, %llu accepted; %zu inputs, %zu of them found; %zu places\n",
                    kName, static_cast<unsigned long long>(counts.executions),
                    static_cast<unsigned long long>(counts.executions - counts.accepted),
                    static_cast<unsigned long long>(counts.accepted), pool.size(), pool.size() - seeds, places);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: broken: %s\n", kName, error.what());
        return 1;
    }
}

}  // namespace fuzz

extern "C" void __sanitizer_cov_trace_pc() {
    const auto place = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
    fuzz::reached.set((place ^ (place >> 16)) & 0xffff);
}

int main(int argc, char** argv) { return fuzz::main(argc, argv); }
