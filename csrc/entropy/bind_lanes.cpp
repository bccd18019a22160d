// Python's view of the lanes coder.
#include <pybind11/pybind11.h>

#include <memory>
#include <mutex>
#include <utility>

#include "entropy/lanes.h"
#include "entropy/bind_view.h"
#include "threads.h"

namespace {

using namespace sparsecodec;
using namespace pybind11::literals;
using rans::Tables;

class LaneEncoder {
public:
    explicit LaneEncoder(std::int64_t total) : encoder_(total) {}

    void push(py::handle symbols, py::handle indexes, std::shared_ptr<Tables> tables) {
        const View symbol_view(symbols, "symbols"), index_view(indexes, "indexes");
        check_sizes(symbol_view, index_view, "symbols");
        const std::int32_t* values = symbol_view.int32();
        with_indexes(index_view, [&](const auto* rows) {
            const Unlocked unlocked;
            const std::lock_guard<std::mutex> lock(mutex_);
            encoder_.push(values, rows, static_cast<std::int64_t>(symbol_view.size()), std::move(tables));
        });
    }

    py::bytes finish() {
        std::vector<unsigned char> payload;
        {
            const Unlocked unlocked;
            const std::lock_guard<std::mutex> lock(mutex_);
            payload = encoder_.finish();
        }
        return {reinterpret_cast<const char*>(payload.data()), payload.size()};
    }

private:
    std::mutex mutex_;  // guards encoder_; taken without the GIL
    lanes::Encoder encoder_;
};

class LaneDecoder {
public:
    LaneDecoder(py::handle payload, std::int64_t total)
        : view_(payload, "payload"), decoder_(view_.bytes(), view_.size(), total) {}

    void decode(py::handle indexes, const Tables& tables, py::handle out) {
        const View index_view(indexes, "indexes"), out_view(out, "out", true);
        check_sizes(out_view, index_view, "out");
        std::int32_t* symbols = out_view.int32();
        with_indexes(index_view, [&](const auto* rows) {
            const Unlocked unlocked;
            const std::lock_guard<std::mutex> lock(mutex_);
            decoder_.decode(symbols, rows, static_cast<std::int64_t>(index_view.size()), tables);
        });
    }

    void finish() {
        const Unlocked unlocked;
        const std::lock_guard<std::mutex> lock(mutex_);
        decoder_.finish();
    }

private:
    View view_;         // what decoder_ borrows from
    std::mutex mutex_;  // guards decoder_; taken without the GIL
    lanes::Decoder decoder_;
};

// The arrays of the tables as bytes, for a copy in another memory.
template <class T>
py::bytes bytes_of(const T* data, std::size_t count) {
    return {reinterpret_cast<const char*>(data), count * sizeof(T)};
}

py::tuple arrays(const Tables& tables) {
    lanes::check_order(tables);
    return py::make_tuple(bytes_of(tables.row_data(), tables.rows()), bytes_of(tables.buckets(), tables.bucket_count()),
                          bytes_of(tables.cdf(), tables.cdf_count()));
}

}  // namespace

void bind_lanes(py::module_& m) {
    m.def("rans_table_arrays", &arrays, "tables"_a);
    m.def(
        "lane_layout",
        [](std::int64_t total) {
            const lanes::Layout layout = lanes::layout_of(total);
            return py::make_tuple(layout.lanes, layout.groups);
        },
        "total"_a);
    py::class_<LaneEncoder>(m, "LaneEncoder")
        .def(py::init<std::int64_t>(), "total"_a)
        .def("push", &LaneEncoder::push, "symbols"_a, "indexes"_a, "tables"_a)
        .def("finish", &LaneEncoder::finish);
    py::class_<LaneDecoder>(m, "LaneDecoder")
        .def(py::init<py::handle, std::int64_t>(), "payload"_a, "total"_a)
        .def("decode", &LaneDecoder::decode, "indexes"_a, "tables"_a, "out"_a)
        .def("finish", &LaneDecoder::finish);
}
