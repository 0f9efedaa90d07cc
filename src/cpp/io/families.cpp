// The rows.
#include "io/families.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/names.h"

namespace llama2cpp {
namespace {

constexpr Switch kSwitches[] = {
    {"attention_bias", "", 0},
    {"attention_out_bias", "", 0},
    {"mlp_bias", "", 0},
    {"use_bias", "", 0},
    {"rope_interleaved", "", 0},
    {"use_qk_norm", "", 0},
    {"qk_layernorm", "", 0},
    {"use_qkv_bias", "", 0},
    {"qkv_bias", "", 0},
    {"bias", "", 0},
    {"use_bidirectional_attention", "", 0},
    {"qk_norm", "", 0},
    {kScoreCap, kScoreCap, 0},
    {kLogitsCap, kLogitsCap, 0},
    {"embedding_multiplier", "embedding_scale", 1, "multipliers"},
    {"residual_multiplier", "residual_scale", 1, "multipliers"},
    {"logits_scaling", "logit_scale", 1, "multipliers"},
    {"logit_scale", "", 1},
    {"clip_qkv", "attention.clamp_kqv", 0},
    {"swiglu_limit", "", 7},  // of clamped_swiglu
    {"swiglu_alpha", "", 1.702},
    {"num_experts", "expert_count", 0, "experts"},
    {"num_local_experts", "", 0, "experts"},
    {"decoder_sparse_step", "", 1},
    {"mlp_only_layers", "", -1},  // numbers of layers
    // Experts that are routed otherwise, or that are not routed.
    {"n_group", "", 1},
    {"topk_group", "", 1},
    {"num_expert_group", "", 1},
    {"routed_scaling_factor", "", 1},
    {"moe_routed_scaling_factor", "", 1},
    {"route_scale", "", 1},
    {"router_scaling_factor", "", 1},
    {"n_shared_experts", "", 0},
    {"num_shared_experts", "", 0},
    {"moe_num_shared_experts", "", 0},
    {"shared_intermediate_size", "", 0},
    {"first_k_dense_replace", "", 0},
    {"interleave_moe_layer_step", "", 1},
    {"moe_layer_interval", "", 1},
    {"moe_router_logit_softcapping", "", 0},
    // Multipliers and caps by other names.
    {"attention_in_multiplier", "", 1},
    {"attention_out_multiplier", "", 1},
    {"attention_value_scale", "", 1},
    {"key_multiplier", "", 1},
    {"lm_head_multiplier", "", 1},
    {"mlp_multipliers", "", 1},
    {"scale_emb", "", 1},
    {"scale_attn_weights", "", 1},
    {"scale_attn_by_inverse_layer_idx", "", 0},
    {"logits_soft_cap", "", 0},
    {"output_logit_soft_cap", "", 0},
    // Attention of another kind.
    {"alibi", "", 0},
    {"attention_chunk_size", "", 0},
    {"attn_temperature_tuning", "", 0},
    {"compression_ratio", "", 1},  // of positions
    {"num_kv_shared_layers", "", 0},
    {"use_attention_gate", "", 0},
    {"use_cla", "", 0},
    {"is_encoder_decoder", "", 0},
    {"add_cross_attention", "", 0},
    {"", "expert_shared_count", 0},
    {"use_parallel_residual", "use_parallel_residual", 0},
    {"no_rope_layers", "", 1},  // a number for each layer
    {"", "attention.causal", 1},
    {"", "attention.max_alibi_bias", 0},
    {"", "attention.scale", 0, "multipliers"},  // llama.cpp: 0 is 1 / sqrt(head_dim)
    {"", "attention.output_scale", 1},
    {"", "attention.temperature_scale", 0},
    {"", "rope.scaling.yarn_log_multiplier", 0},
    {"", "rope.scaling.yarn_ext_factor", 1},
    {"", "rope.scaling.yarn_attn_factor", 1},
    {"", "pooling_type", 0},
};
// pretraining_tp is not among them: it splits products into parts that are summed afterwards, as they were in training,
// and only rounding tells the difference.

constexpr Part kInputBiases[] = {Part::bq, Part::bk, Part::bv};
constexpr Part kAttentionInputs[] = {Part::wq, Part::wk, Part::wv};
constexpr Part kMlpInputs[] = {Part::w1, Part::w3};
constexpr Fused kFused[] = {
    {"self_attn.qkv_proj", "attn_qkv", kAttentionInputs},
    {"mlp.gate_up_proj", facts(Part::w3).gguf, kMlpInputs},
};

constexpr Part kOssParts[] = {Part::sinks, Part::router_b, Part::e1_b, Part::e2_b, Part::e3_b};

constexpr Fused kFusedMlp[] = {{"mlp.gate_up_proj", facts(Part::w3).gguf, kMlpInputs}};

// Names of norms: post_attention_layernorm is the MLP's own in a Llama, and attention's second where it has two.
constexpr std::string_view kAfterAttention = facts(Part::attention_post_norm).hugging_face;
constexpr std::string_view kBeforeMlp = facts(Part::ffn_norm).hugging_face;
constexpr std::string_view kAfterMlp = facts(Part::ffn_post_norm).hugging_face;
constexpr Rename kAfterNames[] = {{kBeforeMlp, kAfterAttention}, {"post_feedforward_layernorm", kAfterMlp}};
constexpr Rename kBothNames[] = {{kBeforeMlp, kAfterAttention},
                                 {"pre_feedforward_layernorm", kBeforeMlp},
                                 {"post_feedforward_layernorm", kAfterMlp}};
constexpr Rename kVaultNames[] = {{"pre_feedforward_layernorm", kBeforeMlp}};
constexpr Rename kSeedNames[] = {{facts(Part::attention_post_norm).gguf, facts(Part::ffn_norm).gguf}};
constexpr Rename kHunyuanNames[] = {{"self_attn.query_layernorm", facts(Part::q_norm).hugging_face},
                                    {"self_attn.key_layernorm", facts(Part::k_norm).hugging_face}};
constexpr Rename kStarcoderNames[] = {{"mlp.c_fc", facts(Part::w3).hugging_face},
                                      {"mlp.c_proj", facts(Part::w2).hugging_face}};

// Each says what is not as Family says it.
constexpr Family kFamilies[] = {
    {.model_type = "qwen2",  // before those that may have biases of other parts too
     .architectures = {"Qwen2ForCausalLM", "", "Qwen2Model"},
     .gguf = "qwen2",
     .gguf_rope_style = RopeStyle::half_split,
     .seq_len = 32768,
     .n_kv_heads = 32,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .windows = Windows::some,
     .sliding_window = 4096,
     .asks_for_window = true,
     .parts = kInputBiases,
     .gguf_square = true},
    {.model_type = "llama",
     .architectures = {"LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"},
     .gguf = "llama",  // all that compute as it does: Llama 1 to 3, Mistral, SmolLM and many others
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "mlp_bias"},
     .seq_len = 2048,
     .norm_eps = 1e-6,
     .rope_theta = 10000},
    {.model_type = "mistral",
     .architectures = {"MistralForCausalLM", "", "MistralModel"},
     .gguf_rope_style = RopeStyle::interleaved,
     .seq_len = 131072,
     .n_kv_heads = 8,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .windows = Windows::always,
     .sliding_window = 4096},
    {.model_type = "ministral",
     .architectures = {"MinistralForCausalLM", "", "MinistralModel"},
     .gguf_rope_style = RopeStyle::interleaved,
     .seq_len = 131072,
     .n_kv_heads = 8,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .windows = Windows::some,
     .sliding_window = 4096},
    {.model_type = "qwen3",
     .architectures = {"Qwen3ForCausalLM", "", "Qwen3Model"},
     .gguf = "qwen3",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias"},
     .seq_len = 32768,
     .n_kv_heads = 32,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .windows = Windows::some,
     .sliding_window = 4096,
     .head_dim = 128,
     .asks_for_window = true,
     .qk_norm = QkNorm::head,
     .gguf_biases = false},
    {.model_type = "granite",
     .architectures = {"GraniteForCausalLM", "", "GraniteModel"},
     .gguf = "granite",
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "mlp_bias", "multipliers"},
     .seq_len = 2048,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .attention_multiplier = 1.0F},
    {.model_type = "smollm3",
     .architectures = {"SmolLM3ForCausalLM", "", "SmolLM3Model"},
     .gguf = "smollm3",
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "mlp_bias", "no_rope_layers"},
     .seq_len = 32768,
     .n_kv_heads = 4,
     .norm_eps = 1e-6,
     .rope_theta = 2000000,
     .tied = true,
     .no_rope_every = 4,
     .gguf_biases = false},
    {.model_type = "phi3",
     .architectures = {"Phi3ForCausalLM", "", "Phi3Model"},
     .gguf = "phi3",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"partial_rotary_factor"},
     .seq_len = 4096,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .windows = Windows::always,
     .fused = kFused,
     .gguf_square = true,
     .longrope_alone = true},
    {.model_type = "helium",
     .architectures = {"HeliumForCausalLM", "", "HeliumModel"},
     .hugging_face_rope_style = RopeStyle::interleaved,
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"mlp_bias"},
     .seq_len = 4096,
     .n_kv_heads = 20,
     .norm_eps = 1e-8,
     .rope_theta = 100000,
     .head_dim = 128},
    {.model_type = "ernie4_5",
     .architectures = {"Ernie4_5ForCausalLM", "", "Ernie4_5Model"},
     .gguf = "ernie4_5",
     .hugging_face_rope_style = RopeStyle::interleaved,
     .gguf_rope_style = RopeStyle::interleaved,
     .seq_len = 131072,
     .n_kv_heads = 2,
     .norm_eps = 1e-5,
     .rope_theta = 500000,
     .head_dim = 128,
     .tied = true},
    {.model_type = "internlm3",
     .architectures = {"InternLM3ForCausalLM", "LlamaForCausalLM", "InternLM3Model"},
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "mlp_bias", "qkv_bias", "bias"},
     .seq_len = 32768,
     .n_kv_heads = 2,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .head_dim = 128,
     .bias_switches = {"qkv_bias", "qkv_bias", "bias"},
     .written = false},
    {.model_type = "iquestcoder",
     .architectures = {"IQuestCoderForCausalLM", "LlamaForCausalLM", "IQuestCoderModel"},
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "mlp_bias"},
     .seq_len = 131072,
     .n_kv_heads = 8,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .head_dim = 128,
     .written = false},
    {.model_type = "seed_oss",
     .architectures = {"SeedOssForCausalLM", "", "SeedOssModel"},
     .gguf = "seed_oss",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias", "attention_out_bias", "mlp_bias"},
     .seq_len = 524288,
     .n_kv_heads = 8,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .head_dim = 128,
     .bias_switches = {"attention_bias", "attention_out_bias", "mlp_bias"},
     .biased = true,
     .gguf_renames = kSeedNames,
     .written = false},
    {.model_type = "cwm",
     .architectures = {"CwmForCausalLM", "", "CwmModel"},
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"mlp_bias"},
     .seq_len = 131072,
     .n_kv_heads = 8,
     .norm_eps = 1e-5,
     .rope_theta = 1000000,
     .windows = Windows::some,
     .sliding_window = 8192,
     .head_dim = 128,
     .needs_rope_parameters = true,
     .full_every = 4,
     .full_first = true,
     .written = false},
    {.model_type = "hunyuan_v1_dense",
     .architectures = {"HunYuanDenseV1ForCausalLM", "", "HunYuanDenseV1Model"},
     .gguf = "hunyuan-dense",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias", "use_qk_norm"},  // which it has, whatever its files say
     .seq_len = 2048,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .qk_norm = QkNorm::head_after_rope,
     .gguf_biases = false,
     .ntk_alpha = true,
     .hugging_face_renames = kHunyuanNames},
    {.model_type = "olmo2",
     .architectures = {"Olmo2ForCausalLM", "", "Olmo2Model"},
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias"},
     .seq_len = 2048,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .qk_norm = QkNorm::full,
     .gguf_biases = false,
     .norm_places = NormPlaces::after,
     .gguf_tied = false,
     .gguf_square = true,
     .hugging_face_renames = kAfterNames},
    {.model_type = "olmo3",
     .architectures = {"Olmo3ForCausalLM", "", "Olmo3Model"},
     .gguf = "olmo2",  // without windows it is OLMo 2
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias"},
     .seq_len = 2048,
     .norm_eps = 1e-5,
     .rope_theta = 500000,
     .windows = Windows::some,
     .sliding_window = 4096,
     .qk_norm = QkNorm::full,
     .gguf_biases = false,
     .norm_places = NormPlaces::after,
     .gguf_tied = false,
     .gguf_square = true,
     .local_rope = true,
     .full_every = 4,
     .hugging_face_renames = kAfterNames},
    {.model_type = "exaone4",
     .architectures = {"Exaone4ForCausalLM", "", "Exaone4Model"},
     .gguf = "exaone4",
     .gguf_rope_style = RopeStyle::half_split,
     .seq_len = 2048,
     .n_kv_heads = 32,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .windows = Windows::some,
     .sliding_window = 4096,
     .qk_norm = QkNorm::head,
     .norm_places = NormPlaces::after,
     .gguf_square = true,
     .full_every = 4,
     .rope_in_windows = true,
     .hugging_face_renames = kAfterNames},
    {.model_type = "gemma",
     .architectures = {"GemmaForCausalLM", "", "GemmaModel"},
     .gguf = "gemma",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias"},
     .seq_len = 8192,
     .n_kv_heads = 16,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .head_dim = 256,
     .tied = true,
     .gguf_biases = false,
     .gain_plus_one = true,
     .activation = Activation::gelu_tanh,
     .acts = {"gelu_pytorch_tanh", "gelu"},
     .scaled_embedding = true,
     .gguf_tied = true},
    {.model_type = "gemma2",
     .architectures = {"Gemma2ForCausalLM", "", "Gemma2Model"},
     .gguf = "gemma2",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias", kScoreCap, kLogitsCap},
     .seq_len = 8192,
     .n_kv_heads = 4,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .windows = Windows::some,
     .sliding_window = 4096,
     .head_dim = 256,
     .tied = true,
     .gguf_biases = false,
     .gain_plus_one = true,
     .norm_places = NormPlaces::both,
     .activation = Activation::gelu_tanh,
     .acts = {"gelu_pytorch_tanh", ""},
     .scaled_embedding = true,
     .query_scalar = 256,
     .score_cap = 50,
     .logits_cap = 30,
     .gguf_wide_scale = 46,
     .gguf_tied = true,
     .full_every = 2,
     .hugging_face_renames = kBothNames},
    {.model_type = "gemma3_text",
     .architectures = {"Gemma3ForCausalLM", "", "Gemma3TextModel"},
     .gguf = "gemma3",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias", kLogitsCap},
     .seq_len = 131072,
     .n_kv_heads = 4,
     .norm_eps = 1e-6,
     .rope_theta = 1000000,
     .windows = Windows::some,
     .sliding_window = 4096,
     .head_dim = 256,
     .tied = true,
     .qk_norm = QkNorm::head,
     .gguf_biases = false,
     .gain_plus_one = true,
     .norm_places = NormPlaces::both,
     .activation = Activation::gelu_tanh,
     .acts = {"gelu_pytorch_tanh", ""},
     .scaled_embedding = true,
     .query_scalar = 256,
     .gguf_wide_scale = 62,
     .local_rope = true,
     .local_rope_theta = 10000,
     .full_every = 6,
     .hugging_face_renames = kBothNames},
    {.model_type = "vaultgemma",
     .architectures = {"VaultGemmaForCausalLM", "", "VaultGemmaModel"},
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias", kScoreCap, kLogitsCap},
     .seq_len = 8192,
     .n_kv_heads = 4,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .windows = Windows::some,
     .sliding_window = 4096,
     .head_dim = 256,
     .tied = true,
     .gain_plus_one = true,
     .activation = Activation::gelu_tanh,
     .acts = {"gelu_pytorch_tanh", ""},
     .scaled_embedding = true,
     .query_scalar = 256,
     .score_cap = 50,
     .logits_cap = 30,
     .full_every = 2,
     .hugging_face_renames = kVaultNames},
    {.model_type = "arcee",
     .architectures = {"ArceeForCausalLM", "", "ArceeModel"},
     .gguf = "arcee",
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "mlp_bias"},
     .seq_len = 4096,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .gguf_biases = false,
     .activation = Activation::relu_squared,
     .acts = {"relu2", ""},
     .gated = false},
    {.model_type = "nemotron",
     .architectures = {"NemotronForCausalLM", "", "NemotronModel"},
     .gguf = "nemotron",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias", "mlp_bias", "partial_rotary_factor"},
     .seq_len = 4096,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .norm = NormKind::layer,
     .norm_biases = true,
     .gain_plus_one = true,
     .activation = Activation::relu_squared,
     .acts = {"relu2", ""},
     .gated = false,
     .gguf_tied = false,
     .gguf_square = true,
     .eps_name = "norm_eps",
     .partial_rotary = 0.5},
    {.model_type = "glm",
     .architectures = {"GlmForCausalLM", "", "GlmModel"},
     .gguf = "chatglm",
     .hugging_face_rope_style = RopeStyle::interleaved,
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "partial_rotary_factor"},
     .seq_len = 131072,
     .n_kv_heads = 2,
     .norm_eps = 0.00000015625,
     .rope_theta = 10000,
     .head_dim = 128,
     .fused = kFusedMlp,
     .gguf_square = true,
     .partial_rotary = 0.5,
     .bias_switches = {"attention_bias", "", ""},
     .biased = true},
    {.model_type = "glm4",
     .architectures = {"Glm4ForCausalLM", "", "Glm4Model"},
     .gguf = "glm4",
     .hugging_face_rope_style = RopeStyle::interleaved,
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "partial_rotary_factor"},
     .seq_len = 131072,
     .n_kv_heads = 2,
     .norm_eps = 0.00000015625,
     .rope_theta = 10000,
     .head_dim = 128,
     .fused = kFusedMlp,
     .norm_places = NormPlaces::both,
     .partial_rotary = 0.5,
     .bias_switches = {"attention_bias", "", ""},
     .biased = true},
    {.model_type = "cohere",
     .architectures = {"CohereForCausalLM", "", "CohereModel"},
     .gguf = "command-r",
     .hugging_face_rope_style = RopeStyle::interleaved,
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "logit_scale"},
     .seq_len = 8192,
     .norm_eps = 1e-5,
     .rope_theta = 500000,
     .tied = true,
     .gguf_biases = false,
     .norm = NormKind::layer,
     .parallel = true,
     .logit_scale = 0.0625,
     .gguf_tied = true,
     .gguf_square = true,
     .eps_name = "layer_norm_eps"},
    {.model_type = "cohere2",
     .architectures = {"Cohere2ForCausalLM", "", "Cohere2Model"},
     .gguf = "cohere2",
     .hugging_face_rope_style = RopeStyle::interleaved,
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "logit_scale"},
     .seq_len = 8192,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .windows = Windows::some,
     .sliding_window = 4096,
     .tied = true,
     .gguf_biases = false,
     .norm = NormKind::layer,
     .parallel = true,
     .logit_scale = 0.0625,
     .gguf_tied = true,
     .gguf_square = true,
     .eps_name = "layer_norm_eps",
     .full_every = 4,
     .rope_in_windows = true,
     .needs_window = true},
    {.model_type = "starcoder2",
     .architectures = {"Starcoder2ForCausalLM", "", "Starcoder2Model"},
     .gguf = "starcoder2",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"use_bias"},
     .seq_len = 4096,
     .n_kv_heads = 2,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .windows = Windows::always,
     .tied = true,
     .norm = NormKind::layer,
     .norm_biases = true,
     .activation = Activation::gelu_tanh,
     .acts = {"gelu_pytorch_tanh", ""},
     .gated = false,
     .gguf_square = true,
     .gguf_biased = true,
     .eps_name = "norm_epsilon",
     .bias_switches = {"use_bias", "use_bias", "use_bias"},
     .biased = true,
     .hugging_face_renames = kStarcoderNames},
    {.model_type = "stablelm",
     .architectures = {"StableLmForCausalLM", "", "StableLmModel"},
     .gguf = "stablelm",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"use_qkv_bias", "partial_rotary_factor", "use_parallel_residual"},
     .seq_len = 4096,
     .n_kv_heads = 32,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .norm = NormKind::layer,
     .norm_biases = true,
     .gguf_tied = false,
     .gguf_square = true,
     .eps_name = "layer_norm_eps",
     .partial_rotary = 0.25,
     .bias_switches = {"use_qkv_bias", "", ""}},
    {.model_type = "olmo",
     .architectures = {"OlmoForCausalLM", "", "OlmoModel"},
     .gguf = "olmo",
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias"},
     .seq_len = 2048,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .gguf_biases = false,
     .norm = NormKind::layer_plain,
     .gguf_square = true,
     .eps_name = ""},  // it is no setting
    {.model_type = "mixtral",
     .architectures = {"MixtralForCausalLM", "", "MixtralModel"},
     .gguf = "llama",
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"experts"},
     .seq_len = 131072,
     .n_kv_heads = 8,
     .norm_eps = 1e-5,
     .rope_theta = 1000000,
     .windows = Windows::always,
     .experts = ExpertFacts{.count = "num_local_experts",
                            .order = RouterOrder::softmax_topk,
                            .renormalise = true,
                            .hidden_size = {},
                            .router = "block_sparse_moe.gate",
                            .prefix = "block_sparse_moe.experts.",
                            .gate = "w1",
                            .up = "w3",
                            .down = "w2"}},
    {.model_type = "qwen3_moe",
     .architectures = {"Qwen3MoeForCausalLM", "", "Qwen3MoeModel"},
     .gguf = "qwen3moe",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias", "experts"},
     .seq_len = 32768,
     .n_kv_heads = 4,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .qk_norm = QkNorm::head,
     .experts = ExpertFacts{.order = RouterOrder::softmax_topk,
                            .renormalise = true,
                            .says_whether = true,
                            .hidden_size = "moe_intermediate_size"},
     .gguf_biases = false},
    {.model_type = "olmoe",
     .architectures = {"OlmoeForCausalLM", "", "OlmoeModel"},
     .gguf = "olmoe",
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias", "experts"},
     .seq_len = 4096,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .qk_norm = QkNorm::full,
     .experts =
         ExpertFacts{.order = RouterOrder::softmax_topk, .renormalise = false, .says_whether = true, .hidden_size = {}},
     .gguf_biases = false,
     .gguf_tied = false,
     .gguf_square = true,
     .gguf_all_keys = true},
    {.model_type = "granitemoe",
     .architectures = {"GraniteMoeForCausalLM", "", "GraniteMoeModel"},
     .gguf = "granitemoe",
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "multipliers", "experts"},
     .seq_len = 2048,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .attention_multiplier = 1.0F,
     .experts = ExpertFacts{.count = "num_local_experts",
                            .order = RouterOrder::topk_softmax,
                            .renormalise = false,
                            .hidden_size = {},
                            .router = "block_sparse_moe.router.layer",
                            .stacked_inputs = "block_sparse_moe.input_linear",
                            .stacked_output = "block_sparse_moe.output_linear"}},
    {.model_type = "gpt_oss",
     .architectures = {"GptOssForCausalLM", "", "GptOssModel"},
     .gguf = "gpt-oss",
     .hugging_face_rope_style = RopeStyle::half_split,
     .gguf_rope_style = RopeStyle::half_split,
     .computes = {"attention_bias", "experts"},
     .seq_len = 131072,
     .n_kv_heads = 8,
     .norm_eps = 1e-5,
     .rope_theta = 150000,
     .windows = Windows::some,
     .sliding_window = 128,
     .head_dim = 64,
     .parts = kOssParts,
     .experts = ExpertFacts{.count = "num_local_experts",
                            .order = RouterOrder::topk_softmax,
                            .renormalise = false,
                            .hidden_size = {},
                            .router = "mlp.router",
                            .turned_inputs = "mlp.experts.gate_up_proj",
                            .turned_output = "mlp.experts.down_proj"},
     .activation = Activation::clamped_swiglu,
     .gguf_tied = false,
     .gguf_biased = true,
     .gguf_yarn_truncates = false,
     .needs_rope_parameters = true,
     .full_every = 2,
     .needs_window = true,
     .bias_switches = {"attention_bias", "attention_bias", ""},
     .biased = true,
     .gguf_renames = kSeedNames},
};

