// Python's view of warp.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/warp.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;

template <class T>
py::object run(py::handle x, py::handle flow, py::object out) {
    const auto from = view_nhwc<const T>(x, "x");
    const TensorView<const float> by = view<const float>(flow, "flow");
    const std::ptrdiff_t need[] = {from.n, 2, from.h, from.w};
    if (by.ndim != 4 || !std::equal(need, need + 4, by.shape)) {
        refuse("flow: shape ", shape_text(by.shape, by.ndim), " (needs ", shape_text(need, 4), ")");
    }
    if (out.is_none()) out = empty_nhwc<T>(from.n, from.c, from.h, from.w);
    const auto to = view_nhwc<T>(out, "out");
    SC_CHECK(to.n == from.n && to.c == from.c && to.h == from.h && to.w == from.w, "out: not of the shape of x");
    const Unlocked unlocked;
    warp(from, Planes{by.data, by.stride[0], by.stride[1], by.stride[2], by.stride[3]}, to);
    return out;
}

// The op has no constants; this is what the registry binds.
struct WarpPlan {
    py::object operator()(py::handle x, py::handle flow, py::object out) const {
        const py::object dtype = x.attr("dtype");
        if (dtype.is(Torch::get().float32)) return run<float>(x, flow, std::move(out));
        if (dtype.is(Torch::get().bfloat16)) return run<igemm::bf16>(x, flow, std::move(out));
        refuse("x: dtype ", py::str(dtype).cast<std::string>(), " (needs torch.float32 or torch.bfloat16)");
    }
};

}  // namespace

void bind_warp(py::module_& m) {
    py::class_<WarpPlan>(m, "WarpPlan", "warp, which has nothing to pack.")
        .def("__call__", &WarpPlan::operator(), "x"_a, "flow"_a, "out"_a = py::none());
    m.def("warp_plan", [](py::handle) { return WarpPlan{}; }, "dtype"_a);
    m.def("warp", [](py::handle x, py::handle flow) { return WarpPlan{}(x, flow, py::none()); }, "x"_a, "flow"_a);
}

}  // namespace sparsecodec
