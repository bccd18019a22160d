// How the bytes of an input become shapes, options and values for a kernel.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "guarded.h"

namespace fuzz {

inline int multiple(int n, int of) { return (n + of - 1) / of * of; }

constexpr std::ptrdiff_t kProducts = 200000;  // of one call: the sanitizers make it slow

// What an input says, read again for each instruction set.
class Choice {
  public:
    explicit Choice(const Bytes& bytes) : source_(bytes), random_(source_.take<std::uint8_t>()) {
        const auto where = source_.take<std::uint8_t>();
        at_end = where % 4 != 0;
        special = where / 4 % 8 == 0;
    }
    int below(int limit) { return source_.take<std::uint8_t>() % limit; }
    bool flag() { return below(2) == 1; }
    int channels() { return 1 + below(72); }
    std::ptrdiff_t gap() { return flag() ? below(9) : 0; }

    // Numbers around 0; if `special`, now and then one that is none, or is out of all bounds.
    float value() {
        if (special && random_.below(16) == 0) {
            constexpr float inf = std::numeric_limits<float>::infinity();
            constexpr float kSpecial[] = {inf, -inf, std::numeric_limits<float>::quiet_NaN(), 1e30f, -1e30f, 3e9f, -3e9f, 0.0f};
            return kSpecial[random_.below(8)];
        }
        return static_cast<float>(static_cast<int>(random_.below(4001)) - 2000) / 1000.0f;
    }
    std::vector<float> values(std::size_t count) {
        std::vector<float> result(count);
        for (float& value : result) value = this->value();
        return result;
    }
    std::vector<float> maybe_values(std::size_t count) { return flag() ? values(count) : std::vector<float>(); }
    std::int32_t integer(std::int32_t least, std::int32_t most) {
        const auto count = static_cast<std::size_t>(std::int64_t{most} - least + 1);
        return static_cast<std::int32_t>(least + static_cast<std::int64_t>(random_.below(count)));
    }
    // `count` channels of `width`, each once.
    std::vector<std::int32_t> subset(int count, int width) {
        std::vector<std::int32_t> all(width);
        for (int i = 0; i < width; ++i) all[i] = i;
        for (int i = 0; i < count; ++i) std::swap(all[i], all[i + random_.below(width - i)]);
        all.resize(count);
        return all;
    }
    template <class T>
    Guarded<T> image(std::ptrdiff_t n, std::ptrdiff_t c, std::ptrdiff_t h, std::ptrdiff_t w) {
        return {n, c, h, w, gap(), at_end};
    }
    template <class T>
    void fill(const Guarded<T>& image) {
        image.each([&](T& to) {
            if constexpr (std::is_same_v<T, float> || std::is_same_v<T, sparsecodec::igemm::bf16>) {
                put(to, value());
            } else {
                to = static_cast<T>(integer(std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
            }
        });
    }
    template <class T>
    Guarded<T> like(const sparsecodec::Image<T>& image, std::ptrdiff_t gap) {
        return {image.n, image.c, image.h, image.w, gap, at_end};
    }

    bool at_end, special;

  private:
    Source source_;
    Random random_;
};

struct Size {
    std::ptrdiff_t n, h, w;
};

// Batches of none, one or two; pictures from one pixel to some hundred, as the products per pixel allow.
inline Size size(Choice& choice, std::ptrdiff_t products) {
    const std::ptrdiff_t most = std::max<std::ptrdiff_t>(1, std::min<std::ptrdiff_t>(330, kProducts / products));
    const std::ptrdiff_t n = choice.below(8) == 0 ? 0 : 1 + choice.below(5) / 4;
    const std::ptrdiff_t h = 1 + choice.below(static_cast<int>(std::min<std::ptrdiff_t>(20, most)));
    return {n, h, 1 + choice.below(static_cast<int>(std::max<std::ptrdiff_t>(1, most / h / std::max<std::ptrdiff_t>(1, n))))};
}

inline sparsecodec::igemm::Activation activation(Choice& choice) {
    constexpr float kSlopes[] = {1.0f, 0.0f, 0.01f, 0.25f};
    const int kind = choice.below(5);
    return kind == 4 ? sparsecodec::igemm::Activation{1.0f, true} : sparsecodec::igemm::Activation{kSlopes[kind], false};
}

}  // namespace fuzz
