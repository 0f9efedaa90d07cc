// Runs the kernels of block formats on fixed units, of every layout. See kernel_outputs.h.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "backend/cpu/kernel_table.h"
#include "core/half.h"
#include "kernel_inputs.h"

namespace kernel_outputs {

using llama2cpp::KernelTable;

// Block formats: any bytes make a unit, of every layout; the input takes every value and both ends of its range.
constexpr llama2cpp::BlockLayout kLayouts[] = {
    {8, 128, 1, false, false},
    {4, 8, 1, false, false},
    {4, 0, 1, false, true},
    {5, 16, 1, false, false},
    {5, 0, 1, false, true},
    {2, 0, 2, true, true},
    {3, 4, 2, true, false},
    {4, 0, 1, true, true},
    {5, 0, 1, true, true},
    {6, 32, 2, true, false},
    {8, 128, 1, true, false},
    {2, 0, 1, false, false, true, 3},
    {3, 0, 1, false, false, true, 1},
    {4, 0, 1, false, false, true, 0},
    {4, 0, 1, false, false, true, 2},
    {8, 128, 1, false, false, true, 2},
};

// Where the scales of 16 rows are, of those that lie in a unit's header as halves.
inline std::vector<std::size_t> places_of_scales(const llama2cpp::BlockLayout& layout, std::int64_t blocks) {
  const std::int64_t fields = layout.minimum ? 2 : 1;
  const std::int64_t entries = layout.zeros ? ((blocks - 1) >> layout.share) + 1 : layout.sub_scales ? 1 : blocks;
  std::vector<std::size_t> places;
  for (std::int64_t i = 0; i < entries * fields; ++i) {
    places.push_back(static_cast<std::size_t>(i * (layout.zeros ? 48 : 32)));
  }
  return places;
}

// Bytes of a unit, as format/block_layout.h has it.
inline std::int64_t unit_bytes(const llama2cpp::BlockLayout& layout, std::int64_t blocks) {
  const std::int64_t fields = layout.minimum ? 2 : 1;
  const auto entries = static_cast<std::int64_t>(places_of_scales(layout, blocks).size());
  const std::int64_t header = layout.zeros        ? entries * 48
                              : layout.sub_scales ? fields * (32 + blocks * layout.halves * 16)
                                                  : fields * blocks * 32;
  return (header + 63) / 64 * 64 + blocks * layout.bits * 64;
}

// Random bytes, with ordinary, extreme and special halves at the front, where scales are.
inline std::vector<std::uint8_t> make_units(const llama2cpp::BlockLayout& layout, std::int64_t panels,
                                            std::int64_t blocks, Kind kind, std::uint64_t seed) {
  Random random(seed * 17 + static_cast<std::uint64_t>(kind));
  std::vector<std::uint8_t> bytes;
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    for (std::int64_t left = blocks; left > 0; left -= 8) {
      const std::int64_t count = std::min<std::int64_t>(left, 8);
      const std::size_t begin = bytes.size();
      const std::uint32_t fill = random.next() % 6;  // at times all ones, all zeros, or the highest bits
      for (std::int64_t i = 0; i < unit_bytes(layout, count); ++i) {
        const auto any = static_cast<std::uint8_t>(random.next());
        bytes.push_back(fill == 0 ? 0xFF : fill == 1 ? 0 : fill == 2 ? 0x80 : any);
      }
      const std::vector<std::size_t> places = places_of_scales(layout, count);
      const auto scales = make(places.size() * 16, kind, ++seed);
      for (std::size_t i = 0; i < scales.size(); ++i) {
        const float scale = kind == Kind::tiny ? scales[i] * 1e24F : scales[i];  // denormal halves
        const std::uint16_t half = llama2cpp::float_to_half(scale);
        const std::size_t at = begin + places[i / 16] + i % 16 * 2;
        bytes[at] = static_cast<std::uint8_t>(half);
        bytes[at + 1] = static_cast<std::uint8_t>(half >> 8);
      }
    }
  }
  return bytes;
}

// The input of one tile: tokens [first, first + count), which do not depend on how tiles are cut.
struct BlockTile {
  std::vector<std::int8_t> x;
  std::vector<float> scales, sums;
  std::vector<std::int32_t> starts;

