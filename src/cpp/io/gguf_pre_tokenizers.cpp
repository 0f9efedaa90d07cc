#include "io/gguf_pre_tokenizers.h"

#include <algorithm>

namespace llama2cpp {

// Those of llama.cpp, but for names whose words are not spelled in bytes (gemma4, sarvam-moe, whitespace), of models that are
// no language models (jina-v1-en, jina-v2-code, roberta-bpe, mmbert, granite-embed-multi-*), and of cuts that
// pattern_syntax.h has no words for: scripts (kimi-k2), and lookahead for more than one character (superbpe, tiny_aya,
// cohere2moe, afmoe).
std::span<const GgufPreTokenizer> gguf_pre_tokenizers() {
  using enum PreTokenizer;
  static const std::vector<GgufPreTokenizer> all = {
      {{"default"}, ggml_default, false, false},
      {{"gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum",
        "modern-bert", "exaone4", "olmo", "mpt", "jais", "trillion", "granite-docling"},
       gpt2,
       false,
       false},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"},
       llama3,
       true,
       true},
      {{"glm4", "glm5"}, llama3, true, false},
      {{"smaug-bpe", "dbrx", "chatglm-bpe"}, llama3, false, false},
      {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"},
       smollm,
       false,
       false},
      {{"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"},
       qwen2,
       false,
       false},
      {{"qwen35"}, qwen35, false, false},
      {{"seed-coder"}, seed_coder, false, false},
      {{"tekken"}, tekken, true, true},
      {{"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"}, o200k, false, false},
      {{"deepseek-llm"}, deepseek_llm, false, false},
      {{"deepseek-coder"}, deepseek_coder, false, false},
      {{"deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"}, deepseek_v3, false, false},
      {{"falcon"}, falcon, false, false},
      {{"bloom", "poro-chat", "gpt3-finnish"}, bloom, false, false},
      {{"viking"}, viking, false, false},
      {{"chameleon"}, chameleon, false, true},
      {{"bailingmoe", "bailingmoe2", "llada-moe"}, bailing, false, false},
      {{"exaone-moe"}, exaone_moe, false, false},
      {{"jais-2"}, jais2, false, false},
      {{"youtu"}, youtu, true, false},
      {{"laguna"}, laguna, false, false},
      {{"minicpm5"}, minicpm5, true, false},
      {{"ufakzeka"}, ufakzeka, false, false},
      {{"spark2_5"}, spark, false, false},
  };
  return all;
}

const GgufPreTokenizer* find_gguf_pre_tokenizer(std::string_view name) {
  for (const GgufPreTokenizer& pre : gguf_pre_tokenizers()) {
    if (std::find(pre.names.begin(), pre.names.end(), name) != pre.names.end()) return &pre;
  }
  return nullptr;
}

}  // namespace llama2cpp
