// Python's view of integer_warp.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/integer_warp.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;
using std::int16_t;
using std::int32_t;

// The op has no constants; this is what the registry binds.
struct IntegerWarpPlan {
    py::object operator()(py::handle x, py::handle flow, py::object out) const {
        const Image<const int16_t> from = view_nhwc<const int16_t>(x, "x");
        const TensorView<const int32_t> by = view<const int32_t>(flow, "flow");
        const std::ptrdiff_t need[] = {from.n, 2, from.h, from.w};
        if (by.ndim != 4 || !std::equal(need, need + 4, by.shape)) {
            refuse("flow: shape ", shape_text(by.shape, by.ndim), " (needs ", shape_text(need, 4), ")");
        }
        Image<int16_t> wanted, to;
        wanted.n = from.n;
        wanted.c = from.c;
        wanted.h = from.h;
        wanted.w = from.w;
        out = output(std::move(out), wanted, to);
        const Unlocked unlocked;
        integer_warp(from, {by.data, by.stride[0], by.stride[1], by.stride[2], by.stride[3]}, to);
        return out;
    }
};

}  // namespace

void bind_integer_warp(py::module_& m) {
    py::class_<IntegerWarpPlan>(m, "IntegerWarpPlan", "integer_warp, which has nothing to pack.")
        .def("__call__", &IntegerWarpPlan::operator(), "x"_a, "flow"_a, "out"_a = py::none());
    m.def(
        "integer_warp_plan",
        [](py::handle dtype) {
            SC_CHECK(dtype.is(torch_dtype<int16_t>()), "x: dtype ", py::str(dtype).cast<std::string>(),
                     " (needs torch.int16)");
            return IntegerWarpPlan{};
        },
        "dtype"_a);
    m.def(
        "integer_warp", [](py::handle x, py::handle flow) { return IntegerWarpPlan{}(x, flow, py::none()); }, "x"_a,
        "flow"_a);
}

}  // namespace sparsecodec
