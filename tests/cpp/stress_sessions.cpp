// 8 threads drive 8 sessions each on one model, with steps, prefills, passes over many sessions, forks, rewinds, hooks
// and calls that fail, race for packing on first use, read weights, edit, unembed, are interrupted while they wait and use
// each other's sessions in hooks. Every result must have the bits of the same calls made by one
// thread. Meant to run under ThreadSanitizer; exits with 1 if any result differs.
//
//   stress_sessions [rounds] [calls per thread] [seed]
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <latch>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "model/unembed.h"
#include "tiny_model.h"

namespace {

using llama2cpp::Hooks;
using llama2cpp::HookSpan;
using llama2cpp::Model;
using llama2cpp::Point;
using llama2cpp::Session;
using llama2cpp::Tensor;
using llama2cpp::Work;

using Tokens = std::vector<std::int32_t>;

constexpr int kThreads = 8;
constexpr std::size_t kSessions = 8;

// One thread's calls, which depend on the seed alone, and what came out of each.
class Driver {
 public:
  Driver(std::shared_ptr<const Model> model, std::uint64_t seed) : model_(std::move(model)), random_(seed) {
    for (auto& session : sessions_) session = std::make_unique<Session>(model_, 0);
  }

  void call() {
    const std::size_t i = static_cast<std::size_t>(random_.below(kSessions));
    Session& session = *sessions_[i];
    switch (random_.below(8)) {
      case 0:
      case 1:
        feed(session, some_tokens(session, 1), {});
        break;
      case 2:
        feed(session, some_tokens(session, 2 + random_.below(20)), {});
        break;
      case 3:
        sessions_[i] = sessions_[static_cast<std::size_t>(random_.below(kSessions))]->fork(tiny::no_poll);
        break;
      case 4:
        session.rewind(random_.below(session.position() + 1), tiny::no_poll);
        break;
      case 5:
        pass_over_all();
        break;
      case 6:
        feed_watched(session);
        break;
      default:
        fail(session);
    }
    record(*sessions_[i]);
  }

  // A hash after each call.
  const std::vector<std::uint64_t>& log() const { return log_; }

 private:
  Tokens some_tokens(Session& session, std::int64_t count) {
    if (session.position() + count > session.context()) session.rewind(random_.below(5), tiny::no_poll);
    return tiny::tokens(count, random_.next());
  }

  std::int64_t some_chunk() {
    constexpr std::int64_t kChunks[] = {1, 3, 8, 128};
    return kChunks[random_.below(4)];
  }

  void feed(Session& session, const Tokens& tokens, const Hooks& hooks) {
    std::vector<float> logits;
    if (random_.below(2) == 0) logits.resize(tokens.size() * static_cast<std::size_t>(model_->config().vocab_size));
    const Work work{&session, tokens, logits.empty() ? nullptr : logits.data()};
    llama2cpp::run({&work, 1}, hooks, tiny::no_poll, some_chunk());
    add(tiny::bits_of(logits));
  }

  void pass_over_all() {
    std::vector<Tokens> tokens;
    std::vector<Work> work;
    for (const auto& session : sessions_) tokens.push_back(some_tokens(*session, 1 + random_.below(4)));
    for (std::size_t s = 0; s < kSessions; ++s) work.push_back({sessions_[s].get(), tokens[s], nullptr});
    llama2cpp::run(work, {}, tiny::no_poll, some_chunk());
    for (const auto& session : sessions_) record(*session);
  }

  // A hook that edits and, while the backend is free for others, runs a session of its own.
  void feed_watched(Session& session) {
    const Tokens tokens = some_tokens(session, 1 + random_.below(6));
    Session other(model_, 0);
    Hooks hooks(model_->config(), model_->backend(), [&](Point, std::int64_t, const Tensor& t, const HookSpan&) {
      add(tiny::bits_of({t.row(0), static_cast<std::size_t>(t.rows() * t.columns())}));
      *t.row(0) += 0.5F;
      if (other.position() < 4) tiny::feed(other, {other.position() % 2 == 0 ? 3 : 4});
    });
    for (std::int64_t layer = 0; layer < model_->config().n_layers; ++layer) {
      hooks.watch(static_cast<Point>(1 + random_.below(20)), layer);  // resid_pre to resid_post: in every layer
    }
    feed(session, tokens, hooks);
    record(other);
  }

  // Calls that throw must leave the session alone.
  void fail(Session& session) {
    const Tokens tokens = some_tokens(session, 3);
    const Tokens tokens_before = session.tokens();
    const tiny::Bits logits_before = tiny::logits_of(session);
    Hooks hooks(model_->config(), model_->backend(),
                [](Point, std::int64_t, const Tensor&, const HookSpan&) { throw std::runtime_error("stop here"); });
    hooks.watch(Point::mlp_out, 1);
    bool threw = false;
    try {
      feed(session, tokens, hooks);
    } catch (const std::runtime_error&) {
      threw = true;
    }
    add({threw && session.tokens() == tokens_before && tiny::logits_of(session) == logits_before ? 1U : 0U});
    if (!threw) std::puts("a hook's exception was lost");
  }

