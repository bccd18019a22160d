// Python's view of integer_scale.
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "cpu/integer_scale.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;
using std::int16_t;
using std::int32_t;

// Runs f with a value of the tensor's element type; of None: int16_t.
template <class F>
py::object with_integers(py::handle tensor, F f) {
    const py::object kind = tensor.is_none() ? py::none() : py::object(tensor.attr("dtype"));
    return kind.is(torch_dtype<int32_t>()) ? f(int32_t{}) : f(int16_t{});
}

class IntegerScalePlan {
  public:
    IntegerScalePlan(py::handle shift, int residual_shift, int bits)
        : bits_(bits), scale_(copy_values<int32_t>(shift, "shift"), residual_shift) {
        SC_CHECK(bits == 16 || bits == 32, "bits=", bits, " (one of 16, 32)");
    }

    py::object operator()(py::handle x, py::handle multiplier, py::handle residual, py::object out) const {
        return with_integers(x, [&](auto from) {
            return with_integers(residual, [&](auto base) {
                using X = decltype(from);
                using Residual = decltype(base);
                return bits_ == 16 ? run<X, Residual, int16_t>(x, multiplier, residual, out)
                                   : run<X, Residual, int32_t>(x, multiplier, residual, out);
            });
        });
    }

  private:
    template <class X, class Residual, class Out>
    py::object run(py::handle x, py::handle multiplier, py::handle residual, py::object out) const {
        const Image<const X> from = view_nhwc<const X>(x, "x");
        const int channels = scale_.channels();
        SC_CHECK(from.c == channels, "x: ", from.c, " channels (needs ", channels, ", one for each shift)");
        const TensorView<const int32_t> factors = view<const int32_t>(multiplier, "multiplier");
        SC_CHECK(factors.ndim == 2 && factors.shape[0] == 2 && factors.shape[1] == channels, "multiplier: shape ",
                 shape_text(factors.shape, factors.ndim), " (needs [2, ", channels, "])");
        SC_CHECK(factors.stride[0] == channels && (channels < 2 || factors.stride[1] == 1), "multiplier: strides ",
                 shape_text(factors.stride, 2), " (needs contiguous)");
        Image<Out> wanted, to;
        wanted.n = from.n;
        wanted.c = from.c;
        wanted.h = from.h;
        wanted.w = from.w;
        out = output(std::move(out), wanted, to);
        Image<const Residual> base;
        if (!residual.is_none()) {
            base = view_nhwc<const Residual>(residual, "residual");
            check_size(base, wanted, "residual");
        }
        {
            const Unlocked unlocked;
            scale_.run(from, factors.data, residual.is_none() ? nullptr : &base, to);
        }
        return out;
    }

    int bits_;
    IntegerScale scale_;
};

}  // namespace

void bind_integer_scale(py::module_& m) {
    py::class_<IntegerScalePlan>(m, "IntegerScalePlan", "An integer_scale with its shifts.")
        .def("__call__", &IntegerScalePlan::operator(), "x"_a, "multiplier"_a, "residual"_a = py::none(),
             "out"_a = py::none());
    m.def(
        "integer_scale_plan",
        [](py::handle shift, int residual_shift, int bits, py::handle) {
            return std::make_unique<IntegerScalePlan>(shift, residual_shift, bits);
        },
        "shift"_a, "residual_shift"_a, "bits"_a, "dtype"_a);
    m.def(
        "integer_scale",
        [](py::handle x, py::handle multiplier, py::handle shift, py::handle residual, int residual_shift, int bits) {
            return IntegerScalePlan(shift, residual_shift, bits)(x, multiplier, residual, py::none());
        },
        "x"_a, "multiplier"_a, "shift"_a, "residual"_a, "residual_shift"_a, "bits"_a);
}

}  // namespace sparsecodec
