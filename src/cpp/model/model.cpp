// Options, packing on first use, and lending buffers.
#include "model/model.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <mutex>
#include <new>

#include "core/check.h"
#include "format/panel_layout.h"
#include "format/weight_rows.h"
#include "model/choose_backend.h"

namespace llama2cpp {
namespace {

// auto: f16 keeps more than weights of fewer bits than f32 have said. llama2.c's own int8 keeps f32, as its run does.
DType kv_dtype_for(const std::string& kv, Weights& weights) {
  if (kv == "q8_0") return DType::q8_0;
  if (kv != "auto") return kv == "f16" ? DType::f16 : DType::f32;
  const std::vector<Weight*> matrices = weights.matrices();
  const bool full = std::all_of(matrices.begin(), matrices.end(), [](const Weight* weight) {
    return weight->format->name == "f32" || weight->format->name == "int8_group";
  });
  return full ? DType::f32 : DType::f16;
}

// Packing copies: worth it only if the copy and a full session fit beside what else is in memory.
bool should_pack(const std::string& pack, const Config& c, Weights& weights, const Backend& backend,
                 std::int64_t context, DType kv) {
  LLAMA2CPP_CHECK(pack == "auto" || pack == "always" || pack == "never", "pack is '", pack,
                  "', expected one of: auto, always, never");
  LLAMA2CPP_CHECK(pack != "always" || backend.packs(), "pack is 'always', but the ", backend.name(),
                  " backend reads weights where they lie; use 'auto', or backend='cpu'");
  if (pack != "auto" || !backend.packs()) return pack == "always";
  double bytes = 2.0 * static_cast<double>(context) * static_cast<double>(bytes_of(kv, c.n_layers * c.kv_dim()));
  for (const Weight* weight : weights.matrices()) {
    if (!weight->panels) bytes += static_cast<double>(backend.packed_bytes(*weight));
  }
  return bytes < static_cast<double>(backend.memory_left());
}

// As many positions as the config has, or fewer, where all of a context's memory is taken at once: then what fits into half of
// what the weights leave.
std::int64_t default_context(const Config& c, Weights& weights, const Backend& backend, DType kv) {
  const std::int64_t wanted = c.default_context();
  if (backend.reserves()) return wanted;
  std::size_t left = backend.memory_left();
  for (const Weight* weight : weights.matrices()) {
    for (const Plane& plane : weight->planes) left -= std::min(left, plane.bytes);
  }
  const std::size_t room = std::min(left / 2, backend.largest_piece());
  const std::int64_t row = 2 * bytes_of(kv, c.n_layers * c.kv_dim());
  return std::clamp(static_cast<std::int64_t>(room) / row, std::int64_t{1}, wanted);
}

Checkpoint edited(const Checkpoint& base, const std::vector<Weight>& edits, bool untie) {
  Checkpoint copy = base;
  const std::string output = weight_name(base.naming, Part::output);
  const auto is_output = [&](const Weight& edit) { return edit.name == output; };
  if (copy.config.tied && (untie || std::any_of(edits.begin(), edits.end(), is_output))) {
    Weight own = base.weight(Part::tok_embeddings);
    own.name = output;
    copy.weights.insert_or_assign(output, std::move(own));
    copy.config.tied = false;
  }
  for (const Weight& edit : edits) {
    const auto found = copy.weights.find(edit.name);
    LLAMA2CPP_CHECK(found != copy.weights.end(), "the model has no weight '", edit.name, "'");
    LLAMA2CPP_CHECK(edit.rows == found->second.rows && edit.cols == found->second.cols, "'", edit.name, "' is ",
                    shape_text(edit), ", expected ", shape_text(found->second));
    found->second = edit;
    for (auto& [name, tensor] : copy.file_tensors) {
      if (tensor.stored.format != nullptr && tensor.weights[0] == edit.name) tensor.stored = with_added(edit, -1.0F);
    }
  }
  return copy;
}

// Packed, or as the file has them.
std::size_t bytes_of_matrices(Weights& weights, const Backend& backend, bool pack) {
  std::size_t bytes = 0;
  for (const Weight* weight : weights.matrices()) {
    const bool in_panels = pack || weight->panels;
    if (in_panels) bytes += backend.packed_bytes(*weight);
    for (const Plane& plane : weight->planes) bytes += in_panels ? 0 : plane.bytes;
  }
  return bytes;
}

std::vector<Weight*> without_panels(const std::vector<Weight*>& matrices) {
  std::vector<Weight*> found;
  std::copy_if(matrices.begin(), matrices.end(), std::back_inserter(found), [](const Weight* w) { return !w->panels; });
  return found;
}

// For the model's pool, which goes before its backend does.
std::function<Buffer(std::size_t)> allocator(Backend& backend) {
  return [&backend](std::size_t bytes) { return backend.alloc(bytes); };
}

// "int8" is what every quantized weight takes, and at least one weight. Floats beside them stay floats.
void check_int8(const std::vector<Weight*>& matrices, const Backend& backend) {
  LLAMA2CPP_CHECK(backend.multiplies_integers(), "activation_dtype is 'int8', but the ", backend.name(),
                  " backend multiplies floats only; use 'f32', or backend='cpu'");
  const auto takes = [](const Weight* weight) { return weight->int8_input; };
  const bool none = std::none_of(matrices.begin(), matrices.end(), takes);
  for (const Weight* weight : matrices) {
    const bool refused = !weight->int8_input && (none || weight->format->quantized);
    LLAMA2CPP_CHECK(
        !refused, "activation_dtype is 'int8', but tensor '", weight->name, "' is ", weight->format->name,
        weight->format->blocks.zeros ? cat(" of groups of ", weight->group) : "",
        weight->format->blocks.zeros && weight->planes[1].row_bytes != 0 ? " whose scales are no halves" : "",
        ", and only weights that come as blocks of 32 whole numbers take int8");
  }
}

// "bf16" is what every bf16 and f16 weight takes, and at least one weight. f32 beside them stays f32.
void check_bf16(const std::vector<Weight*>& matrices, const Backend& backend) {
  LLAMA2CPP_CHECK(backend.multiplies_bf16(), "activation_dtype is 'bf16', but the ", backend.name(),
                  " backend multiplies float32 only; use 'f32', or backend='cpu'");
  const bool none = std::none_of(matrices.begin(), matrices.end(), [](const Weight* w) { return w->bf16_input; });
  for (const Weight* weight : matrices) {
    const bool refused = !weight->bf16_input && (none || weight->format->quantized);
    LLAMA2CPP_CHECK(!refused, "activation_dtype is 'bf16', but tensor '", weight->name, "' is ", weight->format->name,
                    ", and only weights of bf16 and f16 take bf16");
  }
}

std::string_view activations_of(const Weight& weight) {
  return weight.int8_input ? "int8" : weight.bf16_input ? "bf16" : "f32";
}

}  // namespace

Model::Model(const Model& base, const std::vector<Weight>& edits, bool untie, FunctionRef<void()> poll)
    : checkpoint_(edited(base.checkpoint_, edits, untie)),
      backend_(base.backend_),
      weights_(checkpoint_, *backend_),
      rope_(base.rope_),
      long_rope_(base.long_rope_),
      local_rope_(base.local_rope_),
      plan_(base.plan_),
      kv_dtype_(base.kv_dtype_),
      context_(base.context_),
      context_is_cut_(base.context_is_cut_),
      pack_(base.pack_),
      all_files_(mapped_files(checkpoint_)),
      memory_(allocator(*backend_)) {
  base.prepare(poll);
  const std::vector<Weight*> theirs = base.weights_.matrices();
  const std::vector<Weight*> ours = weights_.matrices();
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (ours[i]->planes[0].data != theirs[i]->planes[0].data) continue;  // an edit: floats
    ours[i]->int8_input = theirs[i]->int8_input;
    ours[i]->bf16_input = theirs[i]->bf16_input;
    ours[i]->panels = theirs[i]->panels;
    if (activations_of(*ours[i]) != "f32") activation_dtype_ = activations_of(*ours[i]);
  }
  matrix_bytes_ = bytes_of_matrices(weights_, *backend_, pack_);
  unpacked_ = without_panels(ours);
}

