// The kernels of integers on what an input chooses; all instruction sets agree on all of their bits.
#pragma once

#include <algorithm>
#include <limits>

#include "common/requantize.h"
#include "cpu/integer_conv2d.h"
#include "cpu/integer_deform_columns.h"
#include "cpu/integer_gate.h"
#include "cpu/integer_gdn.h"
#include "cpu/integer_scale.h"
#include "cpu/integer_warp.h"
#include "cpu/prior_context.h"
#include "fuzz.h"
#include "kernel_choices.h"

namespace fuzz {

template <class Out, class Residual>
Bytes integer_conv2d(Choice& choice) {
    sparsecodec::IntegerConvOptions options;
    const bool depthwise = choice.flag();
    options.shuffle = 1 + choice.below(3);
    const int n = multiple(choice.channels(), options.shuffle * options.shuffle), k = depthwise ? 1 : choice.channels();
    const int kh = 1 + choice.below(5), kw = 1 + choice.below(6);
    options.residual_shift = choice.below(70) - 35;
    options.padding = choice.below(4), options.stride = 1 + choice.below(3);
    options.groups = depthwise ? n : 1;
    if (choice.flag()) options.narrowing = {choice.below(33) - 16, choice.below(258) - 256};
    const Size at = size(choice, std::ptrdiff_t{n} * k * kh * kw);
    const auto filled = [&](std::size_t count, std::int32_t least, std::int32_t most) {
        std::vector<std::int32_t> values(count);
        for (std::int32_t& value : values) value = choice.integer(least, most);
        return values;
    };
    const bool high = choice.flag(), linear = choice.flag();
    auto weights = filled(std::size_t(n) * k * kh * kw, -128, 127), bias = filled(n, -(1 << 20), 1 << 20);
    const int zero = choice.flag() ? choice.below(n + 1) : 0;  // channels
    std::fill_n(weights.begin(), std::size_t(zero) * k * kh * kw, 0);
    std::fill_n(bias.begin(), zero, 0);
    auto multiplier = filled(2 * n, 0, (1 << 30) - 1);
    if (linear) std::copy_n(multiplier.begin(), n, multiplier.begin() + n);
    const auto shift = filled(n, high ? 33 : 1, high ? 45 : 62);
    const sparsecodec::IntegerConv2d conv({weights.data(), n, k, kh, kw}, bias.data(), multiplier.data(), shift.data(),
                                          options);
    auto x = choice.image<std::int16_t>(at.n, conv.input_channels(), at.h, at.w);
    choice.fill(x);
    const sparsecodec::Image<Out> wanted = conv.result<Out>(x.view());
    if (wanted.h < 0 || wanted.w < 0) return {};
    auto out = choice.like(wanted, choice.gap());
    Guarded<Residual> residual(wanted.n, wanted.c, wanted.h, wanted.w, choice.gap(), choice.at_end);
    choice.fill(residual);
    const sparsecodec::Image<const Residual> base = residual.view();
    conv.run(x.view(), out.image(), choice.flag() ? &base : nullptr);
    return out.bits();
}

inline Bytes integer_gate(Choice& choice) {
    const int chunks = 1 + choice.below(4), c = choice.channels();
    const Size at = size(choice, 16 * c);
    Guarded<std::int16_t> table(1, 1 << 16, 1, 1, 0, choice.at_end);
    choice.fill(table);
    auto x = choice.image<std::int16_t>(at.n, c * chunks, at.h, at.w);
    auto out = choice.image<std::int16_t>(at.n, c, at.h, at.w);
    choice.fill(x);
    sparsecodec::integer_gate(x.view(), table.image().data, chunks, out.image());
    return out.bits();
}

template <class Out>
Bytes integer_gdn(Choice& choice) {
    const bool inverse = choice.flag();
    const int c = choice.channels();
    const Size at = size(choice, 16 * c);
    std::vector<std::int64_t> beta(c);
    std::vector<std::int32_t> gamma(c * c), shift(c);
    for (std::int64_t& value : beta) value = std::int64_t{choice.integer(0, 1 << 20)} << (choice.flag() ? 31 : 0);
    for (std::int32_t& value : gamma) value = choice.integer(0, (1 << 21) / c);
    for (std::int32_t& value : shift) value = inverse ? choice.integer(1, 48) : choice.integer(0, 35);
    const sparsecodec::IntegerGdn gdn(beta, gamma, shift, inverse);
    auto x = choice.image<std::int16_t>(at.n, c, at.h, at.w);
    auto out = choice.image<Out>(at.n, c, at.h, at.w);
    choice.fill(x);
    gdn.run(x.view(), out.image());
    return out.bits();
}

template <class X, class Residual, class Out>
Bytes integer_scale(Choice& choice) {
    const int c = choice.flag() ? 1 + choice.below(4) : choice.channels(), factors = choice.below(3);
    const Size at = size(choice, 16 * c);
    const bool high = choice.flag(), linear = choice.flag();
    const std::int32_t most = factors == 0 ? 1 << 15 : factors == 1 ? 1 << 20 : (1 << 30) - 1;
    std::vector<std::int32_t> multiplier(2 * c), shift(c);
    for (std::int32_t& value : multiplier) value = choice.integer(-most, most);
    for (std::int32_t& value : shift) value = choice.integer(high ? 33 : 1, high ? 45 : 62);
    if (linear) std::copy_n(multiplier.begin(), c, multiplier.begin() + c);
    const sparsecodec::IntegerScale scale(shift, choice.below(64) - 32);
    auto x = choice.image<X>(at.n, c, at.h, at.w);
    auto residual = choice.image<Residual>(at.n, c, at.h, at.w);
    auto out = choice.image<Out>(at.n, c, at.h, at.w);
    choice.fill(x);
    choice.fill(residual);
    const sparsecodec::Image<const Residual> base = residual.view();
    scale.run(x.view(), multiplier.data(), choice.flag() ? &base : nullptr, out.image());
    return out.bits();
}

inline Bytes integer_warp(Choice& choice) {
    const int c = choice.channels();
    const Size at = size(choice, 8 * c);
    auto x = choice.image<std::int16_t>(at.n, c, at.h, at.w), out = choice.image<std::int16_t>(at.n, c, at.h, at.w);
    choice.fill(x);
    const std::int32_t reach = choice.flag() ? std::numeric_limits<std::int32_t>::max() : 1 << (choice.below(12) + 12);
    auto flow = choice.image<std::int32_t>(at.n, 2, at.h, at.w);
    flow.each([&](std::int32_t& to) { to = choice.integer(-reach - 1, reach); });
    const sparsecodec::Image<std::int32_t>& by = flow.image();
    sparsecodec::integer_warp(x.view(), {by.data, by.stride_n, 1, by.stride_h, by.stride_w}, out.image());
    return out.bits();
}

inline Bytes integer_deform_columns(Choice& choice) {
    const int groups = 1 + choice.below(4), c = groups * (1 + choice.below(20)), taps = sparsecodec::kColumnTaps;
    const Size at = size(choice, 20 * c);
    auto x = choice.image<std::int16_t>(at.n, c, at.h, at.w), out = choice.image<std::int16_t>(at.n, taps * c, at.h, at.w);
    auto mask = choice.image<std::int16_t>(at.n, groups * taps, at.h, at.w);
    choice.fill(x);
    choice.fill(mask);
    const std::int32_t reach = choice.flag() ? std::numeric_limits<std::int32_t>::max() : 1 << (choice.below(12) + 12);
    auto offset = choice.image<std::int32_t>(at.n, 2 * groups * taps, at.h, at.w);
    offset.each([&](std::int32_t& to) { to = choice.integer(-reach - 1, reach); });
    const auto strided = [](const auto& image) {
        return sparsecodec::Strided<std::remove_reference_t<decltype(*image.data)>>{
            image.data, image.stride_n, 1, image.stride_h, image.stride_w};
    };
    const auto factors = strided(mask.image());
    sparsecodec::integer_deform_columns(x.view(), strided(offset.image()), choice.flag() ? &factors : nullptr, groups,
                                        out.image());
    return out.bits();
}

inline Bytes prior_context(Choice& choice) {
    const sparsecodec::Part part = sparsecodec::kParts[choice.below(std::size(sparsecodec::kParts))].part;
    const int c = 1 + choice.below(40), all = part.groups * c, exponent = choice.below(61) - 46;
    const Size at = size(choice, 8 * all);
    Guarded<std::int32_t> symbols(at.n, at.w, c, at.h, 0, choice.at_end);
    choice.fill(symbols);
    const auto given = [&] {
        auto image = choice.image<std::int32_t>(at.n, all, at.h, at.w);
        constexpr std::int32_t limit = sparsecodec::kFixedLimit;
        image.each([&](std::int32_t& to) { to = choice.integer(-limit, limit - 1); });
        return image;
    };
    const Guarded<std::int32_t> means = given(), scales = given(), step = given();
    auto context = choice.image<std::int16_t>(at.n, 4 * all, at.h, at.w);
    auto first = choice.image<std::int32_t>(at.n, all, at.h, at.w);
    sparsecodec::prior_context(part, exponent, symbols.image().data, means.view(), scales.view(), step.view(),
                               context.image(), first.image());
    Bytes bits = context.bits(), more = first.bits();
    bits.insert(bits.end(), more.begin(), more.end());
    return bits;
}

}  // namespace fuzz
