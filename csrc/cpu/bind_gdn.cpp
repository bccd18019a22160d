// Python's view of gdn.
#include <pybind11/pybind11.h>

#include <memory>
#include <variant>

#include "cpu/gdn.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using igemm::bf16;
using namespace py::literals;

class GdnPlan {
  public:
    GdnPlan(py::handle beta, py::handle gamma, bool inverse, py::handle dtype) {
        const std::vector<float> b = copy_values<float>(beta, "beta"), g = copy_values<float>(gamma, "gamma");
        SC_CHECK(g.size() == b.size() * b.size(), "gamma: ", g.size(), " values (needs C x C, C=", b.size(), " of beta)");
        const int c = static_cast<int>(b.size());
        if (dtype.is(Torch::get().float32)) {
            gdn_ = std::make_unique<Gdn<float>>(b.data(), g.data(), c, inverse);
        } else if (dtype.is(Torch::get().bfloat16)) {
            gdn_ = std::make_unique<Gdn<bf16>>(b.data(), g.data(), c, inverse);
        } else {
            refuse("dtype ", py::str(dtype).cast<std::string>(), " (needs torch.float32 or torch.bfloat16)");
        }
    }

    py::object operator()(py::handle x, py::object out) const {
        return std::visit([&](const auto& gdn) { return run(*gdn, x, std::move(out)); }, gdn_);
    }

  private:
    template <class T>
    py::object run(const Gdn<T>& gdn, py::handle x, py::object out) const {
        const Image<const T> from = view_nhwc<const T>(x, "x");
        SC_CHECK(from.c == gdn.channels(), "x: ", from.c, " channels (needs ", gdn.channels(), ")");
        if (out.is_none()) out = empty_nhwc<T>(from.n, from.c, from.h, from.w);
        const Image<T> to = view_nhwc<T>(out, "out");
        SC_CHECK(to.n == from.n && to.c == from.c && to.h == from.h && to.w == from.w, "out: not of the shape of x");
        const Unlocked unlocked;
        gdn.run(from, to);
        return out;
    }

    std::variant<std::unique_ptr<Gdn<float>>, std::unique_ptr<Gdn<bf16>>> gdn_;
};

}  // namespace

void bind_gdn(py::module_& m) {
    py::class_<GdnPlan>(m, "GdnPlan", "A gdn with packed gamma.")
        .def("__call__", &GdnPlan::operator(), "x"_a, "out"_a = py::none());
    m.def(
        "gdn_plan",
        [](py::handle beta, py::handle gamma, bool inverse, py::handle dtype) {
            return std::make_unique<GdnPlan>(beta, gamma, inverse, dtype);
        },
        "beta"_a, "gamma"_a, "inverse"_a, "dtype"_a);
    m.def(
        "gdn",
        [](py::handle x, py::handle beta, py::handle gamma, bool inverse) {
            return GdnPlan(beta, gamma, inverse, x.attr("dtype"))(x, py::none());
        },
        "x"_a, "beta"_a, "gamma"_a, "inverse"_a);
}

}  // namespace sparsecodec