// The row whose `name` is this one.
const Family* find(std::string_view Family::*name, std::string_view wanted) {
  const auto* const found = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                         [&](const Family& family) { return family.*name == wanted; });
  return found == std::end(kFamilies) || wanted.empty() ? nullptr : found;
}

std::string list(std::string_view Family::*name) {
  std::vector<std::string> names;
  for (const Family& family : kFamilies) {
    const std::string own = excerpt(family.*name);
    if (!(family.*name).empty() && std::find(names.begin(), names.end(), own) == names.end()) names.push_back(own);
  }
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    text += cat(i == 0 ? "" : i + 1 == names.size() ? " or " : ", ", names[i]);
  }
  return text;
}

}  // namespace

std::span<const Switch> switches() { return kSwitches; }
std::span<const Family> families() { return kFamilies; }

bool Family::computes_switch(std::string_view hugging_face) const {
  if (hugging_face.empty()) return false;
  return std::find(std::begin(computes), std::end(computes), hugging_face) != std::end(computes);
}

bool Family::may_have(Part part) const {
  if (contains(parts, part)) return true;
  if (is_norm_bias(part)) return norm_biases;
  return facts(part).kind == PartKind::bias && computes_switch(bias_switch(part));
}

std::string Family::stem(Naming naming, Part part) const {
  const std::string_view usual = naming == Naming::gguf ? facts(part).gguf : facts(part).hugging_face;
  for (const Rename& rename : naming == Naming::gguf ? gguf_renames : hugging_face_renames) {
    if (rename.ours == usual) return std::string(rename.theirs);
  }
  if (naming == Naming::gguf || !experts) return std::string(usual);
  const bool router = part == Part::router || part == Part::router_b;
  if (router && !experts->router.empty()) return std::string(experts->router);
  const std::string_view matrix = part == Part::e1   ? experts->gate
                                  : part == Part::e2 ? experts->down
                                  : part == Part::e3 ? experts->up
                                                     : std::string_view();
  return experts->prefix.empty() || matrix.empty() ? std::string(usual) : cat(experts->prefix, "{}.", matrix);
}

