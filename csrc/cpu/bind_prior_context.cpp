// Python's view of prior_context.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/bind_names.h"
#include "cpu/prior_context.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;
using std::int16_t;
using std::int32_t;

Image<int32_t> sized(std::ptrdiff_t n, std::ptrdiff_t c, std::ptrdiff_t h, std::ptrdiff_t w) {
    return {nullptr, n, c, h, w};
}

Image<const int32_t> parameter(py::handle tensor, const Image<int32_t>& wanted, const char* name) {
    const auto image = view_nhwc<const int32_t>(tensor, name);
    check_size(image, wanted, name);
    return image;
}

class PriorContextPlan {
  public:
    PriorContextPlan(int exponent, const std::string& part) : exponent_(exponent), part_(part_named(part)) {
        SC_CHECK(exponent >= -45 && exponent <= 14, "exponent=", exponent, " (needs -45 to 14)");
    }

    py::tuple operator()(py::handle symbols, py::handle means, py::handle scales, py::handle step,
                         py::object out) const {
        const auto from = view<const int32_t>(symbols, "symbols");
        SC_CHECK(from.ndim == 4 && symbols.attr("is_contiguous")().cast<bool>(), "symbols: shape ",
                 shape_text(from.shape, from.ndim), ", strides ", shape_text(from.stride, from.ndim),
                 " (needs [N, C, H, W] contiguous)");
        const Image<int32_t> latent = sized(from.shape[0], part_.groups * from.shape[1], from.shape[2], from.shape[3]);
        const auto mean = parameter(means, latent, "means"), scale = parameter(scales, latent, "scales"),
                   by = parameter(step, latent, "step");
        if (out.is_none()) {
            out = py::make_tuple(empty_nhwc<int16_t>(latent.n, 4 * latent.c, latent.h, latent.w),
                                 empty_nhwc<int32_t>(latent.n, latent.c, latent.h, latent.w));
        }
        const py::tuple pair = out;
        const py::object first = pair[0], second = pair[1];
        const auto context = view_nhwc<int16_t>(first, "out[0]");
        check_size(context, sized(latent.n, 4 * latent.c, latent.h, latent.w), "out[0]");
        const auto values = view_nhwc<int32_t>(second, "out[1]");
        check_size(values, latent, "out[1]");
        const Unlocked unlocked;
        prior_context(part_, exponent_, from.data, mean, scale, by, context, values);
        return pair;
    }

  private:
    int exponent_;
    Part part_;
};

}  // namespace

void bind_prior_context(py::module_& m) {
    py::class_<PriorContextPlan>(m, "PriorContextPlan", "A prior_context of one pass.")
        .def("__call__", &PriorContextPlan::operator(), "symbols"_a, "means"_a, "scales"_a, "step"_a,
             "out"_a = py::none());
    m.def(
        "prior_context_plan",
        [](int exponent, const std::string& part, py::handle) { return PriorContextPlan(exponent, part); },
        "exponent"_a, "part"_a, "dtype"_a);
    m.def(
        "prior_context",
        [](py::handle symbols, py::handle means, py::handle scales, py::handle step, int exponent,
           const std::string& part) {
            return PriorContextPlan(exponent, part)(symbols, means, scales, step, py::none());
        },
        "symbols"_a, "means"_a, "scales"_a, "step"_a, "exponent"_a, "part"_a);
}

}  // namespace sparsecodec
