// Python's view of the entropy coder: buffers in, bytes or filled buffers out, no lists. Loops run without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "check.h"
#include "entropy/cdf.h"
#include "entropy/crc32c.h"
#include "entropy/rans.h"
#include "entropy/bind_view.h"

namespace {

namespace py = pybind11;
using namespace sparsecodec;
using namespace py::literals;
using rans::Tables;

template <class Coder>
py::list flush(const std::vector<rans::BasicWriter<Coder>>& writers) {
    py::list streams;
    for (const auto& writer : writers) {
        PyObject* bytes = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(writer.size()));
        if (bytes == nullptr) throw py::error_already_set();
        writer.flush_to(reinterpret_cast<unsigned char*>(PyBytes_AS_STRING(bytes)));
        streams.append(py::reinterpret_steal<py::object>(bytes));
    }
    return streams;
}

// Whether a negative index says that a symbol is not in the stream (DCVC-RT and DCVC-UF), instead of being refused.
template <class Coder>
constexpr bool kSkips = std::is_same_v<Coder, rans::Rans32>;

// Coding calls that share streams. They arrive in decoding order, and rANS writes them in reverse: kept until finish().
template <class Coder>
class Encoder {
public:
    explicit Encoder(std::size_t streams) : streams_(streams) {
        SC_CHECK(streams >= 1 && streams <= 16, "streams=", streams, " (needs 1 to 16)");
    }

    void push(py::handle symbols, py::handle indexes, std::shared_ptr<Tables> tables) {
        const View symbol_view(symbols, "symbols"), index_view(indexes, "indexes");
        check_sizes(symbol_view, index_view, "symbols");
        const std::int32_t* values = symbol_view.int32();
        const std::size_t count = symbol_view.size();
        with_indexes(index_view, [&](const auto* rows) {
            const py::gil_scoped_release release;
            Call call{{values, values + count}, {rows, rows + count}, std::move(tables)};
            if constexpr (kSkips<Coder>) {
                std::size_t kept = 0;
                for (std::size_t i = 0; i < count; ++i) {
                    call.symbols[kept] = call.symbols[i];
                    call.indexes[kept] = call.indexes[i];
                    kept += call.indexes[i] >= 0;
                }
                call.symbols.resize(kept);
                call.indexes.resize(kept);
            }
            for (std::size_t i = 0; i < call.indexes.size(); ++i) {
                SC_CHECK(static_cast<std::uint32_t>(call.indexes[i]) < call.tables->rows(), "indexes[", i, "] = ",
                         call.indexes[i], " (the tables have rows 0 to ", call.tables->rows() - 1, ")");
            }
            const std::lock_guard<std::mutex> lock(mutex_);
            calls_.push_back(std::move(call));
        });
    }

    py::list finish() {
        std::vector<rans::BasicWriter<Coder>> writers(streams_);
        {
            const py::gil_scoped_release release;
            const std::lock_guard<std::mutex> lock(mutex_);
            for (auto call = calls_.rbegin(); call != calls_.rend(); ++call) {
                rans::encode(writers, call->symbols.data(), call->indexes.data(), call->symbols.size(), *call->tables);
            }
            calls_.clear();
        }
        return flush(writers);
    }

private:
    struct Call {
        std::vector<std::int32_t> symbols, indexes;
        std::shared_ptr<const Tables> tables;
    };
    std::size_t streams_;
    std::mutex mutex_;  // guards calls_; taken without the GIL
    std::vector<Call> calls_;
};

// Streams that several coding calls read in turn.
template <class Coder>
class Decoder {
public:
    explicit Decoder(const std::vector<py::object>& streams) {
        SC_CHECK(!streams.empty() && streams.size() <= 16, streams.size(), " streams (needs 1 to 16)");
        for (const py::object& stream : streams) {
            views_.push_back(std::make_unique<View>(stream, "data"));
            readers_.emplace_back(views_.back()->bytes(), views_.back()->size());
        }
    }

