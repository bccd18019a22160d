// Runs the AMX kernel with its real instructions and compares the bits with the kernel's own emulation. On a CPU
// without AMX each instruction traps; the handler decodes and carries it out, so that a wrong operand or encoding is
// seen there too.
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "cpu/igemm_isa.h"

namespace {

using namespace sparsecodec::igemm;
using Byte = unsigned char;

struct Machine {  // the architectural state that the instructions change
    bool configured = false;
    Byte config[64] = {};  // 16: bytes of a row, 16 bits each; 48: rows
    Byte tiles[8][1024] = {};
    long loads = 0, stores = 0, products = 0, trapped = 0;
} machine;

[[noreturn]] void give_up(const char* what, const Byte* code) {
    std::fprintf(stderr, "%s:", what);
    for (int i = 0; i < 6; ++i) std::fprintf(stderr, " %02x", code[i]);
    std::fprintf(stderr, "\n");
    std::_Exit(1);
}

float flushed(float value) {
    return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0f, value) : value;
}

std::intptr_t general_register(const ucontext_t* context, int number) {
    constexpr int kNames[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[kNames[number]];
}

std::int32_t immediate(const Byte* code) {
    std::int32_t value;
    std::memcpy(&value, code, sizeof value);
    return value;
}

void multiply(int sum, int x, int w) {
    float* const c = reinterpret_cast<float*>(machine.tiles[sum]);
    const bf16* const a = reinterpret_cast<const bf16*>(machine.tiles[x]);
    const bf16* const b = reinterpret_cast<const bf16*>(machine.tiles[w]);
    for (int m = 0; m < 16; ++m) {
        float parts[16][2] = {};
        for (int k = 0; k < 16; ++k) {
            for (int n = 0; n < 16; ++n) {
                for (int e = 0; e < 2; ++e) {
                    const float left = flushed(to_float(a[m * 32 + 2 * k + e]));
                    parts[n][e] = flushed(std::fma(left, flushed(to_float(b[k * 32 + 2 * n + e])), parts[n][e]));
                }
            }
        }
        for (int n = 0; n < 16; ++n) {
            float& total = c[m * 16 + n];
            total = flushed(flushed(total) + flushed(parts[n][0] + parts[n][1]));
        }
    }
}

// VEX map 0F38 with W = L = 0: 49 LDTILECFG, TILERELEASE; 4B TILELOADD (prefix F2), TILESTORED (F3); 5C TDPBF16PS (F3).
void on_illegal_instruction(int, siginfo_t*, void* opaque) {
    ucontext_t* const context = static_cast<ucontext_t*>(opaque);
    const Byte* const code = reinterpret_cast<const Byte*>(context->uc_mcontext.gregs[REG_RIP]);
    if (code[0] != 0xc4 || (code[1] & 0x9f) != 0x82 || (code[2] & 0x84) != 0) give_up("not a tile instruction", code);
    const int high_index = code[1] & 0x40 ? 0 : 8, high_base = code[1] & 0x20 ? 0 : 8;
    const int third = ~(code[2] >> 3) & 15, prefix = code[2] & 3, opcode = code[3];
    const int mod = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7;
    int length = 5;
    Byte* address = nullptr;
    std::intptr_t stride = 0;
    if (mod != 3 && rm == 4) {
        const int index = (code[5] >> 3 & 7) + high_index;
        if (mod == 0 && (code[5] & 7) == 5) give_up("no base register", code);
        address = reinterpret_cast<Byte*>(general_register(context, (code[5] & 7) + high_base));
        if (index != 4) stride = general_register(context, index) << (code[5] >> 6);
        length = 6;
    } else if (mod == 0 && rm == 5) {
        length = 9;
        address = const_cast<Byte*>(code) + length + immediate(code + 5);
    } else if (mod != 3) {
        address = reinterpret_cast<Byte*>(general_register(context, rm + high_base));
    }
    if (mod == 1) address += static_cast<signed char>(code[length++]);
    if (mod == 2) address += immediate(code + length), length += 4;

    if (opcode == 0x49 && prefix == 0) {
        machine.configured = mod != 3;
        if (machine.configured) std::memcpy(machine.config, address, sizeof machine.config);
        if (machine.configured && machine.config[0] != 1) give_up("palette", code);
        std::memset(machine.tiles, 0, sizeof machine.tiles);
    } else if (!machine.configured) {
        give_up("tiles are not configured", code);
    } else if (opcode == 0x4b && (prefix == 2 || prefix == 3) && rm == 4) {
        const int row_bytes = machine.config[16 + 2 * reg], rows = machine.config[48 + reg];
        for (int row = 0; row < rows; ++row) {
            Byte* const tile = machine.tiles[reg] + row * 64;
            prefix == 3 ? std::memcpy(tile, address + row * stride, row_bytes)
                        : std::memcpy(address + row * stride, tile, row_bytes);
        }
        ++(prefix == 3 ? machine.loads : machine.stores);
    } else if (opcode == 0x5c && prefix == 2 && mod == 3) {
        multiply(reg, rm, third);
        ++machine.products;
    } else {
        give_up("unknown instruction", code);
    }
    ++machine.trapped;
    context->uc_mcontext.gregs[REG_RIP] += length;
}

template <class Out>
std::vector<Out> run(BlockKernel<bf16, Out> kernel, BlockArgs<bf16, Out> args, int n) {
    std::vector<Out> result(static_cast<std::size_t>(args.m) * n);
    std::vector<Out*> out(args.m);
    fill_rows(out.data(), result.data(), n, args.m);
    const Epilogue<Out> epilogue{out.data(), nullptr, {0.5f}};
    args.epilogue = &epilogue;
    kernel(args);
    return result;
}

// m pixels, n channels; rows one after the other, or in another order. Whether both kernels agree.
bool same(int m, int n, int k, int taps, bool in_order, std::mt19937& random) {
    std::normal_distribution<float> normal;
    const int padded = (k + kAmxPadding - 1) / kAmxPadding * kAmxPadding, blocks = (n + kBlock - 1) / kBlock;
    const std::size_t block_size = static_cast<std::size_t>(taps) * padded * kBlock;
    std::vector<bf16> storage(blocks * block_size + 32), x(static_cast<std::size_t>(m) * taps * k);
    const auto at = reinterpret_cast<std::uintptr_t>(storage.data());
    bf16* const weights = storage.data() + (64 - at % 64) % 64 / sizeof(bf16);
    std::vector<float> bias(blocks * kBlock);
    std::vector<Place> places;
    for (int b = 0; b < blocks; ++b) {
        const int columns = std::min(kBlock, n - b * kBlock);
        places.push_back({columns, {{0, columns, 0, b * kBlock}}, {}, 0, 0, {}});
    }
    for (int c = 0; c < n; ++c) {
        bias[c] = normal(random);
        for (int tap = 0; tap < taps; ++tap) {
            for (int i = 0; i < k; ++i) {
                const std::size_t pair = static_cast<std::size_t>(tap * padded + i) / 2 * kBlock + c % kBlock;
                weights[c / kBlock * block_size + pair * 2 + i % 2] = to_bf16(normal(random));
            }
        }
    }
    for (bf16& value : x) value = to_bf16(normal(random));
    std::vector<const bf16*> rows(taps * m);
    for (int i = 0; i < taps * m; ++i) {
        rows[i] = x.data() + static_cast<std::ptrdiff_t>(in_order ? i : i * 7 % (taps * m)) * k;
    }
    const BlockArgs<bf16, float> args{rows.data(), m,           m,             taps,       k, blocks,
                                      weights,     bias.data(), places.data(), block_size, 0, nullptr};
    return run<float>(block_amx, args, n) == run<float>(block_amx_emulated, args, n);
}

}  // namespace

int main() {
    if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) {  // no tile registers: the instructions trap
        struct sigaction action = {};
        action.sa_sigaction = on_illegal_instruction;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGILL, &action, nullptr);
    }
    std::mt19937 random(1);
    int wrong = 0;
    for (int k : {1, 31, 32, 33, 64, 100}) {
        for (int m : {1, 15, 16, 17, 32, 33, 70}) {
            for (int n : {1, 16, 17, 32, 40}) {
                for (int taps : {1, 3}) {
                    for (bool in_order : {true, false}) {
                        if (same(m, n, k, taps, in_order, random)) continue;
                        ++wrong;
                        std::fprintf(stderr, "differs: m=%d n=%d k=%d taps=%d in_order=%d\n", m, n, k, taps, in_order);
                    }
                }
            }
        }
    }
    std::printf("%ld trapped: %ld loads, %ld stores, %ld products\n", machine.trapped, machine.loads, machine.stores,
                machine.products);
    return wrong != 0;
}
