// The kernels of csrc/cpu on shapes, strides and options of any bytes, under every instruction set: none reads or writes
// beside its data, and where arithmetic is pinned all give the same bits.
#include <cstdlib>
#include <optional>

#include "cpu/compact_symbols.h"
#include "cpu/conv2d_act.h"
#include "cpu/conv_transpose2d_act.h"
#include "cpu/deform_conv2d.h"
#include "cpu/depth_conv_block.h"
#include "cpu/gdn.h"
#include "cpu/prior_head.h"
#include "cpu/warp.h"
#include "fuzz.h"
#include "integer_kernels.h"
#include "kernel_choices.h"

const char* const fuzz::kName = "kernels";
const std::size_t fuzz::kMaxInput = 24;

namespace {

using namespace sparsecodec;
using fuzz::Bytes;
using fuzz::activation;
using fuzz::Choice;
using fuzz::Guarded;
using fuzz::Random;
using fuzz::Size;
using fuzz::multiple;
using fuzz::size;
using igemm::bf16;

// Bits of what all instruction sets agree on: bf16 products are summed as the processor does it.
template <class T>
Bytes pinned(Guarded<T>& out) {
    Bytes bits = out.bits();
    return std::is_same_v<T, bf16> ? Bytes() : bits;
}

template <class T>
Bytes conv2d(Choice& choice) {
    ConvOptions options;
    const int kind = choice.below(4), k = choice.channels(), kh = 1 + choice.below(5), kw = 1 + choice.below(5);
    const bool pointwise = choice.flag();
    if (kind == 2) options.shuffle = 1 + choice.below(3);
    if (kind == 3 && pointwise) options.chunks = 1 + choice.below(4), options.interleaved = choice.flag();
    const int n = multiple(choice.channels(), options.shuffle * options.shuffle * options.chunks);
    const ConvKernel kernel{nullptr, n, k, pointwise ? 1 : kh, pointwise ? 1 : kw};
    options.stride = 1 + choice.below(3);
    options.padding = choice.below(4);
    options.activation = activation(choice);
    options.pinned = choice.flag();
    const int width = choice.flag() ? k + choice.below(9) : k;
    if (width > k) options.in_index = choice.subset(k, width);
    int target = n;
    if (kind == 1) {
        target = n + choice.below(40);
        options.scatter = true;
        options.out_index = choice.subset(n, target);
    }
    const Size at = size(choice, std::ptrdiff_t{n} * k * kernel.kh * kernel.kw);
    const auto weights = choice.values(std::size_t(n) * k * kernel.kh * kernel.kw), bias = choice.maybe_values(n);
    const Conv2dAct<T> conv({weights.data(), n, k, kernel.kh, kernel.kw}, bias.empty() ? nullptr : bias.data(), options);
    auto x = choice.image<T>(at.n, options.in_index.empty() ? k : width, at.h, at.w);
    choice.fill(x);
    const Image<T> wanted = conv.result(x.view(), target);
    if (wanted.h < 0 || wanted.w < 0) return {};
    const bool dense = options.shuffle > 1;
    auto residual = choice.like(wanted, dense ? 0 : choice.gap()), out = choice.like(wanted, dense ? 0 : choice.gap());
    choice.fill(residual);
    const Image<const T> base = residual.view();
    const auto scale = choice.maybe_values(wanted.c);
    const bool added = options.scatter || choice.flag();
    Image<const T> from = x.view();
#ifdef SC_PLANT_OVERRUN  // pixels one element too far apart: what pages and sanitizers are worth
    ++from.stride_w;
#endif
    conv.run(from, out.image(), added ? &base : nullptr, scale.empty() ? nullptr : scale.data());
    return pinned(out);
}

template <class T>
Bytes conv_transpose2d(Choice& choice) {
    const int n = choice.channels(), k = choice.channels(), kh = 1 + choice.below(5), kw = 1 + choice.below(5);
    const int stride = 1 + choice.below(3), padding = choice.below(3), more = choice.below(stride);
    const Size at = size(choice, std::ptrdiff_t{n} * k * kh * kw);
    const auto weights = choice.values(std::size_t(n) * k * kh * kw), bias = choice.maybe_values(n);
    const ConvTranspose2dAct<T> conv({weights.data(), n, k, kh, kw}, bias.empty() ? nullptr : bias.data(), stride,
                                     padding, more, activation(choice), choice.flag());
    auto x = choice.image<T>(at.n, k, at.h, at.w);
    choice.fill(x);
    const Image<T> wanted = conv.result(x.view());
    if (wanted.h < 1 || wanted.w < 1) return {};
    auto out = choice.like(wanted, choice.gap());
    conv.run(x.view(), out.image());
    return pinned(out);
}

template <class T>
Bytes depth_conv_block(Choice& choice) {
    DepthConvBlockParts parts;
    const int c = choice.channels(), co = choice.flag() ? choice.channels() : c, c1 = choice.channels();
    const int chunks = 1 + choice.below(3), hidden = chunks * choice.channels();
    const int k1 = choice.flag() ? 1 + choice.below(c) : c, k3 = choice.flag() ? 1 + choice.below(co) : co;
    const int n2 = choice.flag() ? 1 + choice.below(co) : co, n4 = choice.flag() ? 1 + choice.below(co) : co;
    std::vector<std::vector<float>> kept;
    const auto matrix = [&](int n, int k) {
        kept.push_back(choice.values(std::size_t(n) * k));
        const float* const weight = kept.back().data();
        kept.push_back(choice.maybe_values(n));
        return Matrix{weight, kept.back().empty() ? nullptr : kept.back().data(), n, k};
    };
    const auto taps = choice.values(9 * c1), taps_bias = choice.maybe_values(c1);
    kept.reserve(10);
    parts.first = matrix(c1, k1);
    parts.depthwise = taps.data();
    parts.depthwise_bias = taps_bias.empty() ? nullptr : taps_bias.data();
    parts.second = matrix(n2, c1);
    if (co != c) parts.adaptor = matrix(co, c);
    parts.hidden = matrix(hidden, k3);
    parts.last = matrix(n4, hidden / chunks);
    if (k1 != c) parts.in1_index = choice.subset(k1, c);
    if (k3 != co) parts.in3_index = choice.subset(k3, co);
    if (n2 != co) parts.out2_index = choice.subset(n2, co);
    if (n4 != co) parts.out4_index = choice.subset(n4, co);
    for (float& slope : parts.slopes) slope = choice.below(2) ? 0.01f : 1.0f;
    if (choice.flag()) parts.rest_slope = 0.2f;
    parts.gated = choice.flag();
    parts.chunks = chunks;
    parts.interleaved = choice.flag();
    parts.shortcut = choice.flag();
    parts.c = c;
    parts.co = co;
    const Size at = size(choice, std::ptrdiff_t{c1} * (k1 + n2) + std::ptrdiff_t{hidden} * (k3 + n4) + c * co);
    const DepthConvBlock<T> block(parts);
    auto x = choice.image<T>(at.n, c, at.h, at.w), out = choice.image<T>(at.n, co, at.h, at.w);
    choice.fill(x);
    const auto scale = choice.maybe_values(co);
    block.run(x.view(), out.image(), scale.empty() ? nullptr : scale.data());
    return pinned(out);
}

// Offsets, flows, factors: as an image seen as planes, or planes one after the other.
struct Moved {
    Guarded<float> memory;
    Planes planes;