Model::Model(Checkpoint checkpoint, const ModelOptions& options, std::shared_ptr<Backend> backend)
    : checkpoint_(std::move(checkpoint)),
      backend_(backend ? std::move(backend) : choose_backend(checkpoint_, options)),
      weights_(checkpoint_, *backend_),
      rope_(checkpoint_.config, arithmetic_for(checkpoint_, options.activation_dtype)),
      long_rope_(checkpoint_.config, arithmetic_for(checkpoint_, options.activation_dtype), true),
      local_rope_(RopeAngles::local(checkpoint_.config, arithmetic_for(checkpoint_, options.activation_dtype))),
      plan_(plan_layers(checkpoint_.config)),
      kv_dtype_(kv_dtype_for(options.kv_dtype, weights_)),
      context_(options.context == 0 ? default_context(config(), weights_, *backend_, kv_dtype_) : options.context),
      all_files_(mapped_files(checkpoint_)),
      memory_(allocator(*backend_)) {
  config().check_context(context_);
  context_is_cut_ = options.context == 0 && context_ < config().default_context();
  if (options.context != 0) make_cache(context_);  // refuses here what a session of it would
  const std::string& activations = options.activation_dtype;
  LLAMA2CPP_CHECK(activations == "auto" || activations == "f32" || activations == "bf16" || activations == "int8",
                  "activation_dtype is '", activations, "', expected one of: auto, f32, bf16, int8");
  const std::vector<Weight*> matrices = weights_.matrices();
  for (Weight* weight : matrices) {
    const std::string_view format = weight->format->name;
    const bool has_integers = in_blocks(*weight) || format == "int8_group" || format == "llm_int8";
    const bool rounds = activations == "auto" || activations == "int8";
    weight->int8_input = has_integers && rounds && backend_->multiplies_integers();
    weight->bf16_input = (format == "bf16" || format == "f16") && activations == "bf16" && backend_->multiplies_bf16();
    if (activations_of(*weight) != "f32") activation_dtype_ = activations_of(*weight);
    // A file's panels of int8 are for rounded input: floats need others, which are packed as from any file.
    if (weight->panels && weight->format->form != panel_form(*weight)) weight->panels = {};
  }
  if (activations == "int8") check_int8(matrices, *backend_);
  if (activations == "bf16") check_bf16(matrices, *backend_);
  pack_ = should_pack(options.pack, config(), weights_, *backend_, context_, kv_dtype_);
  matrix_bytes_ = bytes_of_matrices(weights_, *backend_, pack_);
  unpacked_ = without_panels(matrices);
}

