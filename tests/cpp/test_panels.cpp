// Packing of every format against the layout written out bit by bit, and weights read back from their panels.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string_view>
#include <vector>

#include "backend/cpu/panels.h"
#include "core/half.h"
#include "format/panel_formats.h"
#include "format/unit_row.h"
#include "kernel_inputs.h"

namespace {

using llama2cpp::BlockLayout;
using llama2cpp::Format;
using llama2cpp::PanelForm;
using llama2cpp::Weight;
using Bytes = std::vector<std::uint8_t>;

// Where the blocks of GGUF's formats have their f16 fields.
const std::map<std::string_view, std::vector<std::size_t>>& halves() {
  static const std::map<std::string_view, std::vector<std::size_t>> all = {
      {"q8_0", {0}},      {"q4_0", {0}},   {"q4_1", {0, 2}}, {"q5_0", {0}},    {"q5_1", {0, 2}},
      {"q2_k", {80, 82}}, {"q3_k", {108}}, {"q4_k", {0, 2}}, {"q5_k", {0, 2}}, {"q6_k", {208}},
      {"iq4_nl", {0}},    {"iq4_xs", {0}}, {"mxfp4", {}},
  };
  return all;
}

// No NaN and no infinity: which of them a half is, conversions may change.
void make_finite(std::byte* half) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, half, 2);
  bits &= 0xBFFFU;
  std::memcpy(half, &bits, 2);
}

llama2cpp::Plane random_plane(std::int64_t bytes, std::int64_t row_bytes, std::uint64_t seed) {
  kernel_outputs::Random random(seed);
  llama2cpp::Buffer memory = llama2cpp::Buffer::heap(static_cast<std::size_t>(bytes));
  for (std::int64_t i = 0; i < bytes; ++i) memory.data()[i] = static_cast<std::byte>(random.next());
  return {memory.data(), memory.size(), row_bytes, memory};
}

// Random bytes in all planes.
Weight random_weight(const Format& format, std::int64_t rows, std::int64_t cols, std::int64_t group, bool ordered) {
  Weight w;
  w.format = &format;
  w.rows = rows;
  w.cols = cols;
  w.group = format.group > 0 ? format.group : group;
  const auto seed = static_cast<std::uint64_t>(rows * 1000 + cols);
  if (format.group > 0) {
    const std::int64_t row_bytes = cols / format.group * format.group_bytes;
    w.planes[0] = random_plane(rows * row_bytes, row_bytes, seed);
    std::byte* const data = w.planes[0].owner.data();
    if (format.group_bytes <= 8 && format.group == 1) {  // floats: their highest byte ends them
      for (std::int64_t i = format.group_bytes - 1; i < rows * row_bytes; i += format.group_bytes) {
        data[i] &= std::byte{0xBF};
      }
      return w;
    }
    for (std::int64_t block = 0; block < rows * row_bytes / format.group_bytes; ++block) {
      if (format.name == "mxfp4") {  // a power of two that panels hold
        std::byte& power = data[block * format.group_bytes];
        power = static_cast<std::byte>(104 + static_cast<int>(power) % 40);
      }
      for (const std::size_t at : halves().at(format.name)) {
        make_finite(data + block * format.group_bytes + at);
      }
    }
    return w;
  }
  if (format.integers == nullptr) {  // llama2.c's int8
    w.int8_input = true;
    w.planes[0] = random_plane(rows * cols, cols, seed);
    w.planes[1] = random_plane(rows * cols / group * 4, cols / group * 4, seed + 1);
    for (std::int64_t i = 3; i < rows * cols / group * 4; i += 4) w.planes[1].owner.data()[i] &= std::byte{0xBF};
    return w;
  }
  const int bits = format.blocks.bits;
  const std::int64_t groups = (cols - 1) / group + 1;
  w.planes[0] = random_plane(cols * bits / 8 * rows, 0, seed);
  w.planes[1] = random_plane(groups * rows * 2, 0, seed + 1);
  w.planes[2] = random_plane(groups * rows * bits / 8, 0, seed + 2);
  for (std::int64_t i = 0; i < groups * rows; ++i) make_finite(w.planes[1].owner.data() + 2 * i);
  if (ordered) {  // column k is the one at place 5 k + 3
    w.order = llama2cpp::Buffer::heap(static_cast<std::size_t>(cols) * 4);
    auto* const order = reinterpret_cast<std::int32_t*>(w.order.data());
    auto groups_of = llama2cpp::Buffer::heap(static_cast<std::size_t>(cols) * 4);
    auto* const group_of = reinterpret_cast<std::int32_t*>(groups_of.data());
    for (std::int64_t k = 0; k < cols; ++k) {
      order[k] = static_cast<std::int32_t>((5 * k + 3) % cols);
      group_of[order[k]] = static_cast<std::int32_t>(k / group);
    }
    w.planes[3] = {groups_of.data(), groups_of.size(), 0, groups_of};
  }
  return w;
}

