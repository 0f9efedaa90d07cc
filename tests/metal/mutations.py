"""The planted faults of tests/metal/mutate.py: one change each of a kernel's text or of a file of the host's."""

from __future__ import annotations

import dataclasses

# What is run for a mutation of ... The pattern is of pytest's -k; the first test that fails has caught it.
PRODUCTS = "test_op_products.py"
ROWS = "test_op_rows.py"
ATTENTION = "test_op_attention.py"
PASSES = "test_op_passes.py"
DEVICE = "test_op_device.py"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """`old` occurs once in the text of `where`, a kernel library or a file of the host's, and becomes `new`."""

    what: str
    where: str
    old: str
    new: str
    tests: str
    pattern: str = ""


KERNELS = [
    # matvec
    Mutation(
        "rows of a simdgroup swapped",
        "q4_0",
        "sums[r][t] += dot_of<Format>(w, inputs[t])",
        "sums[Format::kRows - 1 - r][t] += dot_of<Format>(w, inputs[t])",
        PRODUCTS,
        "q4_0",
    ),
    Mutation("a lane's pieces: wrong step", "f16", "piece += kSimdgroup", "piece += kSimdgroup + 1", PRODUCTS, "f16"),
    Mutation(
        "rows beyond the last are written",
        "q8_0",
        "first_row + r < args.weight.rows && first_token",
        "first_row + r <= args.weight.rows && first_token",
        PRODUCTS,
        "q8_0",
    ),
    Mutation("tokens beyond the last are written", "f32", "&& first_token + t < args.tokens;", ";", PRODUCTS, "f32"),
    Mutation(
        "tokens' stride is the columns",
        "f32",
        "x + ulong(token) * args.x_stride, columns, piece, inputs[t]",
        "x + ulong(token) * columns, columns, piece, inputs[t]",
        PRODUCTS,
        "f32",
    ),
    Mutation(
        "a row's offset in 32 bits",
        "f16",
        "planes.codes + ulong(row) * of->row_bytes",
        "planes.codes + row * of->row_bytes",
        DEVICE,
        "beyond_4",
    ),
    Mutation(
        "a load of four where nothing is aligned",
        "f32",
        "if (kFours == 2) return",
        "if (kFours >= 1) return",
        PRODUCTS,
        "f32",
    ),
    Mutation(
        "the tail of a row is not cut off",
        "f16",
        "left > 3 ? p[3] : T(0)",
        "p[3]",
        PRODUCTS,
        "f16",
    ),
    # tiles
    Mutation(
        "no barrier after the tiles are filled",
        "q8_0",
        "    threadgroup_barrier(mem_flags::mem_threadgroup);\n\n    if (busy)",
        "\n    if (busy)",
        PRODUCTS,
        "q8_0",
    ),
    Mutation(
        "no barrier before the tiles are filled again",
        "q8_0",
        "    threadgroup_barrier(mem_flags::mem_threadgroup);  // the next step overwrites the tiles",
        "",
        PRODUCTS,
        "q8_0",
    ),
    Mutation(
        "inputs rounded to f16",
        "q4_1",
        "*(threadgroup float4*)(tile_inputs + place_of(token, k)) = four;",
        "*(threadgroup float4*)(tile_inputs + place_of(token, k)) = float4(half4(four));",
        PRODUCTS,
        "q4_1",
    ),
    Mutation("weights are not turned", "f32", "8, ulong2(0, 0), true);", "8, ulong2(0, 0), false);", PRODUCTS, "f32"),
    Mutation(
        "a row too many is stored",
        "f16",
        "token < args.tokens && row < args.weight.rows",
        "token < args.tokens && row <= args.weight.rows",
        PRODUCTS,
        "f16",
    ),
    Mutation(
        "a tile's last columns keep what was there",
        "f32",
        "if (first_piece + piece < pieces) {",
        "if (true) {",
        PRODUCTS,
        "f32",
    ),
    # formats
    Mutation("nibbles swapped", "q4_0", "codes[i] = two & 15;", "codes[i] = two >> 4 & 15;", PRODUCTS, "q4_0"),
    Mutation(
        "the scale of the next block",
        "q8_0",
        "const float d = half_at(block);\n    for",
        "const float d = half_at(block + 34);\n    for",
        PRODUCTS,
        "q8_0",
    ),
    Mutation(
        "the minimum dropped",
        "q4_1",
        "half_at(block), half_at(block + 2), w",
        "half_at(block), 0.0f, w",
        PRODUCTS,
        "q4_1",
    ),
    Mutation(
        "late scales without their high bits",
        "q4_k",
        "(c & 0x0F0F) | (a & 0xC0C0) >> 2",
        "(c & 0x0F0F)",
        PRODUCTS,
        "q4_k",
    ),
    Mutation(
        "the scale of the neighbouring 32",
        "q4_k",
        "d * float(s >> 8), dmin",
        "d * float(s & 255), dmin",
        PRODUCTS,
        "q4_k",
    ),
    Mutation(
        "high bits shifted one too few",
        "q6_k",
        "q[k + 4] = q[k + 4] << 4 |",
        "q[k + 4] = q[k + 4] << 3 |",
        PRODUCTS,
        "q6_k",
    ),
    Mutation(
        "a group's scale one column late",
        "int8_group",
        "min(column + i, of->columns - 1) / kGroup",
        "min(column + i + 1, of->columns - 1) / kGroup",
        PRODUCTS,
        "int8",
    ),
    Mutation("bf16 widened by 15 bits", "bf16", "<< 16", "<< 15", PRODUCTS, "bf16"),
    Mutation(
        "fifth bits of the other half",
        "q5_0",
        "add_fifth_bits(block + 2, piece % 2 * 8, q);",
        "add_fifth_bits(block + 2, 8 - piece % 2 * 8, q);",
        PRODUCTS,
        "q5_0",
    ),
    Mutation(
        "scale and minimum swapped",
        "q5_1",
        "half_at(block), half_at(block + 2), w",
        "half_at(block + 2), half_at(block), w",
        PRODUCTS,
        "q5_1",
    ),
    Mutation(
        "a fifth bit of the neighbouring 32",
        "q5_k",
        "q[i + 8] |= (bits >> 1 & 1) << 4;",
        "q[i + 8] |= (bits & 1) << 4;",
        PRODUCTS,
        "q5_k",
    ),
    Mutation(
        "a scale's high bits of another group",
        "q3_k",
        "(half_block * 4 + group / 4 * 2) & 3;",
        "(half_block * 4 + group / 4) & 3;",
        PRODUCTS,
        "q3_k",
    ),
    Mutation(
        "the minimum added", "q2_k", "d * float(both & 15), -dmin", "d * float(both & 15), dmin", PRODUCTS, "q2_k"
    ),
    Mutation(
        "a zero that is stored less by one", "gptq2", "(stored + kStoredLess)", "(stored)", PRODUCTS, "gptq2 and not v2"
    ),
    Mutation(
        "a value that reaches into the next word",
        "gptq3",
        "value |= word[stride] << (32 - shift);",
        "value |= word[stride] << shift;",
        PRODUCTS,
        "gptq3",
    ),
    Mutation(
        "the group of the piece's first column for all", "gptq4", "i == 0 || !one_group", "i == 0", PRODUCTS, "gptq4"
    ),
    Mutation(
        "zeros of the first group",
        "gptq8",
        "ulong(group) * words, 1, row",
        "ulong(0) * words, 1, row",
        PRODUCTS,
        "gptq8",
    ),
    # embed
    Mutation(
        "columns beyond the row are written",
        "f32",
        "if (column < columns) row[column] = w[k];",
        "row[column] = w[k];",
        PRODUCTS,
        "embed and f32",
    ),
    # rows
    Mutation(
        "no barrier between simdgroups' sums",
        "norm",
        "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  if (thread",
        "  if (thread",
        ROWS,
        "rms_scale",
    ),
    Mutation(
        "eps outside of the root",
        "norm",
        "precise::sqrt(all / float(args.columns) + args.eps)",
        "precise::sqrt(all / float(args.columns)) + args.eps",
        ROWS,
        "rms_scale",
    ),
    Mutation("the gain left out", "norm", "if (kGained != 0) value *= gain;", "", ROWS, "normalize"),
    Mutation(
        "fast reciprocal", "norm", "value *= 1.0f / scale;", "value *= float(half(1.0f / scale));", ROWS, "normalize"
    ),
    Mutation(
        "turned the other way", "rope", "*b = fma(*b, c, before * s);", "*b = fma(*b, c, -(before * s));", ROWS, "rope"
    ),
    Mutation("half-split pairs a place apart", "rope", "a + (kHalfSplit != 0 ? kHalf : 1)", "a + 1", ROWS, "rope"),
    Mutation("a head's width in pairs", "rope", "kHeadDim * head +", "2 * kHalf * head +", ROWS, "rope"),
    Mutation(
        "x squared on both sides of 0",
        "elementwise",
        "return x < 0.0f ? 0.0f : x * x;",
        "return x * x;",
        ROWS,
        "gated or activate",
    ),
    Mutation(
        "tanh's cube left out",
        "elementwise",
        "fma(x * x, 0.0713548163f, 1.59576912f)",
        "1.59576912f",
        ROWS,
        "gated or activate",
    ),
    Mutation(
        "a bias's row with the sum's stride",
        "elementwise",
        "x[row * args.a_stride + c] += bias[c];",
        "x[row * args.a_stride + c] += bias[row * args.a_stride + c];",
        ROWS,
        "bias",
    ),
    Mutation(
        "up is changed where gate is",
        "elementwise",
        "b[at] = gated_product(a[row * args.a_stride + c], b[at]);",
        "b[at] = gated_product(b[at], a[row * args.a_stride + c]);",
        ROWS,
        "gated",
    ),
    Mutation("exp overflows", "elementwise", "precise::exp(-fabs(x))", "precise::exp(-x)", ROWS, "gated"),
    Mutation("a clamp of one side", "elementwise", "up < -7.0f ? -7.0f : up;", "up;", ROWS, "gated"),
    Mutation(
        "a row's stride of another operand",
        "elementwise",
        "a[row * args.a_stride + c] + b[row * args.b_stride + c]",
        "a[row * args.a_stride + c] + b[row * args.a_stride + c]",
        ROWS,
        "add",
    ),
    Mutation(
        "a row further taken",
        "elementwise",
        "const ulong from = rows[group.y];",
        "const ulong from = rows[group.y] + 1;",
        ROWS,
        "take",
    ),
    Mutation("a mean of one simdgroup", "norm", "all += sums[i];\n  const", "all += 0.0f;\n  const", ROWS, "center"),
    Mutation(
        "tanh of what is not divided",
        "elementwise",
        "tanh(x[row * args.x_stride + c] / args.number);\n  }",
        "tanh(x[row * args.x_stride + c]);\n  }",
        ROWS,
        "soft_cap",
    ),
    # attention
    Mutation(
        "a sink that is not in the sum",
        "attention",
        "if (sinks_here) sum += exp_of(sinks[head], largest);",
        "",
        ATTENTION,
        "attention",
    ),
    Mutation(
        "parts that know no sink",
        "attention",
        "float sum = kSinks != 0 ? exp_of(sinks[group.x], largest) : 0.0f;",
        "float sum = 0.0f;",
        ATTENTION,
        "long",
    ),
    Mutation(
        "a cap without its division", "attention", "tanh(score / args.cap)", "tanh(score)", ATTENTION, "attention"
    ),
    Mutation(
        "the causal edge one short",
        "attention",
        "keys.end = args.position + row + 1;",
        "keys.end = args.position + row;",
        ATTENTION,
    ),
    Mutation(
        "the causal edge one far",
        "attention",
        "keys.end = args.position + row + 1;",
        "keys.end = args.position + row + 2;",
        ATTENTION,
    ),
    Mutation(
        "a window one short",
        "attention",
        "keys.end > args.window ? keys.end - args.window : 0",
        "keys.end > args.window ? keys.end - args.window + 1 : 0",
        ATTENTION,
    ),
    Mutation(
        "a window one far",
        "attention",
        "keys.end > args.window ? keys.end - args.window : 0",
        "keys.end > args.window ? keys.end - args.window - 1 : 0",
        ATTENTION,
    ),
    Mutation(
        "the first head of keys for all",
        "attention",
        "return head / (args.heads / args.kv_heads);",
        "return 0;",
        ATTENTION,
    ),
    Mutation(
        "kv heads in turn",
        "attention",
        "return head / (args.heads / args.kv_heads);",
        "return head % args.kv_heads;",
        ATTENTION,
    ),
    Mutation(
        "the largest score is not taken off",
        "attention",
        "precise::exp(score - largest)",
        "precise::exp(score)",
        ATTENTION,
    ),
    Mutation(
        "no barrier after the scores",
        "attention",
        "    if (t.lane == 0) scores[i] = score;\n  }\n  threadgroup_barrier(mem_flags::mem_threadgroup);",
        "    if (t.lane == 0) scores[i] = score;\n  }",
        ATTENTION,
    ),
    Mutation(
        "splits of a key less",
        "attention",
        "mine.end = min(mine.end, mine.begin + kSplit);",
        "mine.end = min(mine.end, mine.begin + kSplit - 1);",
        ATTENTION,
        "long",
    ),
    Mutation(
        "the cache's heads without its context",
        "attention",
        "(ulong(kv_head) * args.context + position)",
        "(ulong(kv_head) + position)",
        ATTENTION,
    ),
    Mutation(
        "masked pattern left as it was",
        "attention",
        "exp_of(scores[i], largest) / sum : 0.0f;",
        "exp_of(scores[i], largest) / sum : pattern[i];",
        ATTENTION,
    ),
]

