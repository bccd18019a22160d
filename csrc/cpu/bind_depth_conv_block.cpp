// Python's view of depth_conv_block. A plan packs the weights of one block once; calling it runs the block.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <variant>
#include <vector>

#include "cpu/depth_conv_block.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using igemm::bf16;
using namespace py::literals;

// The values of one 1x1 convolution.
struct Convolution {
    std::vector<float> weight, bias;
    int n = 0, k = 0;

    Convolution(py::handle w, py::handle b, const char* name)
        : weight(copy_values<float>(w, name)), bias(copy_values<float>(b, name)) {
        if (w.is_none()) return;
        const py::tuple shape = w.attr("shape");
        const std::size_t ndim = shape.size();
        if (!(ndim == 2 || (ndim == 4 && shape[2].cast<int>() == 1 && shape[3].cast<int>() == 1))) {
            refuse(name, ": shape ", py::str(shape).cast<std::string>(), " (needs [C_out, C_in])");
        }
        n = shape[0].cast<int>();
        k = shape[1].cast<int>();
        if (!b.is_none() && static_cast<int>(bias.size()) != n) {
            refuse("bias of ", name, ": ", bias.size(), " values (needs ", n, ")");
        }
    }
    Matrix matrix() const { return {weight.data(), bias.empty() ? nullptr : bias.data(), n, k}; }
};

struct Constants {
    Convolution first, second, hidden, last, adaptor;
    std::vector<float> taps, taps_bias, slopes;
    std::vector<std::int32_t> in1, in3;
    std::optional<std::vector<std::int32_t>> out2, out4;
    bool gated, interleaved, shortcut;
    int chunks;

    // Channels of x as far as the weights tell, else 0: without an adaptor, a dense product has as many.
    int channels() const {
        if (in1.empty()) return first.k;
        if (adaptor.k > 0) return adaptor.k;
        if (in3.empty()) return hidden.k;
        if (!out2) return second.n;
        return out4 ? 0 : last.n;
    }

    DepthConvBlockParts parts(int c) const {
        DepthConvBlockParts parts;
        parts.first = first.matrix();
        parts.depthwise = taps.data();
        parts.depthwise_bias = taps_bias.empty() ? nullptr : taps_bias.data();
        parts.second = second.matrix();
        if (adaptor.k > 0) parts.adaptor = adaptor.matrix();
        parts.hidden = hidden.matrix();
        parts.last = last.matrix();
        parts.in1_index = in1;
        parts.in3_index = in3;
        parts.out2_index = out2;
        parts.out4_index = out4;
        parts.gated = gated;
        parts.chunks = chunks;
        parts.interleaved = interleaved;
        parts.shortcut = shortcut;
        std::copy_n(slopes.begin(), 5, parts.slopes);
        if (slopes.size() == 6) parts.rest_slope = slopes[5];
        parts.c = c;
        parts.co = adaptor.k > 0 ? adaptor.n : c;
        return parts;
    }
};

std::optional<std::vector<std::int32_t>> optional_index(py::handle index, const char* name) {
    if (index.is_none()) return {};
    return copy_values<std::int32_t>(index, name);
}

class DepthConvBlockPlan {
  public:
    DepthConvBlockPlan(py::handle w1, py::handle b1, py::handle dw, py::handle db, py::handle w2, py::handle b2,
                       py::handle w3, py::handle b3, py::handle w4, py::handle b4, const std::vector<float>& slopes,
                       py::handle adaptor, py::handle adaptor_bias, py::handle out2_index, py::handle out4_index,
                       py::handle in1_index, py::handle in3_index, bool gated, int chunks, bool interleaved,
                       bool shortcut, py::handle dtype)
        : constants_(std::make_unique<Constants>(
              Constants{{w1, b1, "w1"}, {w2, b2, "w2"}, {w3, b3, "w3"}, {w4, b4, "w4"}, {adaptor, adaptor_bias, "adaptor"},
                        copy_values<float>(dw, "dw"), copy_values<float>(db, "db"), slopes,
                        copy_values<std::int32_t>(in1_index, "in1_index"),
                        copy_values<std::int32_t>(in3_index, "in3_index"), optional_index(out2_index, "out2_index"),
                        optional_index(out4_index, "out4_index"), gated, interleaved, shortcut, chunks})),
          bf16_(dtype.is(Torch::get().bfloat16)) {
        const Constants& k = *constants_;
        const std::size_t c1 = k.first.n;
        SC_CHECK(k.taps.size() == 9 * c1, "dw: ", k.taps.size(), " values (needs [C1=", c1, ", 1, 3, 3])");
        SC_CHECK(db.is_none() || k.taps_bias.size() == c1, "db: ", k.taps_bias.size(), " values (needs C1=", c1, ")");
        SC_CHECK(slopes.size() == 5 || slopes.size() == 6, "slopes: ", slopes.size(), " values (needs 5 or 6)");
        SC_CHECK(bf16_ || dtype.is(Torch::get().float32), "dtype ", py::str(dtype).cast<std::string>(),
                 " (needs torch.float32 or torch.bfloat16)");
        if (k.channels() > 0) build(k.channels());
    }