void put(Bytes& out, std::int64_t at, const void* from, std::size_t count) {
  std::memcpy(out.data() + at, from, count);
}

// One row of a panel of blocks, as block_layout.h says.
void put_row(const Weight& w, std::int64_t row, std::int64_t lane, Bytes& out) {
  const BlockLayout layout = llama2cpp::layout_of(w);
  std::int64_t unit = 0;  // where it begins
  for (std::int64_t first = 0; first < w.cols / 32; first += 8) {
    const std::int64_t blocks = std::min<std::int64_t>(8, w.cols / 32 - first);
    const std::int64_t header = llama2cpp::header_bytes(layout, blocks);
    for (std::int64_t i = 0; i < blocks; ++i) {
      llama2cpp::IntegerBlock b;
      w.format->integers(w, row, first + i, b);
      const std::uint16_t d = llama2cpp::float_to_half(b.d);
      const std::uint16_t dm = llama2cpp::float_to_half(b.dm);
      const int fields = layout.minimum ? 2 : 1;
      std::int64_t scales = unit + (layout.sub_scales ? 0 : i * fields * 32);
      if (layout.zeros) scales = unit + (i >> layout.share) * 48;
      put(out, scales + lane * 2, &d, 2);
      if (layout.minimum) put(out, scales + 32 + lane * 2, &dm, 2);
      if (layout.zeros) out[static_cast<std::size_t>(scales + 32 + lane)] = static_cast<std::uint8_t>(b.zero);
      for (int h = 0; layout.sub_scales && h < layout.halves; ++h) {
        const std::int64_t sub = unit + fields * 32 + (i * fields * layout.halves + h) * 16 + lane;
        const auto half = static_cast<std::size_t>(h);
        out[static_cast<std::size_t>(sub)] = static_cast<std::uint8_t>(b.sub[half]);
        if (!layout.minimum) continue;
        out[static_cast<std::size_t>(sub + layout.halves * 16)] = static_cast<std::uint8_t>(b.m[half]);
      }
      std::int64_t plane = unit + header + i * layout.bits * 64;
      int from = 0;
      for (int width = 8; width >= 1; width /= 2) {
        if ((layout.bits & width) == 0) continue;
        for (std::int64_t k = 0; k < 32; ++k) {
          const int code = (b.q[static_cast<std::size_t>(k)] + layout.offset) >> from & ((1 << width) - 1);
          const std::int64_t at = plane + (k / 4 * width / 8 * 16 + lane) * 4 + k % 4;
          out[static_cast<std::size_t>(at)] |= static_cast<std::uint8_t>(code << k / 4 * width % 8);
        }
        from += width;
        plane += width * 64;
      }
    }
    unit += llama2cpp::unit_bytes(layout, blocks);
  }
}

template <class T>
void put_floats(const Weight& w, std::int64_t row, std::int64_t lane, Bytes& out) {
  std::vector<float> values(static_cast<std::size_t>(w.cols));
  w.decode_row(row, values.data());
  for (std::int64_t k = 0; k < w.cols; ++k) {
    T value{};
    if constexpr (sizeof(T) == 4) {
      value = values[static_cast<std::size_t>(k)];
    } else {
      std::memcpy(&value, w.planes[0].data + row * w.planes[0].row_bytes + k * 2, 2);
    }
    put(out, (k * 16 + lane) * static_cast<std::int64_t>(sizeof(T)), &value, sizeof(T));
  }
}

