// Sessions move on only when a whole call has succeeded: what a failed call left in the cache lies beyond `position`,
// where nothing reads it.
#include "model/session.h"

#include <algorithm>
#include <functional>
#include <mutex>

#include "core/check.h"
#include "core/now_and_then.h"
#include "model/forward.h"

namespace llama2cpp {

namespace {

void check_adapter(const Adapter* adapter, const Model& model) {
  LLAMA2CPP_CHECK(adapter == nullptr || adapter->fits(model),
                  "the adapter was loaded for another model: load it with this one");
}

}  // namespace

Session::Session(std::shared_ptr<const Model> model, std::int64_t context, std::shared_ptr<const Adapter> adapter)
    : model_(std::move(model)),
      adapter_((check_adapter(adapter.get(), *model_), std::move(adapter))),
      kv_(model_->make_cache(context == 0 ? model_->context() : context)),
      whole_layers_(model_->config().n_layers) {}

Session::Session(std::shared_ptr<const Model> model, std::unique_ptr<KvCache> kv, std::vector<std::int32_t> tokens,
                 std::span<const float> logits, std::shared_ptr<const Adapter> adapter)
    : model_(std::move(model)),
      adapter_((check_adapter(adapter.get(), *model_), std::move(adapter))),
      kv_(std::move(kv)),
      tokens_(std::move(tokens)),
      whole_layers_(model_->config().n_layers) {
  set_logits(logits);
}

std::int64_t Session::position() const {
  const std::lock_guard lock(state_lock_);
  return static_cast<std::int64_t>(tokens_.size());
}

std::vector<std::int32_t> Session::tokens() const {
  const std::lock_guard lock(state_lock_);
  return tokens_;
}

void Session::with_logits(FunctionRef<void(std::span<const float>)> see) const {
  const std::lock_guard lock(state_lock_);
  see(logits());
}

std::span<const float> Session::logits() const {
  if (!has_logits_) return {};
  return {reinterpret_cast<const float*>(logits_.data()), static_cast<std::size_t>(model_->config().vocab_size)};
}

void Session::set_logits(std::span<const float> logits) {
  if (logits.empty()) return;
  logits_ = model_->backend().alloc(logits.size_bytes());
  std::copy(logits.begin(), logits.end(), reinterpret_cast<float*>(logits_.data()));
  has_logits_ = true;
}

void Session::rewind(std::int64_t position, FunctionRef<void()> poll) {
  const SessionLock held(*this, poll);
  LLAMA2CPP_CHECK(position >= 0 && position <= this->position(), "position is ", position, ", expected 0 to ",
                  this->position());
  const std::lock_guard lock(state_lock_);
  ahead_.insert(ahead_.begin(), tokens_.begin() + position, tokens_.end());
  tokens_.resize(static_cast<std::size_t>(position));
  has_logits_ = false;
}

void Session::need_ahead(std::span<const std::int32_t> tokens, std::int64_t layer) const {
  const std::lock_guard lock(state_lock_);
  LLAMA2CPP_CHECK(tokens.size() <= ahead_.size() && std::equal(tokens.begin(), tokens.end(), ahead_.begin()),
                  "the session was rewound over ", ahead_.size(), " tokens, expected ", tokens.size(),
                  " or more: the layers before layer ", layer, " have no keys and values of others");
  LLAMA2CPP_CHECK(layer <= whole_layers_, "start_at_layer is ", layer, ", but the session was fed at layer ",
                  whole_layers_, " before: fork it before that");
}

std::vector<std::int32_t> Session::ahead() const {
  const std::lock_guard lock(state_lock_);
  return ahead_;
}

std::unique_ptr<Session> Session::fork(FunctionRef<void()> poll, std::optional<std::int64_t> position) {
  auto copy = std::make_unique<Session>(model_, context(), adapter_);
  const SessionLock held(*this, poll);
  const std::int64_t count = position.value_or(this->position());
  LLAMA2CPP_CHECK(count >= 0 && count <= this->position(), "position is ", count, ", expected 0 to ", this->position());
  copy->kv_->copy_from(*kv_, count);
  copy->tokens_.assign(tokens_.begin(), tokens_.begin() + count);
  copy->whole_layers_ = whole_layers_;
  if (count == this->position()) copy->set_logits(logits());
  return copy;
}

void Session::assign(Session& other, std::int64_t position, FunctionRef<void()> poll) {
  LLAMA2CPP_CHECK(
      &other != this && other.model_ == model_ && other.context() == context() && other.adapter_ == adapter_,
      "the sessions are of different models, contexts or adapters");
  const bool in_order = std::less<>()(this, &other);  // that of lock_all
  const SessionLock first(in_order ? *this : other, poll);
  const SessionLock second(in_order ? other : *this, poll);
  LLAMA2CPP_CHECK(position >= 0 && position <= other.position(), "position is ", position, ", expected 0 to ",
                  other.position());
  kv_->copy_from(*other.kv_, position);
  const std::vector<std::int32_t> tokens = other.tokens();
  const std::lock_guard lock(state_lock_);
  tokens_.assign(tokens.begin(), tokens.begin() + position);
  ahead_.clear();
  whole_layers_ = other.whole_layers_;
  has_logits_ = false;
}

namespace {

// What each head adds is computed from the model's own matrix alone.
void check_results(const Adapter& adapter, const Hooks& hooks, const Config& config) {
  for (std::int64_t i = 0; i < config.n_layers; ++i) {
    LLAMA2CPP_CHECK(
        !hooks.active(Point::result, i) || adapter.find(Part::wo, i) == nullptr, "'blocks.", i,
        ".attn.hook_result' is what each head adds by the model's own matrix, and the adapter has factors of "
        "it (o_proj)");
  }
}

// Checks everything that can be known before anything is computed.
void check(std::span<const Work> work, const Hooks& hooks) {
  for (const Work& w : work) {
    LLAMA2CPP_CHECK((w.residual != nullptr) == hooks.start_at_layer.has_value(),
                    "residual streams are given for a layer to start at, and for no other call");
    const Model& model = w.session->model();
    LLAMA2CPP_CHECK(&model == &work[0].session->model(), "the sessions belong to different models");
    LLAMA2CPP_CHECK(std::count_if(work.begin(), work.end(), [&](const Work& o) { return o.session == w.session; }) == 1,
                    "a session is named twice");
    LLAMA2CPP_CHECK(!w.tokens.empty(), "there are no tokens, expected at least one");
    if (hooks.any() && w.session->adapter()) check_results(*w.session->adapter(), hooks, model.config());
    if (w.known) w.session->need_ahead(w.tokens, hooks.start_at_layer.value_or(0));
    for (const std::int32_t token : w.tokens) {
      LLAMA2CPP_CHECK(token >= 0 && token < model.config().vocab_size, "token is ", token, ", expected 0 to ",
                      model.config().vocab_size - 1);
    }
    const auto count = static_cast<std::int64_t>(w.tokens.size());
    if (count > w.session->context() - w.session->position()) {
      const bool cut = model.context_is_cut() && w.session->context() == model.context();
      throw ContextFullError(
          cat("the session is at position ", w.session->position(), " of ", w.session->context(),
              " and has no room for ", count, " more tokens",
              cut ? "; the model's own context has more, which half of the memory that is left to the "
                    "GPU has no room for: ask for one with context="
                  : ""));
    }
  }
}

// Locks all sessions, in the order of their addresses: two calls with the same sessions never wait for each
// other.
std::vector<SessionLock> lock_all(std::span<const Work> work, FunctionRef<void()> poll) {
  std::vector<Session*> sessions;
  for (const Work& w : work) sessions.push_back(w.session);
  std::sort(sessions.begin(), sessions.end(), std::less<>());  // < says nothing of pointers into different objects
  sessions.erase(std::unique(sessions.begin(), sessions.end()), sessions.end());
  std::vector<SessionLock> locks;
  locks.reserve(sessions.size());
  for (Session* session : sessions) locks.emplace_back(*session, poll);
  return locks;
}

}  // namespace

// A call of run(), whose sessions are locked.
class Call {
 public:
  Call(std::span<const Work> work, const Hooks& hooks, FunctionRef<void()> poll, std::optional<std::int64_t> most_rows)
      : work_(work), hooks_(hooks), poll_(poll), model_(work[0].session->model()) {
    for (const Work& w : work) total_ += size_of(w);
    chunk_ = hooks.need_one_pass() ? total_ : most_rows.value_or(chunk_of(model_.config()));
  }