  void add(const tiny::Bits& bits) {
    for (const std::uint32_t word : bits) hash_ = (hash_ ^ word) * 1099511628211ULL;
  }

  void record(const Session& session) {
    add({static_cast<std::uint32_t>(session.position())});
    add(tiny::logits_of(session));
    log_.push_back(hash_);
  }

  std::shared_ptr<const Model> model_;
  tiny::Random random_;
  std::unique_ptr<Session> sessions_[kSessions];
  std::uint64_t hash_ = 14695981039346656037ULL;
  std::vector<std::uint64_t> log_;
};

void on_all_threads(const std::function<void(int)>& work) {
  std::latch start(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      start.arrive_and_wait();
      work(t);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::shared_ptr<const Model> model_of(int pool, bool int8) {
  return tiny::model(tiny::config(), {.threads = pool, .kv_dtype = int8 ? "f16" : "f32"}, 1, int8 ? 2 : 0);
}

// Sessions of their own: the same calls on one thread and on eight.
int count_differences(int pool, bool int8, std::uint64_t seed, int calls) {
  const auto model = model_of(pool, int8);
  const auto alone = model_of(1, int8);
  const auto seed_of = [&](int t) { return seed * 1000 + static_cast<std::uint64_t>(t); };
  std::vector<std::vector<std::uint64_t>> logs(kThreads);
  on_all_threads([&](int t) {
    Driver driver(model, seed_of(t));
    for (int call = 0; call < calls; ++call) driver.call();
    logs[static_cast<std::size_t>(t)] = driver.log();
  });
  int differences = 0;
  for (int t = 0; t < kThreads; ++t) {
    Driver driver(alone, seed_of(t));
    for (int call = 0; call < calls; ++call) driver.call();
    if (driver.log() == logs[static_cast<std::size_t>(t)]) continue;
    ++differences;
    std::printf("thread %d of seed %llu: other bits than alone\n", t, static_cast<unsigned long long>(seed));
  }
  return differences;
}

// First use: all threads find the weights unpacked, and there are enough of them that packing takes a while.
int count_packing_races(int pool, std::uint64_t seed) {
  llama2cpp::Config config = tiny::config();
  config.dim = 144;
  config.hidden_dim = 1000;
  config.vocab_size = 1000;
  const auto model = tiny::model(config, {.threads = pool, .pack = "always"}, seed);
  const Tokens tokens = tiny::tokens(3, seed);
  std::vector<tiny::Bits> logits(kThreads);
  on_all_threads([&](int t) {
    Session session(model, 0);
    tiny::feed(session, tokens);
    logits[static_cast<std::size_t>(t)] = tiny::logits_of(session);
  });
  Session session(tiny::model(config, {.threads = 1, .pack = "never"}, seed), 0);
  tiny::feed(session, tokens);
  const auto wrong = kThreads - std::count(logits.begin(), logits.end(), tiny::logits_of(session));
  if (wrong != 0) std::printf("%d threads that met unpacked weights have other bits than alone\n", int(wrong));
  return static_cast<int>(wrong);
}

// What Python threads do to a model that nobody has used yet, all at once: feed it, look at its weights, make edited ones
// of it, unembed, and be interrupted while they wait; and hooks of one thread use the sessions of others.
int count_shared_uses(int pool, std::uint64_t seed, int calls) {
  const auto alone = tiny::model(tiny::config(), {.threads = 1, .pack = "never"}, seed);
  const auto model = tiny::model(tiny::config(), {.threads = pool, .pack = "always"}, seed);
  const llama2cpp::Config& config = alone->config();
  const std::vector<float> x(static_cast<std::size_t>(3 * config.dim), 0.5F);
  std::vector<float> expected(static_cast<std::size_t>(3 * config.vocab_size));
  llama2cpp::unembed(*alone, x, true, expected, tiny::no_poll);
  std::vector<std::unique_ptr<Session>> sessions;
  for (int t = 0; t < kThreads; ++t) sessions.push_back(std::make_unique<Session>(model, 4096));
  std::atomic<int> wrong{0};
  const auto bytes = model->matrix_bytes();
  on_all_threads([&](int t) {
    tiny::Random random(seed * 1000 + 700 + static_cast<std::uint64_t>(t));
    for (int call = 0; call < calls; ++call) {
      Session& mine = *sessions[static_cast<std::size_t>(t)];
      Session& other = *sessions[static_cast<std::size_t>(random.below(kThreads))];
      switch (random.below(6)) {
        case 0: {
          std::vector<float> logits(expected.size());
          llama2cpp::unembed(*model, x, true, logits, tiny::no_poll);
          wrong += logits == expected ? 0 : 1;
          break;
        }
        case 1: {
          wrong += model->matrix_bytes() == bytes ? 0 : 1;
          std::vector<float> row(static_cast<std::size_t>(config.dim));
          model->checkpoint()
              .weight(llama2cpp::Part::tok_embeddings)
              .decode_row(random.below(config.vocab_size), row.data());
          break;
        }
        case 2: {
          const Model edited(*model, {}, false, tiny::no_poll);
          wrong += edited.matrix_bytes() == bytes ? 0 : 1;
          break;
        }
        case 3: {  // whoever waits may be called away
          const Tokens tokens = tiny::tokens(2, random.next());
          const Work work[] = {{&mine, tokens, nullptr}, {&other, tokens, nullptr}};
          const std::size_t count = &mine == &other ? 1 : 2;
          try {
            llama2cpp::run({work, count}, {}, [] { throw std::runtime_error("interrupted"); });
          } catch (const std::runtime_error&) {
          }
          break;
        }
        case 4: {  // circles of any size: some are told
          Hooks hooks(config, model->backend(), [&](Point, std::int64_t, const Tensor&, const HookSpan&) {
            if (&mine != &other) tiny::feed(other, {3});
          });
          hooks.watch(Point::resid_post, 0);
          const Tokens tokens = {5};
          const Work work{&mine, tokens, nullptr};
          try {
            llama2cpp::run({&work, 1}, hooks, tiny::no_poll);
          } catch (const std::runtime_error&) {
          }
          break;
        }
        default:
          static_cast<void>(other.fork(tiny::no_poll)->position());
      }
    }
  });
  for (const auto& session : sessions) {
    if (session->position() == 0) continue;
    Session again(alone, 4096);
    tiny::feed(again, session->tokens());
    wrong += tiny::logits_of(again) == tiny::logits_of(*session) ? 0 : 1;
  }
  if (wrong != 0) std::printf("%d results of a shared model differ\n", wrong.load());
  return wrong;
}

struct Snapshot {
  Tokens tokens;
  tiny::Bits logits;
};

// Two sessions that all threads feed, fork and look at: the order is anyone's, but what a session holds must be what
// its tokens give.
int count_torn_states(int pool, bool int8, std::uint64_t seed, int calls) {
  const auto model = model_of(pool, int8);
  const auto alone = model_of(1, int8);
  constexpr std::int64_t kContext = 4096;
  Session first(model, kContext);
  Session second(model, kContext);
  std::mutex mutex;
  std::vector<Snapshot> snapshots;
  on_all_threads([&](int t) {
    tiny::Random random(seed * 1000 + 500 + static_cast<std::uint64_t>(t));
    for (int call = 0; call < calls; ++call) {
      const Tokens tokens = tiny::tokens(1 + random.below(2), random.next());
      const Work one{&first, tokens, nullptr};
      const Work two{&second, tokens, nullptr};
      switch (random.below(5)) {
        case 0:
          llama2cpp::run(std::vector<Work>{one, two}, {}, tiny::no_poll);
          break;
        case 1:
          llama2cpp::run(std::vector<Work>{two, one}, {}, tiny::no_poll);
          break;
        case 2:
          tiny::feed(random.below(2) == 0 ? first : second, tokens);
          break;
        case 3: {
          const auto fork = first.fork(tiny::no_poll);
          const std::lock_guard lock(mutex);
          snapshots.push_back({fork->tokens(), tiny::logits_of(*fork)});
          break;
        }
        default:
          static_cast<void>(second.position());
          static_cast<void>(tiny::logits_of(second));
      }
    }
  });
  snapshots.push_back({first.tokens(), tiny::logits_of(first)});
  snapshots.push_back({second.tokens(), tiny::logits_of(second)});

  int torn = 0;
  for (const Snapshot& snapshot : snapshots) {
    if (snapshot.tokens.empty()) continue;
    Session session(alone, kContext);
    tiny::feed(session, snapshot.tokens);
    if (tiny::logits_of(session) == snapshot.logits) continue;
    ++torn;
    std::printf("a shared session at position %zu: its logits are not its tokens'\n", snapshot.tokens.size());
  }
  return torn;
}

int argument(int argc, char** argv, int index, int otherwise) {
  return index < argc ? std::max(1, std::atoi(argv[index])) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argument(argc, argv, 1, 3);
  const int calls = argument(argc, argv, 2, 60);
  const int first_seed = argument(argc, argv, 3, 1);
  int wrong = 0;
  for (int round = 0; round < rounds; ++round) {
    const auto seed = static_cast<std::uint64_t>(first_seed + round);
    const int pool = 1 + (round + 1) % 3;  // 2, 3, 1
    wrong += count_packing_races(pool, seed);
    wrong += count_shared_uses(pool, seed, calls);
    const bool int8 = round % 2 == 1;
    wrong += count_differences(pool, int8, seed, calls);
    wrong += count_torn_states(pool, int8, seed, calls / 2);
  }
  std::printf("stress: %d rounds, %d threads x %zu sessions, %d calls each: %d differences\n", rounds, kThreads,
              kSessions, calls, wrong);
  return wrong == 0 ? 0 : 1;
}