void put_int8(const Weight& w, std::int64_t row, std::int64_t lane, Bytes& out) {
  const std::int64_t bytes = llama2cpp::group_bytes(w.group);
  for (std::int64_t k = 0; k < w.cols; ++k) {
    const std::int64_t in_group = k % w.group;
    const auto value = static_cast<std::uint8_t>(w.planes[0].data[row * w.cols + k]);
    const std::int64_t at = k / w.group * bytes + (in_group / 4 * 16 + lane) * 4 + in_group % 4;
    out[static_cast<std::size_t>(at)] = value ^ 128U;
    const std::byte* const scale = w.planes[1].data + row * w.planes[1].row_bytes + k / w.group * 4;
    put(out, (k / w.group + 1) * bytes - 64 + lane * 4, scale, 4);
  }
}

Bytes plain_panel(const Weight& w, std::int64_t panel) {
  Bytes out(static_cast<std::size_t>(llama2cpp::panel_bytes(w, w.cols)));
  const PanelForm form = llama2cpp::panel_form(w);
  if (form == PanelForm::int8_group) {  // nothing is 128 there, in scales 0
    const std::int64_t bytes = llama2cpp::group_bytes(w.group);
    for (std::int64_t g = 0; g < w.cols / w.group; ++g) {
      std::fill_n(out.begin() + g * bytes, bytes - 64, std::uint8_t{128});
    }
  }
  for (std::int64_t lane = 0; lane < 16 && panel * 16 + lane < w.rows; ++lane) {
    const std::int64_t row = panel * 16 + lane;
    if (form == PanelForm::blocks) put_row(w, row, lane, out);
    if (form == PanelForm::f32) put_floats<float>(w, row, lane, out);
    if (form == PanelForm::f16 || form == PanelForm::bf16) put_floats<std::uint16_t>(w, row, lane, out);
    if (form == PanelForm::int8_group) put_int8(w, row, lane, out);
  }
  return out;
}

Bytes packed(const Weight& w) {
  const std::int64_t bytes = llama2cpp::panel_bytes(w, w.cols);
  Bytes out(static_cast<std::size_t>(llama2cpp::panel_count(w) * bytes), 0xEE);
  const std::int64_t step = llama2cpp::panel_form(w) == PanelForm::int8_group ? 2 * w.group : 256;
  for (std::int64_t panel = 0; panel < llama2cpp::panel_count(w); ++panel) {
    for (std::int64_t k = 0; k < w.cols; k += step) {
      auto* const to = reinterpret_cast<std::byte*>(out.data()) + panel * bytes + llama2cpp::panel_bytes(w, k);
      llama2cpp::pack_panel(w, panel, k, std::min(step, w.cols - k), to);
    }
  }
  return out;
}

std::vector<Weight> weights() {
  std::vector<Weight> all;
  for (const Format* format : llama2cpp::all_formats()) {
    if (format->group == 256) {
      for (const std::int64_t rows : {1, 16, 37}) all.push_back(random_weight(*format, rows, 512, 0, false));
    } else if (format->group > 0) {
      for (const std::int64_t cols : {32, 352}) {
        for (const std::int64_t rows : {3, 32, 37}) all.push_back(random_weight(*format, rows, cols, 0, false));
      }
      if (format->group == 1) all.push_back(random_weight(*format, 21, 301, 0, false));
    } else if (format->blocks.zeros) {
      for (const std::int64_t group : {32, 64, 128, 352}) {
        for (const bool ordered : {false, true}) all.push_back(random_weight(*format, 64, 352, group, ordered));
      }
      all.push_back(random_weight(*format, 32, 96, 16, false));  // no blocks: floats
    } else if (format->name == "int8_group") {
      for (const std::int64_t group : {1, 2, 6, 32}) all.push_back(random_weight(*format, 37, 192, group, false));
    }
  }
  return all;
}

}  // namespace

