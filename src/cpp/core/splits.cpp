#include "core/splits.h"

#include <algorithm>

namespace llama2cpp {
namespace {

// As tokenizer.json files have them, or llama.cpp where a GGUF names them. What is not ASCII is written in octal bytes.

constexpr std::string_view kGpt2[] = {
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
};
constexpr std::string_view kLlama3[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)",
};
constexpr std::string_view kSmollm[] = {
    R"(\p{N})",
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
};
constexpr std::string_view kGgmlDefault[] = {
    R"([\p{P}\$\+<=>\^~\|]+)",
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))",
    R"(\p{N}+)",
    R"([0-9][0-9][0-9])",
};
constexpr std::string_view kQwen2[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+)"
    R"(|\s+(?!\S)|\s+)",
};
constexpr std::string_view kSeedCoder[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+)"
    R"(|\s+(?!\S)|\s+)",
};
constexpr std::string_view kTekken[] = {
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
};
constexpr std::string_view kDeepseekCoder[] = {
    "[\r\n]",       R"(\s?\p{L}+)",
    R"(\s?\p{P}+)", "[\344\270\200-\351\276\245\340\240\200-\344\270\200\352\260\200-\355\237\277]+",
    R"(\p{N})",
};
constexpr std::string_view kDeepseekLlm[] = {
    "[\r\n]",
    "\\s?[A-Za-z\302\265\303\200-\303\226\303\230-\303\266\303\270-\306\272\306\274-\306\277\307\204-"
    "\312\223\312\225-\312\257\315\260-\315\263\315\266\315\267\315\273-\315\275\315\277\316\206"
    "\316\210-\316\212\316\214\316\216-\316\241\316\243-\317\265\317\267-\322\201\322\212-\324\257"
    "\324\261-\325\226\341\202\240-\341\203\205\341\216\240-\341\217\265\341\217\270-\341\217\275"
    "\341\262\220-\341\262\272\341\262\275-\341\262\277\341\264\200-\341\264\253\341\265\253-"
    "\341\265\267\341\265\271-\341\266\232\341\270\200-\341\274\225\341\274\230-\341\274\235"
    "\341\274\240-\341\275\205\341\275\210-\341\275\215\341\275\220-\341\275\227\341\275\231"
    "\341\275\233\341\275\235\341\275\237-\341\275\275\341\276\200-\341\276\264\341\276\266-"
    "\341\276\274\341\276\276\341\277\202-\341\277\204\341\277\206-\341\277\214\341\277\220-"
    "\341\277\223\341\277\226-\341\277\233\341\277\240-\341\277\254\341\277\262-\341\277\264"
    "\341\277\266-\341\277\274\342\204\202\342\204\207\342\204\212-\342\204\223\342\204\225"
    "\342\204\231-\342\204\235\342\204\244\342\204\246\342\204\250\342\204\252-\342\204\255"
    "\342\204\257-\342\204\264\342\204\271\342\204\274-\342\204\277\342\205\205-\342\205\211"
    "\342\205\216\342\206\203\342\206\204\342\260\200-\342\261\273\342\261\276-\342\263\244"
    "\342\263\253-\342\263\256\342\263\262\342\263\263\352\231\200-\352\231\255\352\232\200-"
    "\352\232\233\352\234\242-\352\235\257\352\235\261-\352\236\207\352\236\213-\352\236\216"
    "\352\255\260-\352\256\277\357\254\200-\357\254\206\357\254\223-\357\254\227\357\274\241-"
    "\357\274\272\357\275\201-\357\275\232\360\220\220\200-\360\220\221\217\360\220\222\260-"
    "\360\220\223\223\360\220\223\230-\360\220\223\273\360\220\262\200-\360\220\262\262"
    "\360\220\263\200-\360\220\263\262\360\221\242\240-\360\221\243\237\360\236\244\200-"
    "\360\236\245\203]+",
    "\\s?[!-/:-~\357\274\201-\357\274\217\357\274\232-\357\275\236\342\200\230-\342\200\237"
    "\343\200\200-\343\200\202]+",
    R"(\s+$)",
    "[\344\270\200-\351\276\245\340\240\200-\344\270\200\352\260\200-\355\237\277]+",
    R"(\p{N}+)",
};
constexpr std::string_view kDeepseekV3[] = {
    R"(\p{N}{1,3})",
    "[\344\270\200-\351\276\245\343\201\200-\343\202\237\343\202\240-\343\203\277]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
};
constexpr std::string_view kQwen35[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N})"
    R"(| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
};
constexpr std::string_view kO200k[] = {
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m)"
    R"(|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t)"
    R"(|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
};
constexpr std::string_view kFalcon[] = {
    R"([\p{P}\$\+<=>\^~\|`]+)",
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))",
    R"([0-9][0-9][0-9])",
};
constexpr std::string_view kBloom[] = {
    " ?[^(\\s|.,!?\342\200\246\343\200\202\357\274\214\343\200\201\340\245\244\333\224\330\214)]+",
};
constexpr std::string_view kViking[] = {
    " ?[^(\\s|.,!?\342\200\246\343\200\202\357\274\214\343\200\201\340\245\244\333\224\330\214)]+",
    R"(\p{N})",
};
constexpr std::string_view kChameleon[] = {
    R"(<sentinel:[0-9]+>)",    R"((IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z)",
    R"(([\t\n]|    |  ))",     R"(\p{N})",
    R"([\p{P}!-/:-@\[-`{-~])", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))",
};
constexpr std::string_view kBailing[] = {
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n])"
    R"(|\s+(?!\S)|\s+)",
};
constexpr std::string_view kExaoneMoe[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+)",
};
constexpr std::string_view kJais2[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S))"
    R"(|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1})",
};
constexpr std::string_view kYoutu[] = {
    "[\352\260\200-\355\236\243\343\204\261-\343\206\216]+|[\357\274\201\342\200\246\342\200\234"
    "\342\200\235\342\200\230\342\200\231\342\200\224\357\274\232\357\274\233\357\274\214\343\200\201"
    "-\343\200\277\357\270\260-\357\271\217]+|[\343\204\205-\343\204\257]+|[\344\270\200-\351\276\245"
    "\343\201\200-\343\202\237\343\202\240-\343\203\277]+",
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m)"
    R"(|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t)"
    R"(|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
};
constexpr std::string_view kLaguna[] = {
    R"([^\n]+|[\n]+)",
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+)"
    R"(|\s+(?!\S)|\s+)",
};
constexpr std::string_view kMinicpm5[] = {
    R"(\p{N}{1,3})",
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)",
};
constexpr std::string_view kUfakzeka[] = {
    R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
};
constexpr std::string_view kSpark[] = {
    R"(\p{N}{1,3})",
    "[\344\270\200-\351\276\245\343\201\200-\343\202\237\343\202\240-\343\203\277]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+|[\r\n]|\\s+(?!\\S)|\\s+",
    R"(\p{N})",
};

}  // namespace