  void compute() {
    make_room();
    const auto activations = model_.borrow_activations(std::min(chunk_, total_));
    begin_hooks();
    const auto pause = [&] {
      const Backend::Pause others_may_run(model_.backend());
      poll_();
    };
    NowAndThen poll_now_and_then(pause);
    while (next_ < work_.size()) {
      const Pass pass = plan_pass();
      activations->resize(pass.rows, pass.logit_rows, pass.together, !hooks_.no_logits);
      {
        const Backend::Lease lease(model_.backend(), poll_);
        forward(model_, pass.sequences, *activations, hooks_, poll_now_and_then);
      }
      if (!hooks_.stop_at_layer && !hooks_.no_logits) hand_out(pass, activations->logits);
    }
  }

  // All sessions move on. Nothing here can fail.
  void commit() noexcept {
    if (!hooks_.start_at_layer) hooks_.succeeded();
    for (const Work& w : work_) {
      Session& session = *w.session;
      const std::lock_guard lock(session.state_lock_);
      session.tokens_.insert(session.tokens_.end(), w.tokens.begin(), w.tokens.end());
      if (w.known) session.ahead_.erase(session.ahead_.begin(), session.ahead_.begin() + size_of(w));
      session.has_logits_ = !hooks_.no_logits;
      if (hooks_.no_logits) continue;
      std::swap(session.logits_, session.next_logits_);
      if (w.last_logits != nullptr) std::copy_n(session.logits().data(), vocab_size(), w.last_logits);
    }
  }