std::vector<Stacked> Family::stacked(Naming naming) const {
  std::vector<Stacked> found;
  if (!experts) return found;
  if (naming == Naming::gguf) {
    for (const Part part : {Part::e1, Part::e2, Part::e3}) {
      const std::string_view stem = facts(part).gguf;  // "ffn_gate.{}"
      found.push_back({cat(stem.substr(0, stem.rfind('.')), kAllExperts, ".weight"), {part}});
    }
    for (const Part part : {Part::e1_b, Part::e2_b, Part::e3_b}) {
      const std::string_view stem = facts(part).gguf;
      if (may_have(part)) found.push_back({cat(stem.substr(0, stem.rfind('.')), kAllExperts, ".bias"), {part}});
    }
    return found;
  }
  if (!experts->stacked_inputs.empty()) {
    found.push_back({cat(experts->stacked_inputs, ".weight"), {Part::e1, Part::e3}});
    found.push_back({cat(experts->stacked_output, ".weight"), {Part::e2}});
  }
  if (!experts->turned_inputs.empty()) {
    found.push_back({std::string(experts->turned_inputs), {Part::e1, Part::e3}, true});
    found.push_back({std::string(experts->turned_output), {Part::e2}, true});
    found.push_back({cat(experts->turned_inputs, "_bias"), {Part::e1_b, Part::e3_b}, true});
    found.push_back({cat(experts->turned_output, "_bias"), {Part::e2_b}, true});
  }
  return found;
}