std::span<const std::string_view> patterns_of(PreTokenizer cut) {
  switch (cut) {
    case PreTokenizer::gpt2:
      return kGpt2;
    case PreTokenizer::llama3:
      return kLlama3;
    case PreTokenizer::smollm:
      return kSmollm;
    case PreTokenizer::ggml_default:
      return kGgmlDefault;
    case PreTokenizer::qwen2:
      return kQwen2;
    case PreTokenizer::seed_coder:
      return kSeedCoder;
    case PreTokenizer::tekken:
      return kTekken;
    case PreTokenizer::deepseek_coder:
      return kDeepseekCoder;
    case PreTokenizer::deepseek_llm:
      return kDeepseekLlm;
    case PreTokenizer::deepseek_v3:
      return kDeepseekV3;
    case PreTokenizer::qwen35:
      return kQwen35;
    case PreTokenizer::o200k:
      return kO200k;
    case PreTokenizer::falcon:
      return kFalcon;
    case PreTokenizer::bloom:
      return kBloom;
    case PreTokenizer::viking:
      return kViking;
    case PreTokenizer::chameleon:
      return kChameleon;
    case PreTokenizer::bailing:
      return kBailing;
    case PreTokenizer::exaone_moe:
      return kExaoneMoe;
    case PreTokenizer::jais2:
      return kJais2;
    case PreTokenizer::youtu:
      return kYoutu;
    case PreTokenizer::laguna:
      return kLaguna;
    case PreTokenizer::minicpm5:
      return kMinicpm5;
    case PreTokenizer::ufakzeka:
      return kUfakzeka;
    case PreTokenizer::spark:
      return kSpark;
    case PreTokenizer::splits:
      break;
  }
  return {};
}

PreTokenizer cut_of(std::span<const Split> splits) {
  for (std::size_t i = 0; i < kEnumNames<PreTokenizer>.size(); ++i) {
    const auto cut = static_cast<PreTokenizer>(i);
    const std::span<const std::string_view> patterns = patterns_of(cut);
    if (cut != PreTokenizer::splits && std::equal(splits.begin(), splits.end(), patterns.begin(), patterns.end(),
                                                  [](const Split& split, std::string_view pattern) {
                                                    return split.pattern == pattern &&
                                                           split.behavior == SplitBehavior::isolated && !split.invert;
                                                  })) {
      return cut;
    }
  }
  return PreTokenizer::splits;
}

}  // namespace llama2cpp