    void decode(py::handle indexes, std::shared_ptr<Tables> tables, py::handle out) {
        const View index_view(indexes, "indexes"), out_view(out, "out", true);
        check_sizes(out_view, index_view, "out");
        std::int32_t* symbols = out_view.int32();
        with_indexes(index_view, [&](const auto* rows) {
            const py::gil_scoped_release release;
            const std::lock_guard<std::mutex> lock(mutex_);
            check_usable();
            failed_ = true;
            if constexpr (kSkips<Coder>) {
                decode_kept(symbols, rows, index_view.size(), *tables);
            } else {
                rans::decode(readers_, symbols, rows, index_view.size(), *tables);
            }
            failed_ = false;
        });
    }

    void finish() {
        const py::gil_scoped_release release;
        const std::lock_guard<std::mutex> lock(mutex_);
        check_usable();
        for (const auto& reader : readers_) reader.finish();
    }

    // For streams that may overlap: the bytes that each has read. The rest of finish()'s work is the caller's.
    std::vector<std::size_t> consumed() {
        const py::gil_scoped_release release;
        const std::lock_guard<std::mutex> lock(mutex_);
        check_usable();
        std::vector<std::size_t> sizes;
        for (const auto& reader : readers_) {
            reader.finish_state();
            sizes.push_back(reader.consumed());
        }
        return sizes;
    }

private:
    template <class Index>
    void decode_kept(std::int32_t* symbols, const Index* rows, std::size_t count, const Tables& tables) {
        std::vector<Index> kept_rows(count);
        std::size_t kept = 0;
        for (std::size_t i = 0; i < count; ++i) {
            kept_rows[kept] = rows[i];
            kept += rows[i] >= 0;
        }
        std::vector<std::int32_t> decoded(kept + 1);  // one more, read for what is skipped at the end
        rans::decode(readers_, decoded.data(), kept_rows.data(), kept, tables);
        kept = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const bool is_kept = rows[i] >= 0;  // read before the symbol is written, maybe to the same place
            symbols[i] = is_kept ? decoded[kept] : 0;
            kept += is_kept;
        }
    }

    void check_usable() const {
        if (failed_) throw BitstreamError("an earlier decoding call failed; the streams have no defined position");
    }

    std::vector<std::unique_ptr<View>> views_;  // what readers_ borrow from
    std::mutex mutex_;                          // guards readers_ and failed_; taken without the GIL
    std::vector<rans::BasicReader<Coder>> readers_;
    bool failed_ = false;
};

std::shared_ptr<Tables> make_tables(py::handle cdf, py::handle lengths, py::handle offsets, bool zigzag) {
    const View cdf_view(cdf, "cdf"), length_view(lengths, "lengths"), offset_view(offsets, "offsets");
    SC_CHECK(cdf_view.ndim() == 2, "cdf: ", cdf_view.ndim(), " dimensions (needs [rows, columns])");
    const std::size_t rows = cdf_view.shape(0);
    SC_CHECK(length_view.size() == rows && offset_view.size() == rows, "cdf has ", rows, " rows, lengths ",
             length_view.size(), ", offsets ", offset_view.size());
    const std::int32_t* values = cdf_view.int32();
    const std::int32_t *row_lengths = length_view.int32(), *row_offsets = offset_view.int32();
    const py::gil_scoped_release release;
    // Copies first: the checks must hold for the very values that are used.
    const std::vector<std::int32_t> safe_cdf(values, values + cdf_view.size());
    const std::vector<std::int32_t> safe_lengths(row_lengths, row_lengths + rows);
    const std::vector<std::int32_t> safe_offsets(row_offsets, row_offsets + rows);
    return std::make_shared<Tables>(safe_cdf.data(), rows, cdf_view.shape(1), safe_lengths.data(), safe_offsets.data(),
                                    zigzag ? rans::Order::kZigzag : rans::Order::kAscending);
}

py::object encode(py::handle symbols, py::handle indexes, const Tables& tables) {
    const View symbol_view(symbols, "symbols"), index_view(indexes, "indexes");
    check_sizes(symbol_view, index_view, "symbols");
    const std::int32_t* values = symbol_view.int32();
    std::vector<rans::Writer> writers(1);
    with_indexes(index_view, [&](const auto* rows) {
        const py::gil_scoped_release release;
        rans::encode(writers, values, rows, symbol_view.size(), tables);
    });
    return flush(writers)[0];
}

