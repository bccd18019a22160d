// Python's view of integer_gdn.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "cpu/integer_gdn.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;
using std::int16_t;
using std::int32_t;
using std::int64_t;

class IntegerGdnPlan {
  public:
    IntegerGdnPlan(py::handle beta, py::handle gamma, py::handle shift, bool inverse, int bits, py::handle dtype)
        : bits_(bits) {
        SC_CHECK(bits == 16 || bits == 32, "bits=", bits, " (needs 16 or 32)");
        SC_CHECK(dtype.is(torch_dtype<int16_t>()), "x: dtype ", py::str(dtype).cast<std::string>(),
                 " (needs torch.int16)");
        const auto b = beta.attr("tolist")().cast<std::vector<int64_t>>();
        const auto g = copy_values<int32_t>(gamma, "gamma"), s = copy_values<int32_t>(shift, "shift");
        SC_CHECK(g.size() == b.size() * b.size() && s.size() == b.size(), "gamma: ", g.size(), " values, shift: ",
                 s.size(), " (needs C x C and C, C=", b.size(), " of beta)");
        gdn_ = std::make_unique<IntegerGdn>(b, g, s, inverse);
    }

    py::object operator()(py::handle x, py::object out) const {
        return bits_ == 16 ? run<int16_t>(x, std::move(out)) : run<int32_t>(x, std::move(out));
    }

  private:
    template <class Out>
    py::object run(py::handle x, py::object out) const {
        const Image<const int16_t> from = view_nhwc<const int16_t>(x, "x");
        SC_CHECK(from.c == gdn_->channels(), "x: ", from.c, " channels (needs ", gdn_->channels(), ")");
        Image<Out> wanted, to;
        wanted.n = from.n;
        wanted.c = from.c;
        wanted.h = from.h;
        wanted.w = from.w;
        out = output(std::move(out), wanted, to);
        const Unlocked unlocked;
        gdn_->run(from, to);
        return out;
    }

    int bits_;
    std::unique_ptr<IntegerGdn> gdn_;
};

}  // namespace

void bind_integer_gdn(py::module_& m) {
    py::class_<IntegerGdnPlan>(m, "IntegerGdnPlan", "An integer_gdn with its constants.")
        .def("__call__", &IntegerGdnPlan::operator(), "x"_a, "out"_a = py::none());
    m.def(
        "integer_gdn_plan",
        [](py::handle beta, py::handle gamma, py::handle shift, bool inverse, int bits, py::handle dtype) {
            return std::make_unique<IntegerGdnPlan>(beta, gamma, shift, inverse, bits, dtype);
        },
        "beta"_a, "gamma"_a, "shift"_a, "inverse"_a, "bits"_a, "dtype"_a);
    m.def(
        "integer_gdn",
        [](py::handle x, py::handle beta, py::handle gamma, py::handle shift, bool inverse, int bits) {
            return IntegerGdnPlan(beta, gamma, shift, inverse, bits, x.attr("dtype"))(x, py::none());
        },
        "x"_a, "beta"_a, "gamma"_a, "shift"_a, "inverse"_a, "bits"_a);
}

}  // namespace sparsecodec