  BlockTile(std::int64_t blocks, int halves, std::int64_t first, std::int64_t count, Kind kind, std::uint64_t seed)
      : x(static_cast<std::size_t>(blocks * 32 * count)),
        scales(static_cast<std::size_t>(blocks * count)),
        sums(static_cast<std::size_t>(blocks * halves * count)),
        starts(sums.size()) {
    for (std::int64_t t = 0; t < count; ++t) {
      const std::uint64_t token = seed * 100 + static_cast<std::uint64_t>(first + t);
      const auto of_token = make(static_cast<std::size_t>(blocks), kind, token);
      Random random(token);
      for (std::int64_t k = 0; k < blocks * 32; ++k) {
        const std::uint32_t draw = random.next();
        const int value = token % 3 == 0 ? 127 : draw % 5 == 0 ? -127 : static_cast<int>(draw % 255) - 127;
        x[static_cast<std::size_t>((k / 32 * count + t) * 32 + k % 32)] = static_cast<std::int8_t>(value);
        starts[static_cast<std::size_t>(k * halves / 32 * count + t)] -= value;
      }
      for (std::int64_t part = 0; part < blocks * halves; ++part) {
        const float scale = of_token[static_cast<std::size_t>(part / halves)];
        const auto i = static_cast<std::size_t>(part * count + t);
        scales[static_cast<std::size_t>(part / halves * count + t)] = scale;
        sums[i] = scale * static_cast<float>(-starts[i]);
      }
    }
  }
};

inline void block_kernels(const KernelTable& table, std::map<std::string, Bits>& bits) {
  std::uint64_t seed = 5000;
  for (const llama2cpp::BlockLayout& layout : kLayouts) {
    for (const Kind kind : {Kind::ordinary, Kind::tiny, Kind::wide, Kind::special}) {
      for (const std::int64_t rows : {16, 33, 74}) {
        const std::int64_t panels = (rows + 15) / 16;
        // A last unit of one block, of three, and a unit of five. Sub-scales are for eight.
        const std::int64_t blocks = layout.sub_scales ? 16 : rows == 16 ? 9 : rows == 33 ? 11 : 5;
        const auto units = make_units(layout, panels, blocks, kind, ++seed);
        const std::int64_t stride = static_cast<std::int64_t>(units.size()) / panels;
        const std::int64_t opened = std::min<std::int64_t>(blocks, 8);  // of the first unit
        const std::int64_t open_stride = (blocks + 7) / 8 * llama2cpp::kUnpackedBytes;
        std::vector<std::uint8_t> open(static_cast<std::size_t>(panels * open_stride));
        std::vector<float> wide(static_cast<std::size_t>(opened * 32 * 16 + 1), kGuard);
        for (std::int64_t panel = 0; panel < panels; ++panel) {
          std::uint8_t* to = open.data() + panel * open_stride;
          table.unpack_blocks(layout, units.data() + panel * stride, opened, to);
          for (std::int64_t i = 0; i < opened * 512; i += 4) {
            bits["unpack_blocks"].add(static_cast<std::uint32_t>(to[i] | to[i + 1] << 8 | to[i + 2] << 16) |
                                      std::uint32_t{to[i + 3]} << 24);
          }
          for (std::int64_t i = llama2cpp::kUnpackedScales; i < llama2cpp::kUnpackedBytes; i += 4) {
            float value = 0.0F;
            std::copy_n(to + i, 4, reinterpret_cast<std::uint8_t*>(&value));
            bits["unpack_blocks"].add(value);
          }
          // matmul_open and widen_blocks get what the reference opens: a mistake shows in one place only
          for (std::int64_t block = 0; block < blocks; block += 8) {
            const std::uint8_t* unit = units.data() + panel * stride + block / 8 * unit_bytes(layout, 8);
            llama2cpp::reference_kernels()->unpack_blocks(layout, unit, std::min<std::int64_t>(blocks - block, 8),
                                                          to + block / 8 * llama2cpp::kUnpackedBytes);
          }
          if (panel > 0) continue;
          table.widen_blocks(layout, to, opened, wide.data());
          bits["widen_blocks"].add(wide);
        }
        ++seed;
        for (const std::int64_t tokens : {1, 2, 3, 4, 5, 7, 12}) {
          auto few = make(static_cast<std::size_t>(tokens * rows + 1), Kind::ordinary, seed);
          auto out = few;
          for (std::int64_t t = 0; t < tokens; t += table.tile) {
            const std::int64_t width = std::min(tokens - t, table.tile);
            const BlockTile tile(blocks, layout.halves, t, width, kind, seed);
            llama2cpp::BlockCall call{
                .layout = layout,
                .panels = open.data(),
                .panel_stride = open_stride,
                .n_panels = panels,
                .blocks = blocks,
                .input = {tile.x.data(), tile.scales.data(), tile.starts.data(), tile.sums.data()},
                .n_tokens = width,
                .out = out.data() + t * rows,
                .out_stride = rows,
                .last_rows = rows - (panels - 1) * 16,
                .first = tokens % 2 == 1};
            table.matmul_open(call);
            call.panels = units.data();
            call.panel_stride = stride;
            call.out = few.data() + t * rows;
            table.matmul_blocks(call);
            if (tokens > llama2cpp::kFewTokens) continue;
            const auto floats = make(static_cast<std::size_t>(blocks * 32 * width), kind, seed);
            auto wide_out = make(static_cast<std::size_t>(tokens * rows + 1), Kind::ordinary, seed);
            call.input = {nullptr, nullptr, nullptr, nullptr, floats.data()};
            call.out = wide_out.data();
            table.matmul_wide(call);
            bits["matmul_wide"].add(wide_out);
          }
          bits["matmul_open"].add(out);
          bits["matmul_blocks"].add(few);
        }
      }
    }
  }
}

