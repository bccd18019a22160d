// Python's view of entropy_parameters, quantize_latent and restore_latent.
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "cpu/bind_names.h"
#include "cpu/entropy_parameters.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;

// tensor: [N, C, H, W] whose C splits into `groups`, or [N, groups, C / groups, H, W]; channels innermost.
template <class T>
GroupedImage<T> view_grouped(py::handle tensor, int groups, const char* name) {
    const TensorView<T> t = view<T>(tensor, name);
    const bool split = t.ndim == 5;
    if (!(split && t.shape[1] == groups) && !(t.ndim == 4 && t.shape[1] % groups == 0)) {
        refuse(name, ": shape ", shape_text(t.shape, t.ndim), " (needs [N, C, H, W] with C a multiple of ", groups,
               ", or [N, ", groups, ", C/", groups, ", H, W])");
    }
    const int c = split ? 2 : 1;
    if (t.shape[c] > 1 && t.stride[c] != 1 && t.numel() > 0) {
        refuse(name, ": strides ", shape_text(t.stride, t.ndim), " (needs channels innermost, torch.channels_last)");
    }
    GroupedImage<T> image{t.data, t.shape[0], groups, split ? t.shape[2] : t.shape[1] / groups, t.shape[c + 1],
                          t.shape[c + 2]};
    image.stride_n = t.stride[0];
    image.stride_g = split ? t.stride[1] : image.c;
    image.stride_h = t.stride[c + 1];
    image.stride_w = t.stride[c + 2];
    return image;
}

template <class T>
GroupedImage<T> optional_grouped(py::handle tensor, const GroupedImage<const float>& like, const char* name) {
    if (tensor.is_none()) return {};
    GroupedImage<T> image = view_grouped<T>(tensor, static_cast<int>(like.groups), name);
    if (image.n != like.n || image.c != like.c || image.h != like.h || image.w != like.w) {
        const std::ptrdiff_t got[] = {image.n, image.groups, image.c, image.h, image.w};
        const std::ptrdiff_t need[] = {like.n, like.groups, like.c, like.h, like.w};
        refuse(name, ": ", shape_text(got, 5), " (needs ", shape_text(need, 5), ", channels split into groups)");
    }
    return image;
}

// `tensor`, or if None a new one: [n, c, h, w] contiguous. Its first element goes to `data`.
template <class T>
py::object dense_output(py::object tensor, const GroupedImage<const float>& like, T*& data) {
    const std::ptrdiff_t need[] = {like.n, like.c, like.h, like.w};
    if (tensor.is_none()) {
        tensor = Torch::get().empty(py::make_tuple(need[0], need[1], need[2], need[3]), "dtype"_a = torch_dtype<T>());
    }
    const TensorView<T> t = view<T>(tensor, "out");
    if (t.ndim != 4 || !std::equal(need, need + 4, t.shape) || !tensor.attr("is_contiguous")().cast<bool>()) {
        refuse("out: shape ", shape_text(t.shape, t.ndim), ", strides ", shape_text(t.stride, t.ndim), " (needs ",
               shape_text(need, 4), " contiguous)");
    }
    data = t.data;
    return tensor;
}

class EntropyParametersPlan {
  public:
    EntropyParametersPlan(py::handle thresholds, const std::string& part)
        : table_(copy_values<float>(thresholds, "thresholds")), part_(part_named(part)) {}

    py::object operator()(py::handle scales, py::object out) const {
        const auto from = view_grouped<const float>(scales, part_.groups, "scales");
        std::int16_t* indexes = nullptr;
        out = dense_output(std::move(out), from, indexes);
        const Unlocked unlocked;
        entropy_parameters(table_, part_, from, indexes);
        return out;
    }

  private:
    ScaleTable table_;
    Part part_;
};

class QuantizeLatentPlan {
  public:
    QuantizeLatentPlan(const std::string& part, int limit) : part_(part_named(part)), limit_(static_cast<float>(limit)) {
        if (limit < 0 || limit > 1 << 24) refuse("limit=", limit, " (needs 0 .. 2^24)");
    }

    py::object operator()(py::handle y, py::handle means, py::handle step, py::object out) const {
        const auto from = view_grouped<const float>(y, part_.groups, "y");
        const auto mean = optional_grouped<const float>(means, from, "means");
        const auto by = optional_grouped<const float>(step, from, "step");
        std::int32_t* symbols = nullptr;
        out = dense_output(std::move(out), from, symbols);
        const Unlocked unlocked;
        quantize_latent(part_, limit_, from, mean, by, symbols);
        return out;
    }

