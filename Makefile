# make demo | test | bench | gpu | aot | emulate | sanitize | fuzz | lint. Everything happens in .venv; nothing is installed outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := triton,compressai,metrics,plot,video,train,bench,dev

# Without an NVIDIA driver on Linux, only PyTorch's CPU build will do: the default one on PyPI is several GB of CUDA.
# Its index is asked where it can be reached; elsewhere the wheel has to come from pip's own configuration.
CPU_INDEX := https://download.pytorch.org/whl/cpu
CPU_ONLY := $(shell [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 && echo 1)
TORCH := torch==2.13.0$(if $(CPU_ONLY),+cpu)

.PHONY: demo test bench bench-once gpu lint aot emulate sanitize fuzz install clean

demo: $(INSTALLED)
	$(BIN)/sparsecodec demo --out demo

# Tests run in so many processes, of one thread each. Not a setting of pytest's: benches cannot be timed side by side,
# and a single test starts faster without.
WORKERS ?= 2
SIDE_BY_SIDE = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

test: $(INSTALLED)
	$(SIDE_BY_SIDE)

bench: $(INSTALLED)
	$(BIN)/pytest bench

# Every bench once, without timing and without rows: keeps them from rotting.
bench-once: $(INSTALLED)
	$(SIDE_BY_SIDE) bench --benchmark-disable -q

# Conformance, benches and sanitizer on a GPU, in under ten minutes.
gpu:
	@command -v nvidia-smi >/dev/null || { echo "no GPU lane here: no NVIDIA driver (nvidia-smi is not on the PATH)"; exit 1; }
	$(MAKE) $(INSTALLED)
	@$(BIN)/python bench/gpu.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Registers, spills and tensor-core instructions of every Triton and CUDA kernel; needs no GPU.
aot: $(INSTALLED)
	env -u TRITON_INTERPRET $(BIN)/python tests/ops/aot_compile.py --out bench/results/aot.json

# The CUDA kernels on CPU threads, against the CPU kernels and under the sanitizers; needs g++ only.
emulate:
	$(PYTHON) tests/cuda_emulator/emulate.py

# The C++ of the coder and of the kernels under AddressSanitizer and UBSan, on mutated inputs; needs g++ only.
sanitize:
	$(PYTHON) tests/native/native.py

# The same for a bounded time per target, then containers, decoding and model files from Python. docs/robustness.md.
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 0
fuzz: $(INSTALLED)
	$(PYTHON) tests/native/native.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

install: $(INSTALLED)

# The extension is rebuilt when its sources change; Python files are used in place.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt setuptools pybind11
	index=; [ -z "$(CPU_ONLY)" ] \
	  || ! $(BIN)/python -c "import urllib.request as u; u.urlopen('$(CPU_INDEX)', timeout=5)" 2>/dev/null \
	  || index="--extra-index-url $(CPU_INDEX)"; \
	$(BIN)/python -m pip install $$index -c constraints.txt --no-build-isolation "$(TORCH)" -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf build demo *.egg-info sparsecodec/*.so
