#!/bin/bash
# The long checks. They need Linux on x86-64 and what .ci/run installs; `aarch64` needs Debian's g++-aarch64-linux-gnu
# and qemu-user, `macos` PyPI's ziglang and pybind11, `windows` ziglang and Debian's wine64; `fuzz`, `allocations`, `leaks`, `threads`, `load`, `harness`, `ray`,
# `kills` and `mutants` need this package, installed with its tests.
#
#   tests/slow.sh [-m MINUTES] [-b FOLDER] [CHECK...]
#
#   -m MINUTES  for each fuzz target and each stress test; fractions are fine (default 10)
#   -b FOLDER   for builds, corpora and crashes (default build/slow); it is kept, so that a second run is quicker
#
#   asan        C++ tests and stress under AddressSanitizer and UndefinedBehaviorSanitizer
#   fuzz        each fuzz target, under the same
#   tsan        C++ tests and stress under ThreadSanitizer
#   clang       C++ tests as clang++ compiles them for users
#   aarch64     C++ tests built for aarch64, run by an emulator: the same bits as here
#   windows     C++ tests built for Windows on x86-64, run by Wine: the same bits as here
#   macos       the extension and C++ tests built for macOS on aarch64 (and not run); macOS and CPython have all that it imports
#   macos-core  the core compiled for that, and not linked: a short form of it
#   metal       the Metal backend on the software device: the device itself, every op in every order of threads, the engine's
#               tests, and planted faults, each of which must be found
#   costs       tests/chat/test_chat_template_costs.py with all operations
#   allocations tests/engine/test_allocations.py: up to 3,000 allocations of each operation fail in turn
#   leaks       tests/engine/test_leaks.py with 10,000 cycles
#   threads     tests/engine/test_python_threads.py with 50 rounds
#   load        tests/support/server_load.py: 64 clients of `llama2cpp serve` for 3 minutes, some of which leave, read slowly or
#               send what is no request: every answer is right, nothing is left over, memory stays
#   harness     tests/export/test_lm_eval.py: lm-evaluation-harness has the figures that its own hf has. In an environment of
#               its own, beside the one that Python has: 760 MB
#   ray         tests/server/test_ray.py: data sets of Ray on a cluster of this machine, one of whose actors is killed. In an
#               environment of its own, likewise: 330 MB
#   libm        the float functions of llama2.c's order of arithmetic, for every float, against the C library
#   kills       tests/support/writers.py: each writer of files killed a thousand times, at random moments
#   mutants     tests/support/mutate_kernels.py: small mistakes in the kernels, each of which the C++ tests must find
set -euo pipefail

minutes=10
build=build/slow
while getopts m:b:h option; do
  case $option in
    m) minutes=$OPTARG ;;
    b) build=$OPTARG ;;
    *) sed -n '2,/^set/{/^#/s/^# \?//p}' "$0" && exit 2 ;;
  esac