std::unique_ptr<KvCache> Model::make_cache(std::int64_t context) const {
  return std::make_unique<KvCache>(config(), context, kv_dtype_, *backend_);
}

void Model::prepare(FunctionRef<void()> poll) const {
  if (!pack_ || prepared_.load(std::memory_order_acquire)) return;
  prepare_lock_.lock(poll);
  const std::lock_guard lock(prepare_lock_, std::adopt_lock);
  if (prepared_.load(std::memory_order_relaxed)) return;
  const Backend::Lease lease(*backend_, poll);
  const std::vector<Weight*> matrices = weights_.matrices();
  if (prepare_lock_.inherited()) {
    for (Weight* weight : unpacked_) std::construct_at(&weight->panels);  // half written, perhaps: left alone
  }
  backend_->pack(unpacked_);
  FileReads(all_files_).check();  // the panels are of one state of the files, the one that was opened
  std::vector<Buffer> files;
  add_files(weights_.tok_embeddings, files);
  for (const Weight* weight : matrices) {
    const bool in_file = weight->panels && weight->panels.data() == weight->planes[0].data;
    if (in_file) add_files(*weight, files);
  }
  packed_files_ = std::move(files);
  prepared_.store(true, std::memory_order_release);
}

std::span<const Buffer> Model::files() const {
  return prepared_.load(std::memory_order_acquire) ? packed_files_ : all_files_;
}

Model::ActivationsLoan Model::borrow_activations(std::int64_t rows) const {
  std::unique_ptr<Activations> found;
  {
    const std::lock_guard lock(loans_lock_);
    if (loans_lock_.inherited()) std::construct_at(&idle_activations_);  // half written, perhaps: left alone
    for (auto& idle : idle_activations_) {
      if (idle->capacity() < rows || (found && found->capacity() <= idle->capacity())) continue;
      std::swap(found, idle);  // the smallest that is large enough
    }
    std::erase(idle_activations_, nullptr);
  }
  if (!found) found = std::make_unique<Activations>(config(), *backend_, rows);
  return {found.release(), [this](Activations* done) {
            std::unique_ptr<Activations> owned(done);
            const std::lock_guard lock(loans_lock_);
            if (loans_lock_.inherited()) std::construct_at(&idle_activations_);
            if (idle_activations_.size() >= 4) return;
            try {
              idle_activations_.push_back(std::move(owned));
            } catch (const std::bad_alloc&) {
              // No room to remember it: it just goes. A destructor gives it back, perhaps while another exception flies.
            }
          }};
}

}  // namespace llama2cpp