 private:
  struct Pass {
    std::vector<SequenceInput> sequences;
    std::vector<std::span<float>> places;  // where the logits of each go; empty for those that have none
    std::size_t first = 0;                 // sequences[i] are tokens of work[first + i]
    std::int64_t rows = 0;
    std::int64_t logit_rows = 0;
    float* together = nullptr;  // all places in one piece, if they are
  };

  static std::int64_t size_of(const Work& w) { return static_cast<std::int64_t>(w.tokens.size()); }
  static float* next_logits(const Work& w) { return reinterpret_cast<float*>(w.session->next_logits_.data()); }
  std::int64_t vocab_size() const { return model_.config().vocab_size; }

  // Memory that is taken while the call runs, or when it has succeeded, is asked for before.
  void make_room() {
    for (const Work& w : work_) {
      w.session->kv_->need(w.session->position() + size_of(w));
      const std::lock_guard lock(w.session->state_lock_);
      std::vector<std::int32_t>& tokens = w.session->tokens_;
      const std::size_t needed = tokens.size() + w.tokens.size();
      if (tokens.capacity() < needed) tokens.reserve(std::max(needed, 2 * tokens.capacity()));
      if (w.residual == nullptr) w.session->ahead_.clear();
      if (w.residual == nullptr && tokens.empty()) w.session->whole_layers_ = model_.config().n_layers;
      if (hooks_.start_at_layer) w.session->whole_layers_ = std::min(w.session->whole_layers_, *hooks_.start_at_layer);
      if (hooks_.no_logits) continue;
      if (w.session->next_logits_) continue;
      w.session->next_logits_ = model_.backend().alloc(static_cast<std::size_t>(vocab_size()) * sizeof(float));
    }
  }

  void begin_hooks() const {
    if (!hooks_.any() || hooks_.start_at_layer) return;
    std::vector<Feed> feeds;
    for (const Work& w : work_) feeds.push_back({w.session->tokens_, w.tokens});
    hooks_.begin(feeds);
  }

