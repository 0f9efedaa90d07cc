// Sessions move on only when a whole call has succeeded: what a failed call left in the cache lies beyond `position`,
// where nothing reads it.
#include "model/session.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <mutex>

#include "core/check.h"
#include "model/forward.h"

namespace llama2cpp {

Session::Session(std::shared_ptr<const Model> model, std::int64_t context)
    : model_(std::move(model)),
      kv_(std::make_unique<KvCache>(model_->config(), context == 0 ? model_->context() : context, model_->kv_dtype())) {
}

Session::Session(std::shared_ptr<const Model> model, std::unique_ptr<KvCache> kv, std::vector<std::int32_t> tokens,
                 std::span<const float> logits)
    : model_(std::move(model)), kv_(std::move(kv)), tokens_(std::move(tokens)) {
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
  const Turn turn(*this, poll);
  LLAMA2CPP_CHECK(position >= 0 && position <= this->position(), "position is ", position, ", expected 0 to ",
                  this->position());
  const std::lock_guard lock(state_lock_);
  tokens_.resize(static_cast<std::size_t>(position));
  has_logits_ = false;
}

std::unique_ptr<Session> Session::fork(FunctionRef<void()> poll) {
  auto copy = std::make_unique<Session>(model_, context());
  const Turn turn(*this, poll);
  copy->kv_->copy_from(*kv_, position());
  copy->tokens_ = tokens_;
  copy->set_logits(logits());
  return copy;
}

namespace {

using Clock = std::chrono::steady_clock;

// Checks everything that can be known before anything is computed.
void check(std::span<const Work> work) {
  for (const Work& w : work) {
    const Model& model = w.session->model();
    LLAMA2CPP_CHECK(&model == &work[0].session->model(), "the sessions belong to different models");
    LLAMA2CPP_CHECK(std::count_if(work.begin(), work.end(), [&](const Work& o) { return o.session == w.session; }) == 1,
                    "a session is named twice");
    LLAMA2CPP_CHECK(!w.tokens.empty(), "there are no tokens, expected at least one");
    for (const std::int32_t token : w.tokens) {
      LLAMA2CPP_CHECK(token >= 0 && token < model.config().vocab_size, "token is ", token, ", expected 0 to ",
                      model.config().vocab_size - 1);
    }
    const auto count = static_cast<std::int64_t>(w.tokens.size());
    if (count > w.session->context() - w.session->position()) {
      throw ContextFullError(cat("the session is at position ", w.session->position(), " of ", w.session->context(),
                                 " and has no room for ", count, " more tokens"));
    }
  }
}

}  // namespace

void run(std::span<const Work> work, const Hooks& hooks, FunctionRef<void()> poll,
         std::optional<std::int64_t> most_rows) {
  if (work.empty()) return;
  LLAMA2CPP_CHECK(!most_rows || *most_rows >= 1, "chunk is ", *most_rows, ", expected 1 or more");

  // Taken in the order of their addresses, so that two calls with the same sessions never wait for each other.
  std::vector<Session*> sessions;
  for (const Work& w : work) sessions.push_back(w.session);
  std::sort(sessions.begin(), sessions.end(), std::less<>());  // < says nothing of pointers into different objects
  sessions.erase(std::unique(sessions.begin(), sessions.end()), sessions.end());
  std::vector<Turn> turns;
  turns.reserve(sessions.size());
  for (Session* session : sessions) turns.emplace_back(*session, poll);
  check(work);

  const Model& model = work[0].session->model();
  const std::int64_t vocab_size = model.config().vocab_size;
  const auto logits_bytes = static_cast<std::size_t>(vocab_size) * sizeof(float);
  const auto next_logits = [](const Work& w) { return reinterpret_cast<float*>(w.session->next_logits_.data()); };
  model.prepare(poll);
  const FileReads reads(model.files());

  std::int64_t total = 0;
  for (const Work& w : work) total += static_cast<std::int64_t>(w.tokens.size());
  const std::int64_t chunk = hooks.need_one_pass() ? total : most_rows.value_or(chunk_of(model.config()));
  // Memory that is taken page by page while the call runs is asked for before.
  for (const Work& w : work) {
    w.session->kv_->need(w.session->position() + static_cast<std::int64_t>(w.tokens.size()));
  }
  const auto activations = model.borrow_activations(std::min(chunk, total));

  auto polled = Clock::now();
  const auto poll_now_and_then = [&] {
    if (Clock::now() - polled < kPollEvery) return;
    const Backend::Pause others_may_run(model.backend());
    poll();
    polled = Clock::now();
  };

  for (const Work& w : work) {
    const std::lock_guard lock(w.session->state_lock_);
    std::vector<std::int32_t>& tokens = w.session->tokens_;
    const std::size_t needed = tokens.size() + w.tokens.size();
    if (tokens.capacity() < needed) tokens.reserve(std::max(needed, 2 * tokens.capacity()));
    if (!w.session->next_logits_) w.session->next_logits_ = model.backend().alloc(logits_bytes);
  }

  if (hooks.any()) {
    std::vector<Feed> feeds;
    for (const Work& w : work) feeds.push_back({w.session->tokens_, w.tokens});
    hooks.begin(feeds);
  }

  // Where the logits of a session's part of a pass go: tokens [begin, begin + count).
  const auto place_of = [&](const Work& w, SequenceInput::Logits wanted, std::int64_t begin, std::int64_t count) {
    if (wanted == SequenceInput::Logits::last) return std::span(next_logits(w), static_cast<std::size_t>(vocab_size));
    return std::span(w.all_logits + begin * vocab_size, static_cast<std::size_t>(count * vocab_size));
  };

  // Each pass takes tokens from the sessions in turn until it is full.
  std::vector<SequenceInput> pass;
  std::size_t next = 0;  // the first session with tokens left
  std::int64_t fed = 0;  // of them, how many of its tokens have been fed
  while (next < work.size()) {
    pass.clear();
    const std::size_t first = next;
    const std::int64_t first_fed = fed;
    std::int64_t rows = 0;
    std::int64_t logit_rows = 0;
    float* logits_begin = nullptr;  // where the pass's logits go, if they lie together there
    float* logits_end = nullptr;
    bool together = true;
    while (next < work.size() && rows < chunk) {
      const Work& w = work[next];
      const auto left = static_cast<std::int64_t>(w.tokens.size()) - fed;
      const std::int64_t count = std::min(left, chunk - rows);
      const auto wanted = w.all_logits != nullptr ? SequenceInput::Logits::all
                          : count == left         ? SequenceInput::Logits::last
                                                  : SequenceInput::Logits::none;
      pass.push_back({w.session->kv_.get(), w.session->position() + fed,
                      w.tokens.subspan(static_cast<std::size_t>(fed), static_cast<std::size_t>(count)), wanted, next});
      rows += count;
      if (wanted != SequenceInput::Logits::none) {
        const std::span<float> to = place_of(w, wanted, fed, count);
        together = together && (logits_end == nullptr || logits_end == to.data());
        if (logits_end == nullptr) logits_begin = to.data();
        logits_end = to.data() + to.size();
        logit_rows += static_cast<std::int64_t>(to.size()) / vocab_size;
      }
      fed = count == left ? 0 : fed + count;
      if (count == left) ++next;
    }
    if (!together) logits_begin = nullptr;
    activations->resize(rows, logit_rows, logits_begin);
    {
      const Backend::Lease lease(model.backend(), poll);
      forward(model, pass, *activations, hooks, poll_now_and_then);
    }
    if (hooks.stop_at_layer) continue;

    const float* made = activations->logits.row(0);
    for (std::size_t i = 0; i < pass.size(); ++i) {
      if (pass[i].logits == SequenceInput::Logits::none) continue;
      const Work& w = work[first + i];
      const auto count = static_cast<std::int64_t>(pass[i].tokens.size());
      const std::span<float> to = place_of(w, pass[i].logits, i == 0 ? first_fed : 0, count);
      if (logits_begin == nullptr) std::copy_n(made, to.size(), to.data());
      made += to.size();
      if (w.all_logits != nullptr) std::copy_n(made - vocab_size, vocab_size, next_logits(w));
    }
  }

  reads.check();
  if (model.backend().has_warning()) poll();
  if (hooks.stop_at_layer) return;
  // Nothing below can fail: all move on together.
  hooks.succeeded();
  for (std::size_t i = 0; i < work.size(); ++i) {
    Session& session = *work[i].session;
    const std::lock_guard lock(session.state_lock_);
    session.tokens_.insert(session.tokens_.end(), work[i].tokens.begin(), work[i].tokens.end());
    std::swap(session.logits_, session.next_logits_);
    session.has_logits_ = true;
    if (work[i].last_logits != nullptr) std::copy_n(session.logits().data(), vocab_size, work[i].last_logits);
  }
}

}  // namespace llama2cpp
