// Python's view of the context models of autoregressive codecs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/bind_names.h"
#include "cpu/context_model.h"
#include "cpu/context_rows.h"
#include "tensor.h"
#include "threads.h"

namespace sparsecodec {
namespace {

using namespace py::literals;

// A convolution's constants: [n, k, kh, kw] contiguous float32, borrowed from the tensor that it holds, and a bias.
struct Kernel {
    py::object weight;
    std::vector<float> bias;
    ConvKernel sizes;

    Kernel(py::object weight_tensor, py::handle bias_tensor, const std::string& name)
        : weight(std::move(weight_tensor)), bias(copy_values<float>(bias_tensor, "bias")) {
        const TensorView<const float> t = view<const float>(weight, name.c_str());
        SC_CHECK(t.ndim == 4 && t.shape[0] >= 1 && weight.attr("is_contiguous")().cast<bool>(), name, ": shape ",
                 shape_text(t.shape, t.ndim), ", strides ", shape_text(t.stride, t.ndim),
                 " (needs [n, k, kh, kw] contiguous, n >= 1)");
        const auto size = [&](int i) { return static_cast<int>(t.shape[i]); };
        sizes = {t.data, size(0), size(1), size(2), size(3)};
        SC_CHECK(bias_tensor.is_none() || static_cast<int>(bias.size()) == sizes.n, name, ": ", bias.size(),
                 " biases (needs ", sizes.n, ")");
    }
    const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

// The networks as Python describes them. layers: (weight, bias, activation, slope) each.
struct Networks {
    Kernel context;
    std::vector<Kernel> kernels;
    std::vector<ContextModel::Layer> layers;

    Networks(py::object weight, py::handle bias, const py::list& list) : context(std::move(weight), bias, "context") {
        std::vector<float> slopes;
        for (const py::handle item : list) {
            const auto [layer_weight, layer_bias, activation, slope] =
                item.cast<std::tuple<py::object, py::object, std::string, float>>();
            const std::string name = "1x1 number " + std::to_string(kernels.size());
            kernels.emplace_back(layer_weight, layer_bias, name);
            const ConvKernel& sizes = kernels.back().sizes;
            SC_CHECK(sizes.kh == 1 && sizes.kw == 1, name, ": a kernel of ", sizes.kh, " x ", sizes.kw);
            const igemm::Activation named = activation_named(activation, slope);
            SC_CHECK(!named.sigmoid_gate, "activation='", activation, "' (one of none, relu, leaky_relu)");
            slopes.push_back(named.slope);
        }
        for (std::size_t i = 0; i < kernels.size(); ++i) {  // now that the kernels stay where they are
            const ConvKernel& sizes = kernels[i].sizes;
            layers.push_back({sizes.data, kernels[i].bias_or_null(), sizes.n, sizes.k, slopes[i]});
        }
    }
    Networks(const Networks&) = delete;
};

template <class T>
Image<T> view_sized(py::handle tensor, const char* name, std::ptrdiff_t c, std::ptrdiff_t h, std::ptrdiff_t w) {
    const Image<T> image = view_nhwc<T>(tensor, name);
    const std::ptrdiff_t got[] = {image.n, image.c, image.h, image.w}, need[] = {1, c, h, w};
    SC_CHECK(std::equal(got, got + 4, need), name, ": shape ", shape_text(got, 4), " (needs ", shape_text(need, 4), ")");
    return image;
}

template <class Model>
Image<const float> view_prior(const Model& model, py::handle prior) {
    const auto any = view_nhwc<const float>(prior, "prior");
    return view_sized<const float>(prior, "prior", model.prior_channels(), any.h, any.w);
}

template <class Model>
Image<float> view_decoded(const Model& model, py::handle y_hat, const Image<const float>& prior) {
    const int reach = model.reach();
    return view_sized<float>(y_hat, "y_hat", model.latent(), prior.h + reach, prior.w + 2 * reach);
}

template <class Model>
py::bytes encode(const Model& model, py::handle y, py::handle prior, py::handle y_hat) {
    const auto given = view_prior(model, prior);
    const auto latent = view_sized<const float>(y, "y", model.latent(), given.h, given.w);
    const auto to = view_decoded(model, y_hat, given);
    std::string bytes;
    {
        const Unlocked unlocked;
        const rans::Writer writer = model.encode(latent, given, to);
        bytes.resize(writer.size());
        writer.flush_to(reinterpret_cast<unsigned char*>(bytes.data()));
    }
    return bytes;
}

template <class Model>
void decode(const Model& model, const py::buffer& data, py::handle prior, py::handle y_hat) {
    const py::buffer_info bytes = data.request();
    SC_CHECK(bytes.ndim == 1 && bytes.itemsize == 1 && bytes.strides[0] == 1, "data: no contiguous bytes");
    const auto given = view_prior(model, prior);
    const auto to = view_decoded(model, y_hat, given);
    const Unlocked unlocked;
    model.decode({static_cast<const unsigned char*>(bytes.ptr), static_cast<std::size_t>(bytes.size)}, given, to);
}

// ContextRows with the tensors whose memory it uses.
class RowsPlan {
  public:
    RowsPlan(py::object weight, py::handle bias, const py::list& layers, bool means_first,
             py::handle thresholds, std::shared_ptr<rans::Tables> tables, int block, std::uintptr_t gemv)
        : networks_(std::move(weight), bias, layers),
          model_(networks_.context.sizes, networks_.context.bias_or_null(), networks_.layers,
                 means_first, ScaleTable(copy_values<float>(thresholds, "thresholds")), std::move(tables), block,
                 reinterpret_cast<ContextRows::Gemv>(gemv)) {
        SC_CHECK(gemv != 0, "gemv: no address");
    }

