// Python's view of deform_conv2d.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>
#include <string>
#include <variant>

#include "cpu/deform_conv2d.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using igemm::bf16;
using namespace py::literals;

Planes planes(py::handle tensor, const char* name, std::ptrdiff_t n, std::ptrdiff_t c, std::ptrdiff_t h,
              std::ptrdiff_t w) {
    const TensorView<const float> t = view<const float>(tensor, name);
    const std::ptrdiff_t need[] = {n, c, h, w};
    if (t.ndim != 4 || !std::equal(need, need + 4, t.shape)) {
        refuse(name, ": shape ", shape_text(t.shape, t.ndim), " (needs ", shape_text(need, 4), ")");
    }
    return {t.data, t.stride[0], t.stride[1], t.stride[2], t.stride[3]};
}

class DeformConv2dPlan {
  public:
    DeformConv2dPlan(py::handle weight, py::handle bias, bool border, py::handle dtype) {
        const std::vector<float> w = copy_values<float>(weight, "weight"), b = copy_values<float>(bias, "bias");
        const py::tuple shape = weight.attr("shape");
        SC_CHECK(shape.size() == 4, "weight: ", shape.size(), " dimensions (needs [C_out, C_in, Kh, Kw])");
        const auto size = [&](int i) { return shape[i].cast<int>(); };
        const ConvKernel kernel{w.data(), size(0), size(1), size(2), size(3)};
        SC_CHECK(bias.is_none() || static_cast<int>(b.size()) == kernel.n, "bias: ", b.size(), " values (needs ",
                 kernel.n, ")");
        const float* const values = bias.is_none() ? nullptr : b.data();
        if (dtype.is(Torch::get().float32)) {
            conv_ = std::make_unique<DeformConv2d<float>>(kernel, values, border);
        } else if (dtype.is(Torch::get().bfloat16)) {
            conv_ = std::make_unique<DeformConv2d<bf16>>(kernel, values, border);
        } else {
            refuse("dtype ", py::str(dtype).cast<std::string>(), " (needs torch.float32 or torch.bfloat16)");
        }
    }

    py::object operator()(py::handle x, py::handle offset, py::handle mask, py::object out) const {
        return std::visit([&](const auto& conv) { return run(*conv, x, offset, mask, std::move(out)); }, conv_);
    }

  private:
    template <class T>
    py::object run(const DeformConv2d<T>& conv, py::handle x, py::handle offset, py::handle mask,
                   py::object out) const {
        const auto from = view_nhwc<const T>(x, "x");
        SC_CHECK(from.c == conv.inputs(), "x: ", from.c, " channels (needs ", conv.inputs(), ")");
        const std::ptrdiff_t moves = view<const float>(offset, "offset").shape[1], taps = conv.taps();
        const std::ptrdiff_t groups = moves / (2 * taps);
        SC_CHECK(groups >= 1 && from.c % groups == 0, "offset: ", moves, " channels (needs 2 * G * ", taps,
                 ", G a divisor of ", from.c, ")");
        const Planes by = planes(offset, "offset", from.n, 2 * groups * taps, from.h, from.w);
        Planes factors;
        if (!mask.is_none()) factors = planes(mask, "mask", from.n, groups * taps, from.h, from.w);
        Image<T> wanted;
        wanted.n = from.n;
        wanted.c = conv.channels();
        wanted.h = from.h;
        wanted.w = from.w;
        Image<T> to;
        out = output(std::move(out), wanted, to);
        const bool masked = !mask.is_none();
        const Unlocked unlocked;
        conv.run(from, by, masked ? &factors : nullptr, static_cast<int>(groups), to);
        return out;
    }

    std::variant<std::unique_ptr<DeformConv2d<float>>, std::unique_ptr<DeformConv2d<bf16>>> conv_;
};

}  // namespace

void bind_deform_conv2d(py::module_& m) {
    py::class_<DeformConv2dPlan>(m, "DeformConv2dPlan", "A deform_conv2d with packed weights.")
        .def("__call__", &DeformConv2dPlan::operator(), "x"_a, "offset"_a, "mask"_a = py::none(), "out"_a = py::none());
    m.def(
        "deform_conv2d_plan",
        [](py::handle weight, py::handle bias, bool border, py::handle dtype) {
            return std::make_unique<DeformConv2dPlan>(weight, bias, border, dtype);
        },
        "weight"_a, "bias"_a, "border"_a, "dtype"_a);
    m.def(
        "deform_conv2d",
        [](py::handle x, py::handle offset, py::handle weight, py::handle bias, py::handle mask,
           bool border) {
            return DeformConv2dPlan(weight, bias, border, x.attr("dtype"))(x, offset, mask, py::none());
        },
        "x"_a, "offset"_a, "weight"_a, "bias"_a, "mask"_a, "border"_a);
}

}  // namespace sparsecodec