inline Bits quantize_blocks(const KernelTable& table) {
  Bits bits;
  std::uint64_t seed = 3500;
  for (const Kind kind : kKinds) {
    for (int round = 0; round < 20; ++round) {
      auto x = make(9 * 32, kind, ++seed);
      for (std::size_t i = 0; i < 32; ++i) {  // halves, whole numbers, nothing at all, denormals
        x[i] = i == 0 ? 127.0F : static_cast<float>(i) - 20.5F;
        x[32 + i] = i == 0 ? -63.5F : static_cast<float>(i % 9) * 0.25F;
        x[64 + i] = i % 2 == 0 ? 0.0F : -0.0F;
        x[96 + i] = (static_cast<float>(i) - 7.0F) * 1e-43F;
        // scales that are denormals, with a few digits of their own
        if (round % 2 == 1) x[96 + i] = static_cast<float>((i * 2654435761U + 40503U * i * i) % 3001U) * 1e-42F;
      }
      const float scale = std::abs(x[128]) / 127.0F;  // quotients in the middle of two numbers, or all but there
      for (std::size_t i = 1; i < 32 && round % 2 == 0; ++i) {
        if (std::abs(x[128]) < 1e30F) x[128 + i] = scale * (static_cast<float>(i) - 15.5F);
      }
      for (const std::int64_t halves : {1, 2}) {
        for (const std::int64_t n : {1, 2, 5}) {  // the last place of a tile of n tokens
          const auto tokens = static_cast<std::size_t>(n);
          std::vector<std::int8_t> q(x.size() * tokens + 4, 99);
          std::vector<float> scales(9 * tokens + 1, kGuard);
          std::vector<std::int32_t> starts(18 * tokens + 1, 77);
          std::vector<float> sums(18 * tokens + 1, kGuard);
          table.quantize_blocks({.x = x.data(),
                                 .blocks = 9,
                                 .halves = halves,
                                 .n_tokens = n,
                                 .q = q.data() + (n - 1) * 32,
                                 .scales = scales.data() + n - 1,
                                 .starts = starts.data() + n - 1,
                                 .sums = sums.data() + n - 1});
          bits.add(scales);
          bits.add(sums);
          for (const std::int8_t value : q) bits.add(static_cast<float>(value));
          for (const std::int32_t value : starts) bits.add(static_cast<float>(value));
        }
      }
    }
  }
  return bits;
}

}  // namespace kernel_outputs