    py::object operator()(py::handle x, py::handle scale, py::object out) {
        if (constants_) build(x.attr("shape").cast<py::tuple>()[1].cast<int>());  // every product is indexed
        return std::visit([&](const auto& block) { return run(*block, x, scale, std::move(out)); }, block_);
    }

  private:
    void build(int channels) {
        const DepthConvBlockParts parts = constants_->parts(channels);
        if (bf16_) {
            block_ = std::make_unique<DepthConvBlock<bf16>>(parts);
        } else {
            block_ = std::make_unique<DepthConvBlock<float>>(parts);
        }
        constants_.reset();
    }

    template <class T>
    py::object run(const DepthConvBlock<T>& block, py::handle x, py::handle scale, py::object out) const {
        const Image<const T> from = view_nhwc<const T>(x, "x");
        SC_CHECK(from.c == block.channels_in(), "x: ", from.c, " channels (needs ", block.channels_in(), ")");
        if (out.is_none()) out = empty_nhwc<T>(from.n, block.channels_out(), from.h, from.w);
        const Image<T> to = view_nhwc<T>(out, "out");
        if (to.n != from.n || to.c != block.channels_out() || to.h != from.h || to.w != from.w) {
            const std::ptrdiff_t got[] = {to.n, to.c, to.h, to.w};
            const std::ptrdiff_t need[] = {from.n, block.channels_out(), from.h, from.w};
            refuse("out: shape ", shape_text(got, 4), " (needs ", shape_text(need, 4), ")");
        }
        SC_CHECK(to.data != from.data || from.n * from.h * from.w == 0, "out: is x, which the kernel still reads");
        const std::vector<float> factors = scale_values(scale, to.c);
        const Unlocked unlocked;
        block.run(from, to, scale.is_none() ? nullptr : factors.data());
        return out;
    }

    std::unique_ptr<Constants> constants_;  // until the block is built
    bool bf16_;
    std::variant<std::unique_ptr<DepthConvBlock<float>>, std::unique_ptr<DepthConvBlock<bf16>>> block_;
};

}  // namespace

void bind_depth_conv_block(py::module_& m) {
    py::class_<DepthConvBlockPlan>(m, "DepthConvBlockPlan", "A depth_conv_block with packed weights.")
        .def("__call__", &DepthConvBlockPlan::operator(), "x"_a, "scale"_a = py::none(), "out"_a = py::none());
    m.def(
        "depth_conv_block_plan",
        [](py::handle w1, py::handle b1, py::handle dw, py::handle db, py::handle w2, py::handle b2, py::handle w3,
           py::handle b3, py::handle w4, py::handle b4, const std::vector<float>& slopes, py::handle adaptor,
           py::handle adaptor_bias, py::handle out2_index, py::handle out4_index, py::handle in1_index,
           py::handle in3_index, bool gated, int chunks, bool interleaved, bool shortcut, py::handle dtype) {
            return std::make_unique<DepthConvBlockPlan>(w1, b1, dw, db, w2, b2, w3, b3, w4, b4, slopes, adaptor,
                                                        adaptor_bias, out2_index, out4_index, in1_index, in3_index,
                                                        gated, chunks, interleaved, shortcut, dtype);
        },
        "w1"_a, "b1"_a, "dw"_a, "db"_a, "w2"_a, "b2"_a, "w3"_a, "b3"_a, "w4"_a, "b4"_a, "slopes"_a, "adaptor"_a,
        "adaptor_bias"_a, "out2_index"_a, "out4_index"_a, "in1_index"_a, "in3_index"_a, "gated"_a, "chunks"_a,
        "interleaved"_a, "shortcut"_a, "dtype"_a);
    m.def(
        "depth_conv_block",
        [](py::handle x, py::handle w1, py::handle b1, py::handle dw, py::handle db, py::handle w2, py::handle b2,
           py::handle w3, py::handle b3, py::handle w4, py::handle b4, const std::vector<float>& slopes, py::handle adaptor,
           py::handle adaptor_bias, py::handle out2_index, py::handle out4_index, py::handle in1_index,
           py::handle in3_index, py::handle scale, bool gated, int chunks, bool interleaved, bool shortcut) {
            return DepthConvBlockPlan(w1, b1, dw, db, w2, b2, w3, b3, w4, b4, slopes, adaptor, adaptor_bias,
                                      out2_index, out4_index, in1_index, in3_index, gated, chunks, interleaved,
                                      shortcut, x.attr("dtype"))(x, scale, py::none());
        },
        "x"_a, "w1"_a, "b1"_a, "dw"_a, "db"_a, "w2"_a, "b2"_a, "w3"_a, "b3"_a, "w4"_a, "b4"_a, "slopes"_a, "adaptor"_a,
        "adaptor_bias"_a, "out2_index"_a, "out4_index"_a, "in1_index"_a, "in3_index"_a, "scale"_a, "gated"_a,
        "chunks"_a, "interleaved"_a, "shortcut"_a);
}

}  // namespace sparsecodec
