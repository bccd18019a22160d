// One way to refuse an argument. What is thrown here reaches Python as sparsecodec.errors.UsageError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace sparsecodec {

// The parts, written one after the other, are the message: name the argument, its value, and what would be accepted.
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::invalid_argument(message.str());
}

}  // namespace sparsecodec

// A check that stays in release builds, unlike assert. The message is built only on failure.
#define SC_CHECK(condition, ...)                            \
    do {                                                    \
        if (!(condition)) ::sparsecodec::refuse(__VA_ARGS__); \
    } while (0)