std::string_view Family::bias_switch(Part part) const {
  if (facts(part).need != Need::optional && facts(part).need != Need::gate_bias) return {};
  if (facts(part).scope == Scope::mlp) return bias_switches[2];
  return bias_switches[part == Part::bo ? 1 : 0];
}

void Family::apply_to(Config& config) const {
  config.qk_norm = qk_norm;
  config.norm = norm;
  config.norm_places = norm_places;
  config.parallel = parallel;
  config.activation = activation;
  config.gated = gated;
}

Layers Family::usual_full_layers(std::int64_t n_layers, std::int64_t every) const {
  Layers layers;
  if (every < 1) return layers;
  for (std::int64_t i = full_first ? 0 : every - 1; i < n_layers; i += every) layers.push_back(i);
  return layers;
}

Layers Family::usual_no_rope_layers(std::int64_t n_layers, std::int64_t every) const {
  Layers layers;
  for (std::int64_t i = every; every > 0 && i <= n_layers; i += every) layers.push_back(i - 1);
  return layers;
}

const Family* find_hugging_face_family(std::string_view model_type) { return find(&Family::model_type, model_type); }
const Family* find_gguf_family(std::string_view architecture, bool experts) {
  const auto* const found = std::find_if(std::begin(kFamilies), std::end(kFamilies), [&](const Family& family) {
    return family.gguf == architecture && family.experts.has_value() == experts;
  });
  return found == std::end(kFamilies) || architecture.empty() ? find(&Family::gguf, architecture) : found;
}