TEST_CASE("panels are what their layout says, bit by bit") {
  const std::vector<Weight> all = weights();
  CHECK(all.size() >= 80);
  for (const Weight& w : all) {
    CAPTURE(w.format->name);
    CAPTURE(w.rows);
    CAPTURE(w.cols);
    CAPTURE(w.group);
    const Bytes found = packed(w);
    Bytes wanted;
    for (std::int64_t panel = 0; panel < llama2cpp::panel_count(w); ++panel) {
      const Bytes one = plain_panel(w, panel);
      wanted.insert(wanted.end(), one.begin(), one.end());
    }
    CHECK(found == wanted);
  }
}

TEST_CASE("the faster way to a unit gives what integers give") {
  int compared = 0;
  for (const Weight& w : weights()) {
    if (w.format->units == nullptr || !llama2cpp::in_blocks(w)) continue;
    const llama2cpp::BlockFacts& facts = w.format->blocks;
    for (std::int64_t block = 0; block < w.cols / 32; block += 8) {
      const auto count = static_cast<std::size_t>(std::min<std::int64_t>(8, w.cols / 32 - block));
      std::vector<llama2cpp::UnitRow> fast(16);
      std::vector<llama2cpp::UnitRow> plain(16);
      const std::int64_t rows = std::min<std::int64_t>(16, w.rows);
      w.format->units(w, 0, rows, block, static_cast<std::int64_t>(count), fast.data());
      llama2cpp::units_of_integers(w, 0, rows, block, static_cast<std::int64_t>(count), plain.data());
      for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r, ++compared) {
        CAPTURE(w.format->name);
        const auto same = [&](const auto& a, const auto& b, std::size_t n) {
          return std::equal(&a[0], &a[0] + n, &b[0]);
        };
        const std::size_t subs = facts.sub_scales ? count * static_cast<std::size_t>(facts.halves) : 0;
        CHECK(same(fast[r].codes, plain[r].codes, count * 32));
        CHECK(same(fast[r].d, plain[r].d, facts.sub_scales ? 1 : count));
        CHECK((!facts.minimum || same(fast[r].dm, plain[r].dm, facts.sub_scales ? 1 : count)));
        CHECK((!facts.zeros || same(fast[r].zero, plain[r].zero, count)));
        CHECK(same(fast[r].sub, plain[r].sub, subs));
        CHECK((!facts.minimum || same(fast[r].m, plain[r].m, subs)));
      }
    }
  }
  CHECK(compared > 500);
}

TEST_CASE("a weight in panels has the values that it had") {
  for (const Weight& w : weights()) {
    CAPTURE(w.format->name);
    CAPTURE(w.cols);
    CAPTURE(w.group);
    Weight stored;
    stored.name = w.name;
    stored.rows = w.rows;
    stored.cols = w.cols;
    stored.group = w.group;
    stored.format = llama2cpp::in_panels(*w.format, llama2cpp::stored_form(w));
    REQUIRE(stored.format != nullptr);
    CHECK(stored.format->name == w.format->name);
    if (stored.format->form == PanelForm::blocks) stored.order = w.order;
    const Bytes panels = packed(w);
    CHECK(llama2cpp::stored_bytes(stored) == panels.size());
    stored.planes[0].data = reinterpret_cast<const std::byte*>(panels.data());
    stored.planes[0].bytes = panels.size();
    CHECK(llama2cpp::in_blocks(stored) == llama2cpp::in_blocks(w));
    std::vector<float> before(static_cast<std::size_t>(w.cols));
    std::vector<float> after(before.size());
    for (std::int64_t row = 0; row < w.rows; ++row) {
      w.decode_row(row, before.data());
      stored.decode_row(row, after.data());
      CHECK(std::memcmp(before.data(), after.data(), before.size() * 4) == 0);
      if (w.cols < 64 || w.cols % 32 != 0 || w.format->group == 256) continue;
      w.format->decode(w, row, 32, 32, before.data());  // and part of a row; groups of int8 need not fill it
      stored.format->decode(stored, row, 32, 32, after.data());
      CHECK(std::memcmp(before.data(), after.data(), 32 * 4) == 0);
    }
    // Packed once more, from there, they are the same bytes.
    stored.int8_input = w.int8_input;
    const bool halves = stored.format->form == PanelForm::f16 || stored.format->form == PanelForm::bf16;
    if (!halves && stored.format->form != PanelForm::int8_group) CHECK(packed(stored) == panels);
  }
}