done
shift $((OPTIND - 1))
checks=("$@")
[ ${#checks[@]} -gt 0 ] || checks=(asan fuzz tsan clang aarch64 windows macos metal costs allocations leaks threads load harness ray libm kills mutants)

mkdir -p "$build"
build=$(cd "$build" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=$(awk -v m="$minutes" 'BEGIN { s = int(m * 60); print s < 1 ? 1 : s }')
python=${PYTHON:-python3}
export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_init_order=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:die_after_fork=0:second_deadlock_stack=1

# cpp NAME [CMake options]: configures and builds the C++ side in $build/NAME, without precompiled headers, so that a
# file which does not include what it uses fails. $targets: what of it, if not all.
cpp() {
  local folder=$build/$1
  shift
  cmake -S . -B "$folder" -G Ninja -DLLAMA2CPP_PYTHON=OFF -DLLAMA2CPP_TESTS=ON -DLLAMA2CPP_WERROR=ON \
    -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON "$@" >"$folder.log" 2>&1 || { cat "$folder.log" && return 1; }
  cmake --build "$folder" ${targets:+--target $targets} -- --quiet
}

# Line numbers are all that a report needs; the rest of debug information takes long to make.
sanitized() {
  cpp "$1" -DCMAKE_CXX_COMPILER=clang++-16 -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DLLAMA2CPP_SANITIZE=$2" \
    "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -gline-tables-only -DNDEBUG" "${@:3}"
}

# stress PROGRAM: other seeds until the time is over.
stress() {
  local end=$((SECONDS + seconds)) seed=1
  while true; do
    "$1" 3 100 $seed
    seed=$((seed + 3))
    [ $SECONDS -lt $end ] || break
  done
}

# What benches measure is compiled without sanitizers.
asan() {
  local targets
  targets="llama2cpp_tests stress_sessions $(basename -s .cpp tests/cpp/fuzz_*.cpp | paste -sd ' ')"
  sanitized asan fuzzer-no-link,address,undefined -DLLAMA2CPP_FUZZ=ON
  # In two halves side by side. That the kernel tests find a wrong kernel is shown without sanitizers, ten times as fast.
  local tests=$build/asan/tests/cpp/llama2cpp_tests half='*test_kernels*,*test_matmul.cpp*' kernels failed=0
  "$tests" --source-file="$half" --test-case-exclude='*one ulp off*' >"$build/asan_kernels.out" 2>&1 &
  kernels=$!
  "$tests" --source-file-exclude="$half" || failed=1
  wait "$kernels" || failed=1
  cat "$build/asan_kernels.out"
  [ $failed -eq 0 ]
  stress "$build/asan/tests/cpp/stress_sessions"
}

fuzz() {
  local source target targets words
  targets=$(basename -s .cpp tests/cpp/fuzz_*.cpp | paste -sd ' ')
  sanitized asan fuzzer-no-link,address,undefined -DLLAMA2CPP_FUZZ=ON
  for source in tests/cpp/fuzz_*.cpp; do
    target=$(basename "$source" .cpp)
    "$python" tests/support/fuzz_corpus.py "$target" "$build/corpus/$target"
    mkdir -p "$build/crashes"
    words=()
    [ ! -f "$build/corpus/$target.dict" ] || words=("-dict=$build/corpus/$target.dict")
    # Grows the corpus in the folder. Slow inputs and hungry ones are failures too.
    "$build/asan/tests/cpp/$target" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -print_final_stats=1 "${words[@]}" \
      -artifact_prefix="$build/crashes/$target-" "$build/corpus/$target" 2>"$build/$target.log" ||
      { tail -n 60 "$build/$target.log" && return 1; }
    grep -E 'number_of_executed_units|new_units_added|peak_rss' "$build/$target.log" | sed "s/^/$target: /"
  done
}

# Whatever starts no threads has nothing to show here, and takes long.
tsan() {
  local targets="llama2cpp_tests stress_sessions"
  sanitized tsan thread "-DLLAMA2CPP_TESTS_MATCHING=test_(forward|session_lock|thread_pool|wait_lock)"
  "$build/tsan/tests/cpp/llama2cpp_tests"
  stress "$build/tsan/tests/cpp/stress_sessions"
}

clang() {
  cpp clang -DCMAKE_CXX_COMPILER=clang++-16
  "$build/clang/tests/cpp/llama2cpp_tests"
}

# Cross compilers must see doctest, and nothing else of this machine's headers.
doctest_include() {
  mkdir -p "$build/include"
  ln -sfn /usr/include/doctest "$build/include/doctest"
  echo "$build/include"
}

# same_bits FILE: the C++ tests print lines that tell which bits came out; those in FILE must be those of a run here.
same_bits() {
  cpp here
  "$build/here/tests/cpp/llama2cpp_tests" >"$build/here.out" || { cat "$build/here.out" && return 1; }
  diff <(grep -E '^(kernel|forward) ' "$build/here.out") <(grep -E '^(kernel|forward) ' "$1")
  grep -E '^(kernel|forward) ' "$1"
  echo "$(grep -cE '^(kernel|forward) ' "$1") hashes, all equal to x86-64 Linux's"
}

aarch64() {
  cpp aarch64 -DCMAKE_TOOLCHAIN_FILE=tests/cpp/aarch64-linux-gnu.cmake "-DDOCTEST_INCLUDE_DIR=$(doctest_include)"
  # The emulator (qemu-user 7.2) stops with an assertion of its own where the child of a threaded program starts threads.
  # That the comparison finds a kernel which is one ulp off is shown on x86-64 in seconds; here it takes half an hour.
  qemu-aarch64 -L /usr/aarch64-linux-gnu "$build/aarch64/tests/cpp/llama2cpp_tests" \
    --test-case-exclude='a forked child makes workers*,a child of fork() can be made*,*one ulp off*' >"$build/aarch64.out" || { cat "$build/aarch64.out" && return 1; }
  tail -n 4 "$build/aarch64.out"
  same_bits "$build/aarch64.out"
}

# Wrappers of the compiler that PyPI's ziglang brings, which CMake takes for a compiler of its own.
zig() {
  local tool
  mkdir -p "$build/zig"
  for tool in cc c++ ar ranlib; do
    printf '#!/bin/sh\nexec %s -m ziglang %s "$@"\n' "$python" "$tool" >"$build/zig/$tool"
    chmod +x "$build/zig/$tool"
  done
}

# for_macos NAME [CMake options]: with Metal, by the headers and the library that tests/cpp/metal-cpp.txt pins. Apple's
# frameworks are text stubs of what that library imports.
for_macos() {
  zig
  "$python" tests/support/metal_cpp.py "$build/metal"
  "$python" tests/support/macho.py stubs "$build/metal/mlx/lib/libmlx.dylib" "$build/metal/stubs"
  cpp "$1" -DCMAKE_TOOLCHAIN_FILE=tests/cpp/aarch64-macos.cmake "-DLLAMA2CPP_ZIG=$build/zig" \
    "-DLLAMA2CPP_STUBS=$build/metal/stubs" "-DLLAMA2CPP_METAL_CPP=$build/metal/mlx/include/metal_cpp" "${@:2}"
}

macos() {
  local known=$build/metal/mlx/lib/libmlx.dylib suffix
  suffix=.cpython-$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')-darwin.so
  for_macos macos -DLLAMA2CPP_PYTHON=ON "-Dpybind11_DIR=$("$python" -m pybind11 --cmakedir)" \
    "-DPython_EXECUTABLE=$(command -v "$python")" "-DPYTHON_MODULE_EXTENSION=$suffix" -DPYTHON_MODULE_DEBUG_POSTFIX= \
    "-DDOCTEST_INCLUDE_DIR=$(doctest_include)"
  "$python" tests/support/macho.py check "$build/macos/_core$suffix" "$known"
  imports_are_checked "$known"
}

# A module with one import that nothing has, of each kind, fails.
imports_are_checked() {
  local symbol from="$build/macos/bad.c" bad="$build/macos/bad.so"
  for symbol in PyNone_Such none_such; do
    printf 'void %s(void); void PyInit__core(void) { %s(); }\n' "$symbol" "$symbol" >"$from"
    "$build/zig/cc" -target aarch64-macos.13.0 -shared -Wl,-undefined,dynamic_lookup -o "$bad" "$from"
    if "$python" tests/support/macho.py check "$bad" "$1" 2>"$bad.said"; then
      echo "a module that imports $symbol passed" && return 1
    fi
    grep -F "_$symbol is" "$bad.said"
  done
}

# Without precompiled headers, as all of these: what another C++ library does not happen to include is missed here first.
macos-core() { for_macos macos-core -DCMAKE_BUILD_TYPE=Debug "-DCMAKE_CXX_FLAGS_DEBUG=-O0" -DLLAMA2CPP_TESTS=OFF; }

windows() {
  zig
  cpp windows -DCMAKE_SYSTEM_NAME=Windows -DCMAKE_SYSTEM_PROCESSOR=AMD64 -DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY \
    -DCMAKE_CXX_COMPILER="$build/zig/c++" -DCMAKE_CXX_FLAGS="-target x86_64-windows-gnu" -DCMAKE_AR="$build/zig/ar" \
    -DCMAKE_RANLIB="$build/zig/ranlib" "-DDOCTEST_INCLUDE_DIR=$(doctest_include)"
  export WINEPREFIX=$build/wine WINEDEBUG=-all
  local tests=$build/windows/tests/cpp
  wine "$tests/llama2cpp_tests.exe" | tr -d '\r' >"$build/windows.out" || { cat "$build/windows.out" && return 1; }
  tail -n 4 "$build/windows.out"
  same_bits "$build/windows.out"
  wine "$tests/stress_sessions.exe"
}

# The Metal backend on the software device. -m below 1: fewer examples, modes, engine's tests and planted faults.
metal() {
  local folder=$build/metal package=$build/metal/package short= every=1 log=$build/metal.log
  [ "$seconds" -ge 60 ] || { short=1 && every=18; }
  if [ -n "${LLAMA2CPP_METAL_BUILD:-}" ]; then
    folder=$LLAMA2CPP_METAL_BUILD # one that has everything already, as .ci/run's has
  else
    cmake -S . -B "$folder" -G Ninja -DLLAMA2CPP_TESTS=ON -DLLAMA2CPP_SOFT_METAL=ON -DLLAMA2CPP_WERROR=ON \
      -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
      -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$log" 2>&1 || { cat "$log" && return 1; }
    cmake --build "$folder" -- --quiet
  fi
  # The package with this build's _core.
  mkdir -p "$package/llama2cpp"
  ln -sfn "$PWD"/src/llama2cpp/* "$folder"/_core.*.so "$package/llama2cpp/"
  export PYTHONPATH=$package LLAMA2CPP_OPS=$folder CI=${CI:-1}
  local examples=${short:+3} ops caught texts
  ctest --test-dir "$folder" -R metal --output-on-failure --no-tests=error
  "$folder/tests/cpp/llama2cpp_tests" --test-case='*etal*'
  # What needs no device is left out of the short form, and the text that takes longest a second time.
  LLAMA2CPP_OP_EXAMPLES=${examples:-20} LLAMA2CPP_OPS_TABLE=$build/ops.json LLAMA2CPP_TEXTS_TABLE=$build/texts.json \
    "$python" -m pytest -q tests/metal --ignore=tests/metal/test_macho.py \
    ${short:+--ignore=tests/metal/test_kernel_text.py --ignore=tests/metal/test_third_party.py} \
    ${short:+--deselect='tests/metal/test_texts_on_metal.py::test_greedy_text[on-storyteller]'}
  if [ -n "$short" ]; then
    LLAMA2CPP_SOFT_METAL=check=off "$python" -m pytest -q --backend metal tests/engine/test_kv.py tests/engine/test_forward.py \
      tests/inside/test_hooks.py
  else
    LLAMA2CPP_SOFT_METAL=check=off "$python" -m pytest -q --backend metal
  fi
  "$python" tests/metal/mutate.py "$folder" --every $every | tee "$build/mutations.txt"
  "$python" tests/support/op_bench.py "$build/ops.json"
  ops=$("$python" tests/support/op_bench.py --line "$build/ops.json")
  texts=$("$python" tests/support/metal_texts.py --line "$build/texts.json")
  caught=$(tail -n 1 "$build/mutations.txt")
  echo "metal: $ops, $caught, $texts"
}

costs() { LLAMA2CPP_TEMPLATE_COSTS=1 "$python" -m pytest -q tests/chat/test_chat_template_costs.py; }

# An export makes tens of thousands: of each operation up to 3,000 are tried.
allocations() { LLAMA2CPP_ALLOCATIONS=3000 "$python" -m pytest -q -rP tests/engine/test_allocations.py; }

leaks() { LLAMA2CPP_LEAK_CYCLES=10000 "$python" -m pytest -q -rP tests/engine/test_leaks.py; }

load() { "$python" tests/support/server_load.py; }

threads() { LLAMA2CPP_STRESS_ROUNDS=50 "$python" -m pytest -q tests/engine/test_python_threads.py; }

# beside FOLDER PACKAGE...: an environment with these packages. What else the tests need comes from where they are
# installed: PyTorch is large.
beside() {
  local own=$1
  [ -x "$own/bin/python" ] || "$python" -m venv "$own"
  "$own/bin/python" -m pip install -q "${@:2}"
  "$python" -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_paths()["purelib"])' \
    >"$("$own/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/beside.pth"
}

harness() {
  local own=$build/harness
  beside "$own" "lm-eval>=0.4.13"
  "$own/bin/python" -m pip install -q --no-deps accelerate
  HF_DATASETS_CACHE="$build/harness-data" "$own/bin/python" -m pytest -q tests/export/test_lm_eval.py
}

ray() {
  beside "$build/ray" "ray[data,serve]>=2.60"
  "$build/ray/bin/python" -m pytest -q tests/server/test_ray.py
}

libm() {
  cpp here
  "$build/here/tests/cpp/llama2cpp_tests" --no-skip --test-case="llama2.c's float functions: every float"
}

kills() { "$python" tests/support/writers.py 1000 "${LLAMA2CPP_TEST_MODELS:-../shared/models}/stories260K"; }

mutants() {
  cpp here
  "$python" tests/support/mutate_kernels.py "$build/here"
}

# In one piece, so that bash reads no further: this file may change while the checks run.
{
  for check in "${checks[@]}"; do
    case $check in
      asan | fuzz | tsan | clang | aarch64 | windows | macos | macos-core | metal | costs | allocations | leaks | threads | load | harness | ray | libm | kills | mutants) ;;
      *) echo "no check '$check': see $0 -h" >&2 && exit 2 ;;
    esac
  done
  for check in "${checks[@]}"; do
    begin=$SECONDS
    echo "--- slow: $check"
    "$check"
    echo "--- slow: $check passed in $((SECONDS - begin)) s"
  done
  exit
}