    py::object parameters(py::handle y_hat, py::handle prior) const {
        const int size = 2 * model_.reach() + 1;
        const auto given = view_sized<const float>(prior, "prior", model_.prior_channels(), 1, 1);
        const auto seen = view_sized<const float>(y_hat, "y_hat", model_.latent(), size, size);
        const py::object out = empty_nhwc<float>(1, model_.entropy_parameters(), 1, 1);
        model_.parameters(seen, given, view_nhwc<float>(out, "out").data);
        return out;
    }
    const ContextRows& model() const { return model_; }

  private:
    Networks networks_;
    ContextRows model_;
};

}  // namespace

void bind_context_model(py::module_& m) {
    py::class_<ContextModel>(m, "ContextModelPlan", "The context model of an autoregressive codec, wave by wave.")
        .def(py::init([](py::object weight, py::handle bias, const py::list& layers, bool means_first,
                         py::handle thresholds, std::shared_ptr<rans::Tables> tables) {
                 const Networks networks(std::move(weight), bias, layers);
                 return std::make_unique<ContextModel>(
                     networks.context.sizes, networks.context.bias_or_null(), networks.layers, means_first,
                     ScaleTable(copy_values<float>(thresholds, "thresholds")), std::move(tables));
             }),
             "weight"_a, "bias"_a, "layers"_a, "means_first"_a, "thresholds"_a, "tables"_a)
        .def("encode", &encode<ContextModel>, "y"_a, "prior"_a, "y_hat"_a)
        .def("decode", &decode<ContextModel>, "data"_a, "prior"_a, "y_hat"_a);
    py::class_<RowsPlan>(m, "ContextRowsPlan", "The same row by row, in torch's arithmetic.")
        .def(py::init<py::object, py::handle, const py::list&, bool, py::handle, std::shared_ptr<rans::Tables>, int,
                      std::uintptr_t>(),
             "weight"_a, "bias"_a, "layers"_a, "means_first"_a, "thresholds"_a, "tables"_a, "block"_a, "gemv"_a)
        .def("parameters", &RowsPlan::parameters, "y_hat"_a, "prior"_a)
        .def(
            "encode",
            [](const RowsPlan& plan, py::handle y, py::handle prior, py::handle y_hat) {
                return encode(plan.model(), y, prior, y_hat);
            },
            "y"_a, "prior"_a, "y_hat"_a)
        .def(
            "decode",
            [](const RowsPlan& plan, const py::buffer& data, py::handle prior, py::handle y_hat) {
                decode(plan.model(), data, prior, y_hat);
            },
            "data"_a, "prior"_a, "y_hat"_a);
}

}  // namespace sparsecodec