    Moved(Choice& choice, const Size& at, std::ptrdiff_t c, float reach) : Moved(choice, at, c, reach, choice.flag()) {}

  private:
    Moved(Choice& choice, const Size& at, std::ptrdiff_t c, float reach, bool pixels)
        : memory(at.n, pixels ? c : at.w, pixels ? at.h : c, pixels ? at.w : at.h, pixels ? choice.gap() : 0,
                 choice.at_end) {
        memory.each([&](float& to) { to = reach * choice.value(); });
        const Image<float>& image = memory.image();
        planes = pixels ? Planes{image.data, image.stride_n, 1, image.stride_h, image.stride_w}
                        : Planes{image.data, image.stride_n, image.stride_h, image.stride_w, 1};
    }
};

template <class T>
Bytes deform_conv2d(Choice& choice) {
    const int groups = 1 + choice.below(4), k = groups * (1 + choice.below(18)), n = choice.channels();
    const int kh = 1 + 2 * choice.below(2), kw = 1 + 2 * choice.below(3), taps = kh * kw;
    const Size at = size(choice, std::ptrdiff_t{k} * (n + 8) * taps);
    const auto weights = choice.values(std::size_t(n) * k * taps), bias = choice.maybe_values(n);
    const DeformConv2d<T> conv({weights.data(), n, k, kh, kw}, bias.empty() ? nullptr : bias.data(),
                               choice.flag());
    auto x = choice.image<T>(at.n, k, at.h, at.w), out = choice.image<T>(at.n, n, at.h, at.w);
    choice.fill(x);
    const Moved offset(choice, at, 2 * groups * taps, choice.flag() ? 2.0f : 20.0f), mask(choice, at, groups * taps, 1.0f);
    conv.run(x.view(), offset.planes, choice.flag() ? &mask.planes : nullptr, groups, out.image());
    return pinned(out);
}

template <class T>
Bytes warp(Choice& choice) {
    const int c = choice.channels();
    const Size at = size(choice, 8 * c);
    auto x = choice.image<T>(at.n, c, at.h, at.w), out = choice.image<T>(at.n, c, at.h, at.w);
    choice.fill(x);
    const Moved flow(choice, at, 2, choice.flag() ? 2.0f : 20.0f);
    sparsecodec::warp(x.view(), flow.planes, out.image());
    return pinned(out);
}

template <class T>
Bytes gdn(Choice& choice) {
    const int c = choice.channels();
    const Size at = size(choice, c * c);
    const auto beta = choice.values(c), gamma = choice.values(std::size_t(c) * c);
    const Gdn<T> gdn(beta.data(), gamma.data(), c, choice.flag());
    auto x = choice.image<T>(at.n, c, at.h, at.w), out = choice.image<T>(at.n, c, at.h, at.w);
    choice.fill(x);
    gdn.run(x.view(), out.image());
    return pinned(out);
}

ScaleTable thresholds(Choice& choice) {
    std::vector<float> values(choice.below(100));
    float last = 0.1f;
    for (float& value : values) value = last *= 1.0f + static_cast<float>(choice.integer(0, 100)) / 400.0f;
    return ScaleTable(values);
}

Bytes prior_head(Choice& choice) {
    const Part part = kParts[choice.below(std::size(kParts))].part;
    const int c = 1 + choice.below(40), k = choice.channels(), rows = 2 * part.groups * c;
    const Size at = size(choice, rows * k);
    const auto weights = choice.values(std::size_t(rows) * k), bias = choice.maybe_values(rows);
    const PriorHead::Rows places = choice.flag() ? PriorHead::Rows{c, 0, c, 2 * c} : PriorHead::Rows{c, 0, rows / 2, c};
    const std::optional<float> skip = choice.flag() ? std::optional<float>(0.3f) : std::nullopt;
    const PriorHead head(weights.data(), bias.empty() ? nullptr : bias.data(), k, part, places, activation(choice),
                         thresholds(choice), skip);
    auto x = choice.image<float>(at.n, k, at.h, at.w), residual = choice.image<float>(at.n, rows, at.h, at.w);
    auto means = choice.image<float>(at.n, c, at.h, at.w);
    Guarded<std::int16_t> indexes(at.n, at.w, c, at.h, 0, choice.at_end);
    choice.fill(x);
    choice.fill(residual);
    const Image<const float> base = residual.view();
    head.run(x.view(), choice.flag() ? &base : nullptr, indexes.image().data, means.image());
    Bytes bits = indexes.bits(), more = means.bits();
    bits.insert(bits.end(), more.begin(), more.end());
    return bits;
}

Bytes latents(Choice& choice) {
    const Part part = kParts[choice.below(std::size(kParts))].part;
    const int c = 1 + choice.below(40), all = part.groups * c;
    const Size at = size(choice, all);
    const auto given = [&] {
        auto image = choice.image<float>(at.n, all, at.h, at.w);
        choice.fill(image);
        return image;
    };
    const auto grouped = [&](const Guarded<float>& from) {
        const Image<float>& i = from.image();
        return GroupedImage<float>{i.data, i.n, part.groups, c, i.h, i.w, i.stride_n, c, i.stride_h, i.stride_w};
    };
    const auto read = [&](const Guarded<float>& from, bool there) {
        const GroupedImage<float> g = grouped(from);
        return there ? GroupedImage<const float>{g.data, g.n, g.groups, g.c, g.h, g.w, g.stride_n, g.stride_g, g.stride_h, g.stride_w}
                     : GroupedImage<const float>{};
    };
    const Guarded<float> y = given(), means = given(), step = given(), base = given();
    auto out = choice.image<float>(at.n, all, at.h, at.w);
    Guarded<std::int16_t> indexes(at.n, at.w, c, at.h, 0, choice.at_end);
    Guarded<std::int32_t> symbols(at.n, at.w, c, at.h, 0, choice.at_end);
    const bool has_means = choice.flag(), has_step = choice.flag();
    const auto gain = choice.maybe_values(all);
    entropy_parameters(thresholds(choice), part, read(y, true), indexes.image().data);
    quantize_latent(part, 32767.0f, read(y, true), read(means, has_means), read(step, has_step), symbols.image().data);
    restore_latent(part, symbols.image().data, read(means, has_means), read(base, choice.flag()), read(step, has_step),
                   gain.empty() ? nullptr : gain.data(), grouped(out));
    Bytes bits = indexes.bits();
    for (const Bytes& more : {symbols.bits(), out.bits()}) bits.insert(bits.end(), more.begin(), more.end());
    return bits;
}

Bytes compaction(Choice& choice) {
    const std::ptrdiff_t n = choice.below(200) * (choice.flag() ? 1 : 40);
    const auto line = [&](auto zero, std::ptrdiff_t count) {
        return Guarded<decltype(zero)>(1, count, 1, 1, 0, choice.at_end);
    };
    auto indexes = line(std::int16_t{}, n), packed = line(std::int16_t{}, n);
    auto symbols = line(std::int32_t{}, n), packed_symbols = line(std::int32_t{}, n), expanded = line(std::int32_t{}, n);
    const int kept_of_8 = choice.below(9);
    indexes.each([&](std::int16_t& to) { to = static_cast<std::int16_t>(choice.integer(0, 7) < kept_of_8 ? choice.integer(0, 127) : -1); });
    choice.fill(symbols);
    const bool both = choice.flag();
    const std::ptrdiff_t kept = compact_symbols(indexes.image().data, both ? symbols.image().data : nullptr, n,
                                                packed.image().data, both ? packed_symbols.image().data : nullptr);
    fuzz::require(kept >= 0 && kept <= n, "not more symbols are kept than there are");
    const std::ptrdiff_t there = kept - (kept == 0 ? 0 : choice.below(static_cast<int>(std::min<std::ptrdiff_t>(kept + 1, 256))));
    auto some = line(std::int32_t{}, there);
    choice.fill(some);
    expand_symbols(some.image().data, there, indexes.image().data, n, expanded.image().data);
    packed.bits();
    packed_symbols.bits();
    return expanded.bits();
}

using Kernel = Bytes (*)(Choice&);
using std::int16_t;
using std::int32_t;
constexpr Kernel kKernels[] = {
    conv2d<float>,           conv2d<bf16>,           conv_transpose2d<float>, conv_transpose2d<bf16>,
    depth_conv_block<float>, depth_conv_block<bf16>, deform_conv2d<float>,    deform_conv2d<bf16>,
    warp<float>,             warp<bf16>,             gdn<float>,              gdn<bf16>,
    fuzz::integer_conv2d<int16_t, int16_t>, fuzz::integer_conv2d<int16_t, int32_t>,
    fuzz::integer_conv2d<int32_t, int16_t>, fuzz::integer_conv2d<int32_t, int32_t>,
    fuzz::integer_deform_columns,
    fuzz::integer_gate, fuzz::integer_warp, prior_head, latents, compaction, fuzz::prior_context,
    fuzz::integer_gdn<int16_t>, fuzz::integer_gdn<int32_t>,
    fuzz::integer_scale<int16_t, int16_t, int16_t>, fuzz::integer_scale<int16_t, int16_t, int32_t>,
    fuzz::integer_scale<int16_t, int32_t, int16_t>, fuzz::integer_scale<int16_t, int32_t, int32_t>,
    fuzz::integer_scale<int32_t, int16_t, int16_t>, fuzz::integer_scale<int32_t, int16_t, int32_t>,
    fuzz::integer_scale<int32_t, int32_t, int16_t>, fuzz::integer_scale<int32_t, int32_t, int32_t>};

}  // namespace

