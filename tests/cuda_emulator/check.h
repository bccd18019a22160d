// What the test programs share: inputs in buffers of the exact size, outputs full of poison, one line at the end.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace check {

// One generator for a program: the same cases at every run.
inline std::mt19937& generator() {
    static std::mt19937 engine(20260101);
    return engine;
}

// `n` elements on the heap, `shift` elements behind an address that is a multiple of 64, and not one byte more.
template <class T>
class Buffer {
  public:
    explicit Buffer(std::size_t n, std::size_t shift = 0) : size_(n) {
        const std::size_t bytes = (n + shift) * sizeof(T);
        memory_.reset(static_cast<unsigned char*>(::operator new(bytes, std::align_val_t{64})));
        std::fill_n(memory_.get(), bytes, static_cast<unsigned char>(0xa5));
        data_ = reinterpret_cast<T*>(memory_.get()) + shift;
    }

    T* data() { return data_; }
    std::size_t size() const { return size_; }
    T& operator[](std::size_t i) { return data_[i]; }
    bool operator==(const Buffer& other) const {
        return size_ == other.size_ && std::equal(data_, data_ + size_, other.data_);
    }

  private:
    struct Free {
        void operator()(unsigned char* m) const { ::operator delete(m, std::align_val_t{64}); }
    };
    std::size_t size_;
    std::unique_ptr<unsigned char, Free> memory_;
    T* data_;
};

// Counts what was compared; `finish` is the result of main().
class Report {
  public:
    explicit Report(const char* program) : program_(program) {}

    void expect(bool equal, const std::string& what) {
        ++cases_;
        if (equal) return;
        ++failures_;
        std::fprintf(stderr, "%s: %s differs\n", program_, what.c_str());
    }

    int finish() const {
        std::printf("%s: %d cases, %d failed\n", program_, cases_, failures_);
        return failures_ != 0 || cases_ == 0;
    }

  private:
    const char* program_;
    int cases_ = 0, failures_ = 0;
};

}  // namespace check
