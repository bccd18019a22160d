// Python buffers as the coders' bindings take them. Only for files that bind C++ to Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "check.h"

namespace sparsecodec {

namespace py = pybind11;

// A C-contiguous buffer, held until the view dies (with the GIL); its owner can neither move nor resize it meanwhile.
class View {
public:
    View(const py::handle& object, const char* name, bool writable = false) : name_(name) {
        const int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) {
            PyErr_Clear();
            refuse(name, ": ", py::repr(py::type::of(object)).cast<std::string>(), " (needs a C-contiguous ",
                   writable ? "writable " : "", "buffer)");
        }
    }
    ~View() { PyBuffer_Release(&buffer_); }
    View(const View&) = delete;
    View& operator=(const View&) = delete;

    std::size_t size() const { return static_cast<std::size_t>(buffer_.len / buffer_.itemsize); }
    int ndim() const { return buffer_.ndim; }
    std::size_t shape(int axis) const { return static_cast<std::size_t>(buffer_.shape[axis]); }

    // The code of struct for native integers and floats, with every 32-bit signed integer as 'i'.
    char type() const {
        const std::string format = buffer_.format ? buffer_.format : "B";
        if (format.size() != 1) return '?';
        return format[0] == 'l' && buffer_.itemsize == 4 ? 'i' : format[0];
    }
    template <class T>
    T* as(char type_code, const char* wanted) const {
        SC_CHECK(type() == type_code, name_, ": element type '", buffer_.format ? buffer_.format : "B", "' (needs ",
                 wanted, ")");
        return static_cast<T*>(buffer_.buf);
    }
    std::int32_t* int32() const { return as<std::int32_t>('i', "int32"); }
    const float* float32() const { return as<float>('f', "float32"); }
    const unsigned char* bytes() const { return as<unsigned char>('B', "bytes"); }

private:
    const char* name_;
    Py_buffer buffer_;
};

// Runs f with a pointer to the indexes in their own type.
template <class F>
void with_indexes(const View& indexes, F f) {
    switch (indexes.type()) {
        case 'B': return f(indexes.as<const std::uint8_t>('B', ""));
        case 'h': return f(indexes.as<const std::int16_t>('h', ""));
        default: return f(indexes.as<const std::int32_t>('i', "uint8, int16 or int32"));
    }
}

inline void check_sizes(const View& symbols, const View& indexes, const char* name) {
    const std::size_t count = symbols.size();
    SC_CHECK(count == indexes.size(), name, ": ", count, " elements for ", indexes.size(), " indexes");
}

}  // namespace sparsecodec