void decode(py::handle data, py::handle indexes, const Tables& tables, py::handle out, bool strict) {
    const View data_view(data, "data"), index_view(indexes, "indexes"), out_view(out, "out", true);
    check_sizes(out_view, index_view, "out");
    const unsigned char* bytes = data_view.bytes();
    std::int32_t* symbols = out_view.int32();
    with_indexes(index_view, [&](const auto* rows) {
        const py::gil_scoped_release release;
        std::vector<rans::Reader> readers{{bytes, data_view.size()}};
        rans::decode(readers, symbols, rows, index_view.size(), tables);
        if (strict) readers[0].finish();
    });
}

// pmf: float32 [count]; cdf: int32 [count + 1], written.
void pmf_to_cdf(py::handle pmf, py::handle cdf) {
    const View pmf_view(pmf, "pmf"), cdf_view(cdf, "cdf", true);
    SC_CHECK(cdf_view.size() == pmf_view.size() + 1, "cdf: ", cdf_view.size(), " elements for ", pmf_view.size(),
             " probabilities (needs one more)");
    const float* probabilities = pmf_view.float32();
    std::int32_t* values = cdf_view.int32();
    const py::gil_scoped_release release;
    pmf_to_quantized_cdf(probabilities, pmf_view.size(), values);
}

template <std::uint32_t (*checksum)(const unsigned char*, std::size_t, std::uint32_t)>
std::uint32_t crc(py::handle data, std::uint32_t start) {
    const View view(data, "data");
    const unsigned char* bytes = view.bytes();
    const py::gil_scoped_release release;
    return checksum(bytes, view.size(), start);
}

void translate(std::exception_ptr error) {
    const auto raise = [](const char* name, const std::exception& reason) {
        const py::object type = py::module_::import("sparsecodec.errors").attr(name);
        py::set_error(type, reason.what());
    };
    try {
        if (error) std::rethrow_exception(error);
    } catch (const BitstreamError& reason) {
        raise("BitstreamError", reason);
    } catch (const std::invalid_argument& reason) {
        raise("UsageError", reason);
    }
}

template <class Coder>
void bind_coder(py::module_& m, const char* encoder, const char* decoder) {
    py::class_<Encoder<Coder>>(m, encoder)
        .def(py::init<std::size_t>(), "streams"_a)
        .def("push", &Encoder<Coder>::push, "symbols"_a, "indexes"_a, "tables"_a)
        .def("finish", &Encoder<Coder>::finish);
    py::class_<Decoder<Coder>>(m, decoder)
        .def(py::init<const std::vector<py::object>&>(), "streams"_a)
        .def("decode", &Decoder<Coder>::decode, "indexes"_a, "tables"_a, "out"_a)
        .def("finish", &Decoder<Coder>::finish)
        .def("consumed", &Decoder<Coder>::consumed);
}

}  // namespace

void bind_entropy(py::module_& m) {
    py::register_local_exception_translator(translate);  // for the whole module, and only for it

    py::class_<Tables, std::shared_ptr<Tables>>(m, "RansTables")
        .def(py::init(&make_tables), "cdf"_a, "lengths"_a, "offsets"_a, "zigzag"_a = false)
        .def_property_readonly("rows", &Tables::rows)
        .def_property_readonly("nbytes", &Tables::bytes);
    bind_coder<rans::Rans64>(m, "RansEncoder", "RansDecoder");
    bind_coder<rans::Rans32>(m, "Rans32Encoder", "Rans32Decoder");
    m.def("rans_encode", &encode, "symbols"_a, "indexes"_a, "tables"_a);
    m.def("rans_decode", &decode, "data"_a, "indexes"_a, "tables"_a, "out"_a, "strict"_a);
    m.def("pmf_to_quantized_cdf", &pmf_to_cdf, "pmf"_a, "cdf"_a);
    m.def("crc32c", &crc<&crc32c>, "data"_a, "start"_a = 0);
    m.def("crc32c_portable", &crc<&crc32c_portable>, "data"_a, "start"_a = 0);
}