std::vector<FusedRows> fused_rows(const Family& family, Naming naming, std::string_view name, const Config& config,
                                  std::optional<std::int64_t> rows) {
  for (const Fused& fused : family.fused) {
    const std::string_view stem = naming == Naming::gguf ? fused.gguf : fused.hugging_face;
    // As a part of one of its layers is called, with another stem.
    const std::string ending = cat(".", stem, ".weight");
    if (!name.ends_with(ending)) continue;
    const Part last = fused.parts.back();
    const std::string_view own = naming == Naming::gguf ? facts(last).gguf : facts(last).hugging_face;
    const std::string example = cat(name.substr(0, name.size() - ending.size()), ".", own, ".weight");
    const auto place = find_part(naming, example, config);
    if (!place || place->part != last) continue;
    std::vector<FusedRows> found;
    std::int64_t next = 0;
    for (const Part part : fused.parts) {
      const std::int64_t count = part_shape(config, part).rows;
      found.push_back({weight_name(naming, part, place->layer), next, count});
      next += count;
    }
    if (rows && next != *rows) {
      throw FormatError(
          cat("tensor ", excerpt(name), " has ", *rows, " rows, expected ", next, " of ", found.size(), " weights"));
    }
    return found;
  }
  return {};
}

std::string renamed(std::span<const Rename> renames, std::string_view name) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::string(name);
  const std::string_view module = name.substr(0, dot), ending = name.substr(dot);  // ".weight", ".bias", ".qweight" ...
  for (const Rename& rename : renames) {
    const std::string theirs = cat(".", rename.theirs);
    if (!module.ends_with(theirs)) continue;
    return cat(module.substr(0, module.size() - theirs.size()), ".", rename.ours, ending);
  }
  return std::string(name);
}

std::string hugging_face_families() { return list(&Family::model_type); }
std::string gguf_families() { return list(&Family::gguf); }

}  // namespace llama2cpp