HOST = [
    Mutation("no wait", "pass.cpp", "  while (!running_.empty()) await_oldest();\n}", "}", PASSES),
    Mutation(
        "what is committed is not waited for before it is dropped",
        "pass.cpp",
        "      buffer->waitUntilCompleted();",
        "",
        DEVICE,
    ),
    Mutation(
        "an encoder that is not ended",
        "pass.cpp",
        "  encoder_->endEncoding();\n  encoder_.reset();\n  open_->commit();",
        "  encoder_.reset();\n  open_->commit();",
        PASSES,
    ),
    Mutation(
        "an error that nobody looks at",
        "pass.cpp",
        "oldest->status() != MTL::CommandBufferStatusError",
        "oldest->status() != MTL::CommandBufferStatusError || true",
        DEVICE,
    ),
    Mutation("a queue that has failed goes on", "pass.cpp", "  device_.renew_queue();\n", "", DEVICE),
    Mutation(
        "a binding left out",
        "pass.cpp",
        "      encoder_->setBuffer(operand.place.buffer, operand.place.offset, index);",
        "      if (index != 1) encoder_->setBuffer(operand.place.buffer, operand.place.offset, index);",
        ROWS,
        "add",
    ),
    Mutation(
        "offsets left out",
        "pass.cpp",
        "operand.place.buffer, operand.place.offset, index",
        "operand.place.buffer, 0, index",
        ROWS,
        "add",
    ),
    Mutation(
        "arguments cut short",
        "pass.cpp",
        "encoder_->setBytes(args, args_bytes, index);",
        "encoder_->setBytes(args, args_bytes - 4, index);",
        ROWS,
        "add",
    ),
    Mutation(
        "work of a long pass is not committed in portions", "pass.cpp", "if (seconds_ >= kPortion) flush();", "", DEVICE
    ),
    Mutation(
        "another function constant",
        "device.cpp",
        "NS::UInteger{constant.index}",
        "NS::UInteger{constant.index + 1}",
        ROWS,
    ),
    Mutation(
        "kernels kept without their constants",
        "device.cpp",
        'key.append(" ").append(std::to_string(constant.index)).append("=").append(std::to_string(constant.value));',
        "",
        ROWS,
        "rope",
    ),
    Mutation(
        "fast math",
        "device.cpp",
        "options.setMathMode(MTL::MathModeSafe);",
        "options.setMathMode(MTL::MathModeFast);",
        ROWS,
        "add",
    ),
    Mutation(
        "a fork may go on", "device.cpp", "  if (!forked()) return;\n  throw", "  if (true) return;\n  throw", DEVICE
    ),
    Mutation("memory that is gone stays in the map", "memory_map.cpp", "    state->made.erase(found);\n", "", DEVICE),
    Mutation("memory that was not zeroed", "memory_map.cpp", "  std::memset(data, 0, length);\n", "", DEVICE),
    Mutation(
        "weights that are gone stay", "memory_map.cpp", "      entry = weights->erase(entry);", "      ++entry;", DEVICE
    ),
    Mutation(
        "an old copy where new weights lie",
        "memory_map.cpp",
        "if (!found.owner.expired()) return found;",
        "if (!found.views.empty()) return found;",
        DEVICE,
    ),
    Mutation(
        "a file's views without overlap",
        "memory_map.cpp",
        "owner.size() <= largest / page * page ? 0 : begin / page * page",
        "0",
        DEVICE,
    ),
    Mutation(
        "a file's length is not rounded up to pages",
        "memory_map.cpp",
        "(owner.size() - first + page - 1) / page * page",
        "(owner.size() - first)",
        DEVICE,
    ),
    Mutation(
        "badly aligned weights where they lie",
        "products.cpp",
        "row_bytes(*weight.format, weight.cols), bound.facts->bytes)",
        "row_bytes(*weight.format, weight.cols), 1)",
        PRODUCTS,
        "f16",
    ),
    Mutation("no pool", "metal_backend.cpp", "    pool_.emplace();\n", "", ROWS, "add"),
    Mutation("work begun before an error goes on", "metal_backend.cpp", "      tools_.pass.drop();\n", "", DEVICE),
    Mutation(
        "an input that is the output is two arguments",
        "metal_backend.cpp",
        "    const bool in_a = same(out, a);",
        "    const bool in_a = false;",
        ROWS,
        "add",
    ),
    Mutation(
        "ids beyond 1024 of the first 1024",
        "products.cpp",
        "tokens.subspan(first,",
        "tokens.subspan(0,",
        PRODUCTS,
        "more_ids",
    ),
    Mutation(
        "the norm on the way in without its gain", "tools.cpp", "{1, norm.gain ? 1U : 0U}", "{1, 0U}", PRODUCTS, "f32"
    ),
    Mutation(
        "a span's rows from the first row on",
        "attention.cpp",
        "k.slice(span.row, span.count)",
        "k.slice(0, span.count)",
        ATTENTION,
        "store_kv",
    ),
]
