// Images in memory that ends where nothing may be read: behind the last value (or before the first) lies a page without
// access, which also stops masked loads and stores, of which the sanitizer knows nothing. What is left of the pages, and
// what lies between the pixels of a slice, holds a pattern that nobody may change.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <cstring>
#include <new>
#include <type_traits>

#include "cpu/igemm.h"
#include "cpu/image.h"
#include "fuzz.h"

namespace fuzz {

constexpr std::size_t kPage = 4096;
constexpr std::uint8_t kPattern = 0xff;  // of float and bf16 a NaN

class Pages {
  public:
    // at_end: the data ends at the page without access, else it begins behind one.
    Pages(std::size_t bytes, bool at_end) : bytes_(bytes), inner_((bytes + kPage - 1) / kPage * kPage) {
        void* const map = ::mmap(nullptr, inner_ + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) throw std::bad_alloc();
        first_ = static_cast<std::uint8_t*>(map) + kPage;
        if (inner_ != 0 && ::mprotect(first_, inner_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
        data_ = at_end ? first_ + inner_ - bytes : first_;
        if (inner_ != 0) std::memset(first_, kPattern, inner_);
        poison(true);
    }
    ~Pages() {
        if (first_ == nullptr) return;  // moved from
        poison(false);
        ::munmap(first_ - kPage, inner_ + 2 * kPage);
    }
    Pages(Pages&& other) : bytes_(other.bytes_), inner_(other.inner_), first_(other.first_), data_(other.data_) {
        other.first_ = nullptr;
    }

    void* data() const { return data_; }
    bool intact() {  // what surrounds the data
        poison(false);
        bool same = true;
        for (std::uint8_t* p = first_; p < first_ + inner_; ++p) {
            same = same && ((p >= data_ && p < data_ + bytes_) || *p == kPattern);
        }
        poison(true);
        return same;
    }

  private:
    void poison(bool on) {
        const std::size_t before = static_cast<std::size_t>(data_ - first_), after = inner_ - before - bytes_;
        if (on) {
            // The granule of the data's first byte stays open: it may begin in its middle.
            ASAN_POISON_MEMORY_REGION(first_, before / 8 * 8);
            ASAN_POISON_MEMORY_REGION(data_ + bytes_, after);
        } else {
            ASAN_UNPOISON_MEMORY_REGION(first_, inner_);
        }
    }
    std::size_t bytes_, inner_;
    std::uint8_t *first_, *data_;
};

inline void put(float& to, float value) { to = value; }
inline void put(sparsecodec::igemm::bf16& to, float value) { to = sparsecodec::igemm::to_bf16(value); }

// An NHWC batch; `gap` elements that are not its own stand behind each pixel.
template <class T>
class Guarded {
  public:
    Guarded(std::ptrdiff_t n, std::ptrdiff_t c, std::ptrdiff_t h, std::ptrdiff_t w, std::ptrdiff_t gap, bool at_end)
        : pages_(n * c * h * w == 0 ? 0 : sizeof(T) * ((n * h * w - 1) * (c + gap) + c), at_end) {
        image_ = {static_cast<T*>(pages_.data()), n, c, h, w, h * w * (c + gap), w * (c + gap), c + gap};
    }
    const sparsecodec::Image<T>& image() const { return image_; }
    sparsecodec::Image<const T> view() const { return image_; }

    // f(element) for each, in the order of n, h, w, c.
    template <class F>
    void each(F f) const {
        for (std::ptrdiff_t pixel = 0; image_.c != 0 && pixel < image_.n * image_.h * image_.w; ++pixel) {
            for (std::ptrdiff_t c = 0; c < image_.c; ++c) f(image_.data[pixel * image_.stride_w + c]);
        }
    }
    // The bits of all elements, after a look around them.
    Bytes bits() {
        require(pages_.intact(), "nothing beside the result is written");
        Bytes result;
        each([&](T& value) {
            if constexpr (std::is_same_v<T, float>) {
                append(result, value != value ? 0x7fc00000u : bits_of(value));
            } else {
                append(result, value);
            }
        });
        for (std::ptrdiff_t pixel = 0; image_.c != 0 && pixel + 1 < image_.n * image_.h * image_.w; ++pixel) {
            const auto* gap = reinterpret_cast<const std::uint8_t*>(image_.data + pixel * image_.stride_w + image_.c);
            for (std::size_t i = 0; i < (image_.stride_w - image_.c) * sizeof(T); ++i) {
                require(gap[i] == kPattern, "nothing between the pixels of the result is written");
            }
        }
        return result;
    }

  private:
    static std::uint32_t bits_of(float value) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return bits;
    }
    Pages pages_;
    sparsecodec::Image<T> image_;
};

}  // namespace fuzz