  private:
    Part part_;
    float limit_;
};

class RestoreLatentPlan {
  public:
    explicit RestoreLatentPlan(const std::string& part) : part_(part_named(part)) {}

    py::object operator()(py::handle symbols, py::handle means, py::handle base, py::handle step, py::handle gain,
                          py::object out) const {
        const TensorView<const std::int32_t> from = view<const std::int32_t>(symbols, "symbols");
        if (from.ndim != 4 || !symbols.attr("is_contiguous")().cast<bool>()) {
            refuse("symbols: shape ", shape_text(from.shape, from.ndim), ", strides ",
                   shape_text(from.stride, from.ndim), " (needs [N, C, H, W] contiguous)");
        }
        const GroupedImage<const float> like{nullptr, from.shape[0], part_.groups, from.shape[1], from.shape[2],
                                             from.shape[3]};
        const auto mean = optional_grouped<const float>(means, like, "means");
        const auto old = optional_grouped<const float>(base, like, "base");
        const auto by = optional_grouped<const float>(step, like, "step");
        const TensorView<const float> factor = gain.is_none() ? TensorView<const float>{} : view<const float>(gain, "gain");
        if (factor.data && (factor.numel() != like.groups * like.c || !gain.attr("is_contiguous")().cast<bool>())) {
            refuse("gain: shape ", shape_text(factor.shape, factor.ndim), " (needs ", like.groups * like.c, " values)");
        }
        if (out.is_none()) out = empty_nhwc<float>(like.n, like.groups * like.c, like.h, like.w);
        const auto to = optional_grouped<float>(out, like, "out");
        {
            const Unlocked unlocked;
            restore_latent(part_, from.data, mean, old, by, factor.data, to);
        }
        return out;
    }

  private:
    Part part_;
};

}  // namespace

void bind_entropy_parameters(py::module_& m) {
    py::class_<EntropyParametersPlan>(m, "EntropyParametersPlan")
        .def("__call__", &EntropyParametersPlan::operator(), "scales"_a, "out"_a = py::none());
    py::class_<QuantizeLatentPlan>(m, "QuantizeLatentPlan")
        .def("__call__", &QuantizeLatentPlan::operator(), "y"_a, "means"_a = py::none(), "step"_a = py::none(),
             "out"_a = py::none());
    py::class_<RestoreLatentPlan>(m, "RestoreLatentPlan")
        .def("__call__", &RestoreLatentPlan::operator(), "symbols"_a, "means"_a = py::none(), "base"_a = py::none(),
             "step"_a = py::none(), "gain"_a = py::none(), "out"_a = py::none());

    m.def(
        "entropy_parameters_plan",
        [](py::handle thresholds, const std::string& part, py::handle) {
            return std::make_unique<EntropyParametersPlan>(thresholds, part);
        },
        "thresholds"_a, "part"_a, "dtype"_a);
    m.def(
        "quantize_latent_plan",
        [](const std::string& part, int limit, py::handle) { return std::make_unique<QuantizeLatentPlan>(part, limit); },
        "part"_a, "limit"_a, "dtype"_a);
    m.def(
        "restore_latent_plan",
        [](const std::string& part, py::handle) { return std::make_unique<RestoreLatentPlan>(part); }, "part"_a,
        "dtype"_a);

    m.def(
        "entropy_parameters",
        [](py::handle scales, py::handle thresholds, const std::string& part) {
            return EntropyParametersPlan(thresholds, part)(scales, py::none());
        },
        "scales"_a, "thresholds"_a, "part"_a);
    m.def(
        "quantize_latent",
        [](py::handle y, py::handle means, py::handle step, const std::string& part, int limit) {
            return QuantizeLatentPlan(part, limit)(y, means, step, py::none());
        },
        "y"_a, "means"_a, "step"_a, "part"_a, "limit"_a);
    m.def(
        "restore_latent",
        [](py::handle symbols, py::handle means, py::handle base, py::handle step, py::handle gain,
           const std::string& part) { return RestoreLatentPlan(part)(symbols, means, base, step, gain, py::none()); },
        "symbols"_a, "means"_a, "base"_a, "step"_a, "gain"_a, "part"_a);
}

}  // namespace sparsecodec