  // Takes tokens from the sessions in turn until the pass is full.
  Pass plan_pass() {
    Pass pass;
    pass.first = next_;
    while (next_ < work_.size() && pass.rows < chunk_) {
      const Work& w = work_[next_];
      const std::int64_t left = size_of(w) - fed_;
      const std::int64_t count = std::min(left, chunk_ - pass.rows);
      const auto wanted = w.all_logits != nullptr || hooks_.no_logits ? SequenceInput::Logits::all
                          : count == left                             ? SequenceInput::Logits::last
                                                                      : SequenceInput::Logits::none;
      pass.sequences.push_back(
          {w.session->kv_.get(), w.session->position() + fed_,
           w.tokens.subspan(static_cast<std::size_t>(fed_), static_cast<std::size_t>(count)), wanted, next_,
           w.residual == nullptr ? nullptr : w.residual + fed_ * model_.config().dim, w.session->adapter().get()});
      pass.places.push_back(place_of(w, wanted, count));
      pass.rows += count;
      pass.logit_rows += hooks_.no_logits ? count : static_cast<std::int64_t>(pass.places.back().size()) / vocab_size();
      fed_ = count == left ? 0 : fed_ + count;
      if (count == left) ++next_;
    }
    pass.together = one_place(pass);
    return pass;
  }

  // Where the logits of a session's next `count` tokens go.
  std::span<float> place_of(const Work& w, SequenceInput::Logits wanted, std::int64_t count) const {
    const auto row = static_cast<std::size_t>(vocab_size());
    if (wanted == SequenceInput::Logits::none || hooks_.no_logits) return {};
    if (wanted == SequenceInput::Logits::last) return {next_logits(w), row};
    return {w.all_logits + fed_ * vocab_size(), static_cast<std::size_t>(count) * row};
  }

  // Where all logits of a pass go, if that is one piece of memory: a session's own, or some that the caller wants together.
  float* one_place(const Pass& pass) const {
    float* begin = nullptr;
    const float* end = nullptr;
    bool callers = true;
    for (std::size_t i = 0; i < pass.places.size(); ++i) {
      const std::span<float> place = pass.places[i];
      if (place.empty()) continue;
      if (work_[pass.first + i].copied) return nullptr;
      callers = callers && pass.sequences[i].logits == SequenceInput::Logits::all;
      if (begin == nullptr) {
        begin = place.data();
      } else if (!callers || end != place.data()) {
        return nullptr;
      }
      end = place.data() + place.size();
    }
    return begin;
  }

  void hand_out(const Pass& pass, const Tensor& logits) const {
    const float* made = logits.row(0);
    for (std::size_t i = 0; i < pass.places.size(); ++i) {
      const std::span<float> to = pass.places[i];
      if (to.empty()) continue;
      if (pass.together == nullptr) std::copy_n(made, to.size(), to.data());
      made += to.size();
      const Work& w = work_[pass.first + i];
      if (w.all_logits != nullptr) std::copy_n(made - vocab_size(), vocab_size(), next_logits(w));
    }
  }

  std::span<const Work> work_;
  const Hooks& hooks_;
  FunctionRef<void()> poll_;
  const Model& model_;
  std::int64_t total_ = 0;
  std::int64_t chunk_ = 0;
  std::size_t next_ = 0;  // the first session with tokens left
  std::int64_t fed_ = 0;  // how many of its tokens have been fed
};

void run(std::span<const Work> work, const Hooks& hooks, FunctionRef<void()> poll,
         std::optional<std::int64_t> most_rows) {
  if (work.empty()) return;
  LLAMA2CPP_CHECK(!most_rows || *most_rows >= 1, "chunk is ", *most_rows, ", expected 1 or more");
  const std::vector<SessionLock> locks = lock_all(work, poll);
  check(work, hooks);
  const Model& model = work[0].session->model();
  model.prepare(poll);
  const FileReads reads(model.files());
  Call call(work, hooks, poll, most_rows);
  call.compute();
  reads.check();
  if (model.backend().has_warning()) poll();
  if (!hooks.stop_at_layer) call.commit();
}

}  // namespace llama2cpp
