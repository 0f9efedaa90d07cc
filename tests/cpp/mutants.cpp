// Runs the kernels with each of the mistakes that tests/support/mutate_kernels.py has planted in them, one at a time, and prints
// the numbers of those that nobody notices. For that script only: mutants ISA,... GROUP MISTAKE...
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "backend/cpu/isa/select.h"
#include "kernel_outputs.h"

extern "C" int llama2cpp_planted;  // 0: none

namespace {

using kernel_outputs::Bits;
using llama2cpp::Arithmetic;
using llama2cpp::KernelTable;
using Outputs = std::map<std::string, Bits>;

// What each group's kernels give, by parts: the first that differs is enough.
std::vector<Outputs (*)(const KernelTable&)> parts(const std::string& group) {
  if (group == "blocks") {
    return {[](const KernelTable& table) {
              Outputs bits;
              kernel_outputs::block_kernels(table, bits);
              return bits;
            },
            [](const KernelTable& table) {
              return Outputs{{"", kernel_outputs::quantize_blocks(table)}};
            }};
  }
  if (group == "llm_int8") {
    return {[](const KernelTable& table) {
              return Outputs{{"", kernel_outputs::matmul_llm_int8(table)}};
            },
            [](const KernelTable& table) {
              return Outputs{{"", kernel_outputs::quantize_row(table)}};
            }};
  }
  if (group == "matmul") {
    return {[](const KernelTable& table) {
              return Outputs{{"", kernel_outputs::matmul_int8(table)}};
            },
            [](const KernelTable& table) {
              return Outputs{{"", kernel_outputs::matmul_pairs(table)}};
            },
            [](const KernelTable& table) {
              return Outputs{{"", kernel_outputs::matmul(table, table.matmul_f32, [](float x) { return x; })}};
            },
            [](const KernelTable& table) {
              return Outputs{{"", kernel_outputs::matmul(table, table.matmul_f16, llama2cpp::float_to_half)}};
            }};
  }
  return {kernel_outputs::elementwise, [](const KernelTable& table) { return kernel_outputs::attention(table); }};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const Arithmetic order = std::string(argv[2]) == "llama2c" ? Arithmetic::llama2c : Arithmetic::contract;
  std::vector<const KernelTable*> tables;
  std::istringstream isas(argv[1]);
  for (std::string isa; std::getline(isas, isa, ',');) tables.push_back(&llama2cpp::select_kernels(isa, order));
  const auto all = parts(argv[2]);
  std::vector<Outputs> expected;
  for (const auto part : all) expected.push_back(part(*llama2cpp::reference_kernels(order)));
  for (int i = 3; i < argc; ++i) {
    // In a process of its own: a wrong bound may end it, or never end.
    const pid_t child = fork();
    if (child == 0) {
      alarm(120);
      llama2cpp_planted = std::atoi(argv[i]);
      for (const KernelTable* table : tables) {
        for (std::size_t j = 0; j < all.size(); ++j) {
          if (all[j](*table) != expected[j]) _exit(1);
        }
      }
      _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return 2;
    if (status == 0) std::printf("%s\n", argv[i]);
  }
}
