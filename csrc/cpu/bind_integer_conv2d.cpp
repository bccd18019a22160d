// Python's view of integer_conv2d.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "cpu/integer_conv2d.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;
using std::int16_t;
using std::int32_t;

std::string dtype_text(py::handle tensor) { return py::str(tensor.attr("dtype")).cast<std::string>(); }

std::vector<int32_t> copy_int32(py::handle tensor, const char* name, std::ptrdiff_t count) {
    const TensorView<const int32_t> given = view<const int32_t>(tensor, name);
    SC_CHECK(given.numel() == count, name, ": ", given.numel(), " values (needs ", count, ")");
    return copy_values<int32_t>(tensor, name);
}

class IntegerConvPlan {
  public:
    IntegerConvPlan(py::handle weight, py::handle bias, py::handle multiplier, py::handle shift, int residual_shift,
                    int padding, int stride, int groups, int bits, int shuffle, int input_shift,
                    std::optional<int> input_low, py::handle dtype)
        : bits_(bits) {
        const py::module_ torch = py::module_::import("torch");
        SC_CHECK(bits == 16 || bits == 32, "bits=", bits, " (one of 16, 32)");
        SC_CHECK(dtype.is(torch_dtype<int16_t>()), "x: dtype ", py::str(dtype).cast<std::string>(),
                 " (needs torch.int16)");
        const py::object kind = weight.attr("dtype"), int8 = torch.attr("int8");
        SC_CHECK(kind.is(int8) || kind.is(torch_dtype<int16_t>()), "weight: dtype ", dtype_text(weight),
                 " (needs torch.int8 or torch.int16)");
        SC_CHECK(input_low || input_shift == 0, "input_shift=", input_shift, " (needs 0 where input_low is None)");
        std::optional<integer::Narrowing> narrowing;
        if (input_low) narrowing = {input_shift, *input_low};
        const py::tuple shape = weight.attr("shape");
        SC_CHECK(shape.size() == 4, "weight: shape ", py::str(shape).cast<std::string>(),
                 " (needs [C_out, C_in / groups, Kh, Kw])");
        const std::vector<int32_t> values = copy_values<int32_t>(weight, "weight");
        const IntegerKernel kernel{values.data(), shape[0].cast<int>(), shape[1].cast<int>(), shape[2].cast<int>(),
                                   shape[3].cast<int>()};
        conv_ = std::make_unique<IntegerConv2d>(
            kernel, copy_int32(bias, "bias", kernel.n).data(),
            copy_int32(multiplier, "multiplier", 2 * kernel.n).data(), copy_int32(shift, "shift", kernel.n).data(),
            IntegerConvOptions{residual_shift, padding, stride, groups, shuffle, narrowing});
    }

    py::object operator()(py::handle x, py::handle residual, py::object out) const {
        const py::object kind = residual.is_none() ? py::none() : py::object(residual.attr("dtype"));
        const bool wide = kind.is(torch_dtype<int32_t>());
        if (bits_ == 16) {
            return wide ? run<int16_t, int32_t>(x, residual, out) : run<int16_t, int16_t>(x, residual, out);
        }
        return wide ? run<int32_t, int32_t>(x, residual, out) : run<int32_t, int16_t>(x, residual, out);
    }

  private:
    template <class Out, class Residual>
    py::object run(py::handle x, py::handle residual, py::object out) const {
        const Image<const int16_t> from = view_nhwc<const int16_t>(x, "x");
        const int channels = conv_->input_channels();
        SC_CHECK(from.c == channels, "x: ", from.c, " channels (needs ", channels, ")");
        const Image<Out> wanted = conv_->result<Out>(from);
        Image<Out> to;
        out = output(std::move(out), wanted, to);
        Image<const Residual> base;
        if (!residual.is_none()) {
            base = view_nhwc<const Residual>(residual, "residual");
            check_size(base, wanted, "residual");
        }
        {
            const Unlocked unlocked;
            conv_->run(from, to, residual.is_none() ? nullptr : &base);
        }
        return out;
    }

    int bits_;
    std::unique_ptr<IntegerConv2d> conv_;
};

}  // namespace

void bind_integer_conv2d(py::module_& m) {
    py::class_<IntegerConvPlan>(m, "IntegerConvPlan", "An integer_conv2d layer with packed weights.")
        .def("__call__", &IntegerConvPlan::operator(), "x"_a, "residual"_a = py::none(), "out"_a = py::none());
    m.def(
        "integer_conv2d_plan",
        [](py::handle weight, py::handle bias, py::handle multiplier, py::handle shift, int residual_shift, int padding,
           int stride, int groups, int bits, int shuffle, int input_shift, std::optional<int> input_low,
           py::handle dtype) {
            return std::make_unique<IntegerConvPlan>(weight, bias, multiplier, shift, residual_shift, padding, stride,
                                                     groups, bits, shuffle, input_shift, input_low, dtype);
        },
        "weight"_a, "bias"_a, "multiplier"_a, "shift"_a, "residual_shift"_a, "padding"_a, "stride"_a, "groups"_a,
        "bits"_a, "shuffle"_a, "input_shift"_a, "input_low"_a, "dtype"_a);
    m.def(
        "integer_conv2d",
        [](py::handle x, py::handle weight, py::handle bias, py::handle multiplier, py::handle shift,
           py::handle residual, int residual_shift, int padding, int stride, int groups, int bits, int shuffle,
           int input_shift, std::optional<int> input_low) {
            return IntegerConvPlan(weight, bias, multiplier, shift, residual_shift, padding, stride, groups, bits,
                                   shuffle, input_shift, input_low, x.attr("dtype"))(x, residual, py::none());
        },
        "x"_a, "weight"_a, "bias"_a, "multiplier"_a, "shift"_a, "residual"_a, "residual_shift"_a, "padding"_a,
        "stride"_a, "groups"_a, "bits"_a, "shuffle"_a, "input_shift"_a, "input_low"_a);
}

}  // namespace sparsecodec