// Several of each kernel, options of all kinds; the mutations do the rest.
std::vector<Bytes> fuzz::corpus() {
    std::vector<Bytes> inputs;
    Random random(1);
    for (std::size_t kernel = 0; kernel < std::size(kKernels); ++kernel) {
        for (int i = 0; i < 12; ++i) {
            Bytes bytes{static_cast<std::uint8_t>(kernel)};
            while (bytes.size() < kMaxInput) bytes.push_back(static_cast<std::uint8_t>(i == 0 ? 0 : random.next()));
            inputs.push_back(bytes);
        }
    }
    return inputs;
}

bool fuzz::run(const Bytes& bytes) {
    const Kernel kernel = kKernels[bytes.empty() ? 0 : bytes[0] % std::size(kKernels)];
    const Bytes rest(bytes.begin() + !bytes.empty(), bytes.end());
    std::optional<Bytes> scalar;
    for (const char* isa : {"scalar", "avx2", "avx512", "amx-emulated"}) {
        ::setenv("SPARSECODEC_CPU_ISA", isa, 1);
        try {
            sparsecodec::igemm::isa();
        } catch (const std::invalid_argument&) {
            continue;  // not on this machine
        }
        Choice choice(rest);
        const Bytes result = kernel(choice);
        if (!scalar) scalar = result;
        require(result == *scalar, "every instruction set gives the same bits");
    }
    return true;
}
