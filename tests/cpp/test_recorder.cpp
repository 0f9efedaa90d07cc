// Recorder alone: calls made by hand, whose activations say which call, place and position they are of. Then with a
// model: forks, rewinds and calls that fail give what a capture of the same tokens gives.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "observe/capture.h"
#include "observe/recorder.h"
#include "tiny_model.h"

using llama2cpp::Config;
using llama2cpp::Feed;
using llama2cpp::Hooks;
using llama2cpp::HookSpan;
using llama2cpp::OutOfMemoryError;
using llama2cpp::Place;
using llama2cpp::Point;
using llama2cpp::Recorder;
using llama2cpp::RecorderHook;
using llama2cpp::Session;
using llama2cpp::Tensor;
using llama2cpp::Track;
using llama2cpp::Work;
using Tokens = std::vector<std::int32_t>;

namespace {

const std::vector<Place> kPlaces = {
    {Point::resid_post, 0}, {Point::pattern, 1}, {Point::z, 2}, {Point::attn_scores, 1}};

std::shared_ptr<Recorder> recorder_of(const std::vector<Place>& places = kPlaces) {
  return std::make_shared<Recorder>(tiny::config(), places);
}

// The number that a made-up activation has everywhere in a token's part.
float mark(int call, std::size_t place, std::int64_t position) {
  return static_cast<float>(call * 1024 + static_cast<int>(place) * 256 + position);
}

// Shows a recording the activations of `count` tokens at `position`, as forward.cpp would.
void show(RecorderHook& recording, const Recorder& recorder, std::size_t sequence, std::int64_t position,
          std::int64_t count, int call) {
  const Config c = tiny::config();
  for (std::size_t i = 0; i < recorder.places().size(); ++i) {
    const Place place = recorder.places()[i];
    const llama2cpp::PointShape shape = llama2cpp::point_shape(place.point, c);
    const bool pattern = llama2cpp::is_pattern(place.point);
    const std::int64_t heads = std::max<std::int64_t>(shape.heads, 1);
    const std::int64_t width = pattern ? position + count : shape.width;
    std::vector<float> memory(static_cast<std::size_t>(heads * count * width));
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t t = 0; t < count; ++t) {
        // Patterns are [heads, T, keys], the others [T, heads, width].
        const std::int64_t row = pattern ? head * count + t : t * heads + head;
        std::fill_n(memory.begin() + row * width, width, mark(call, i, position + t));
      }
    }
    const Tensor tensor =
        pattern ? Tensor(memory.data(), {heads, count, width}) : Tensor(memory.data(), {count, heads * width});
    recording.at(place.point, place.layer, tensor, {0, count, position, sequence});
  }
}

enum class End { succeeds, fails };

// One call that feeds `tokens` after `before` to one track, in passes of two tokens.
void call(const std::shared_ptr<Recorder>& recorder, const std::shared_ptr<Track>& track, const Tokens& before,
          const Tokens& tokens, int number, End end = End::succeeds) {
  RecorderHook recording(recorder, {track});
  const Feed feed{before, tokens};
  recording.begin({&feed, 1});
  const auto first = static_cast<std::int64_t>(before.size());
  const auto all = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t t = 0; t < all; t += 2) {
    show(recording, *recorder, 0, first + t, std::min<std::int64_t>(2, all - t), number);
    if (end == End::fails && t >= all / 2) return;
  }
  if (end == End::succeeds) recording.succeeded();
}

// Which call each recorded position is of.
using Calls = std::map<std::int64_t, int>;

// Whether a track has exactly these, at all places and in every number of theirs.
bool holds(const Recorder& recorder, const Track& track, const Tokens& tokens, const Calls& calls) {
  const Track::Rows recorded = track.rows();
  if (recorded.tokens != tokens || recorded.rows.size() != calls.size()) return false;
  for (std::size_t i = 0; i < recorder.places().size(); ++i) {
    const Place place = recorder.places()[i];
    const std::vector<std::int64_t> shape = recorder.shape(place, recorded.rows);
    const bool pattern = llama2cpp::is_pattern(place.point);
    const std::int64_t size = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
    std::vector<float> values(static_cast<std::size_t>(size), -7.0F);
    recorder.copy(place, recorded.rows, values.data());
    std::vector<float> expected;
    const std::int64_t keys = calls.empty() ? 0 : calls.rbegin()->first + 1;
    const float masked = place.point == Point::attn_scores ? -std::numeric_limits<float>::infinity() : 0.0F;
    for (std::int64_t head = 0; head < (pattern ? tiny::config().n_heads : 1); ++head) {
      for (const auto& [position, number] : calls) {
        const auto width = static_cast<std::size_t>(pattern ? keys : size / static_cast<std::int64_t>(calls.size()));
        const auto unmasked = pattern ? static_cast<std::size_t>(position + 1) : width;
        expected.insert(expected.end(), unmasked, mark(number, i, position));
        expected.insert(expected.end(), width - unmasked, masked);
      }
    }
    if (values != expected) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("a recording has what was shown, call after call") {
  const auto recorder = recorder_of();
  const auto track = std::make_shared<Track>();
  CHECK(holds(*recorder, *track, {}, {}));
  call(recorder, track, {}, {5, 6, 7}, 1);
  CHECK(holds(*recorder, *track, {5, 6, 7}, {{0, 1}, {1, 1}, {2, 1}}));
  call(recorder, track, {5, 6, 7}, {8}, 2);
  CHECK(track->size() == 4);
  CHECK(holds(*recorder, *track, {5, 6, 7, 8}, {{0, 1}, {1, 1}, {2, 1}, {3, 2}}));
}

TEST_CASE("tokens in the place of others replace them, and tokens that nobody recorded leave a gap") {
  const auto recorder = recorder_of();
  const auto track = std::make_shared<Track>();
  call(recorder, track, {}, {5, 6, 7}, 1);
  call(recorder, track, {5}, {9}, 2);  // rewound
  CHECK(holds(*recorder, *track, {5, 9}, {{0, 1}, {1, 2}}));
  call(recorder, track, {5, 9, 3, 4}, {6}, 3);  // 3 and 4 were fed while it was off
  CHECK(holds(*recorder, *track, {5, 9, 3, 4, 6}, {{0, 1}, {1, 2}, {4, 3}}));
  call(recorder, track, {5, 9, 3, 8}, {6}, 4);  // another token where none was recorded
  CHECK(holds(*recorder, *track, {5, 9, 3, 8, 6}, {{0, 1}, {1, 2}, {4, 4}}));
  call(recorder, track, {1}, {2}, 5);  // another beginning
  CHECK(holds(*recorder, *track, {1, 2}, {{1, 5}}));
  call(recorder, track, {}, {1, 2}, 6);
  CHECK(holds(*recorder, *track, {1, 2}, {{0, 6}, {1, 6}}));
}

TEST_CASE("a fork begins with what its parent has, and then they are apart") {
  const auto recorder = recorder_of();
  const auto track = std::make_shared<Track>();
  call(recorder, track, {}, {5, 6}, 1);
  const auto fork = track->fork();
  call(recorder, track, {5, 6}, {7}, 2);
  call(recorder, fork, {5}, {8, 9}, 3);
  CHECK(holds(*recorder, *track, {5, 6, 7}, {{0, 1}, {1, 1}, {2, 2}}));
  CHECK(holds(*recorder, *fork, {5, 8, 9}, {{0, 1}, {1, 3}, {2, 3}}));
}

TEST_CASE("a call that fails leaves nothing, and gives its memory back") {
  const auto recorder = recorder_of();
  const auto track = std::make_shared<Track>();
  call(recorder, track, {}, {5, 6}, 1);
  const std::int64_t taken = recorder->bytes_taken();
  for (int i = 0; i < 3; ++i) {
    call(recorder, track, {5}, {9, 9, 9, 9}, 2, End::fails);
    CHECK(recorder->bytes_taken() == taken);
    CHECK(holds(*recorder, *track, {5, 6}, {{0, 1}, {1, 1}}));
  }
  call(recorder, track, {5, 6}, {7}, 3);
  CHECK(holds(*recorder, *track, {5, 6, 7}, {{0, 1}, {1, 1}, {2, 3}}));
}

TEST_CASE("one call feeds several sequences, of which some are recorded") {
  const auto recorder = recorder_of();
  const std::vector<std::shared_ptr<Track>> tracks = {std::make_shared<Track>(), nullptr, std::make_shared<Track>()};
  RecorderHook recording(recorder, tracks);
  const Tokens before = {1, 2};
  const Tokens tokens = {3, 4};
  const std::vector<Feed> feeds = {{{}, tokens}, {before, tokens}, {before, tokens}};
  recording.begin(feeds);
  for (const std::size_t s : {2U, 0U, 1U}) show(recording, *recorder, s, s == 0 ? 0 : 2, 2, static_cast<int>(s));
  recording.succeeded();
  CHECK(holds(*recorder, *tracks[0], {3, 4}, {{0, 0}, {1, 0}}));
  CHECK(holds(*recorder, *tracks[2], {1, 2, 3, 4}, {{2, 2}, {3, 2}}));
}

TEST_CASE("any order of calls, rewinds, forks and failures") {
  tiny::Random random(3);
  const auto recorder = recorder_of();
  struct Sequence {
    Tokens tokens;  // the session's
    std::shared_ptr<Track> track = std::make_shared<Track>();
    Tokens known;  // what its track should have
    Calls calls;
  };
  std::vector<Sequence> sequences(4);
  bool right = true;
  for (int number = 1; number < 600; ++number) {
    const auto which = static_cast<std::size_t>(random.below(4));
    Sequence& s = sequences[which];
    const Tokens tokens = tiny::tokens(1 + random.below(5), random.next(), 3);
    switch (s.tokens.size() > 40 ? 0 : random.below(5)) {
      case 0:
        s.tokens.erase(s.tokens.begin() + random.below(static_cast<std::int64_t>(s.tokens.size()) + 1), s.tokens.end());
        break;
      case 1: {  // with the recording on
        Sequence& parent = sequences[static_cast<std::size_t>(random.below(4))];
        s = {parent.tokens, parent.track->fork(), parent.known, parent.calls};
        break;
      }
      case 2:  // with the recording off
        s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
        break;
      case 3:
        call(recorder, s.track, s.tokens, tokens, number, End::fails);
        break;
      default: {
        call(recorder, s.track, s.tokens, tokens, number);
        const auto differ = std::mismatch(s.known.begin(), s.known.end(), s.tokens.begin(), s.tokens.end());
        s.calls.erase(s.calls.lower_bound(differ.first - s.known.begin()), s.calls.end());
        for (std::size_t t = 0; t < tokens.size(); ++t) {
          s.calls[static_cast<std::int64_t>(s.tokens.size())] = number;
          s.tokens.push_back(tokens[t]);
        }
        s.known = s.tokens;
      }
    }
    right = right && holds(*recorder, *s.track, s.known, s.calls);
  }
  CHECK(right);
}

TEST_CASE("what memory it takes is known beforehand") {
  const auto recorder = recorder_of();
  const auto track = std::make_shared<Track>();
  CHECK(recorder->bytes_taken() == 0);
  const double tokens = recorder->bytes(0, 50);
  recorder->reserve(tokens);
  CHECK(recorder->bytes_taken() == 0);  // it is there, and nobody has taken any
  call(recorder, track, {}, tiny::tokens(50, 1), 1);
  const auto taken = static_cast<double>(recorder->bytes_taken());
  CHECK(taken <= tokens);
  CHECK(taken + 50 * 60 >= tokens);
  double floats = 0;
  for (std::int64_t position = 0; position < 50; ++position) {
    floats += static_cast<double>(recorder->row_floats(position));
  }
  CHECK(taken == floats * sizeof(float));

  CHECK_THROWS_AS(recorder->reserve(1e18), OutOfMemoryError);
  CHECK_THROWS_AS(recorder->reserve(std::numeric_limits<double>::infinity()), OutOfMemoryError);
  CHECK(static_cast<double>(recorder->bytes_taken()) == taken);
  CHECK(recorder->bytes(0, std::numeric_limits<std::int64_t>::max()) > 1e30);
}

TEST_CASE("rows outlive the recorder, and new blocks of memory do not move them") {
  const auto track = std::make_shared<Track>();
  Track::Rows early;
  {
    const auto recorder = recorder_of();
    call(recorder, track, {}, {5, 6}, 1);
    early = track->rows();
    recorder->reserve(2e7);  // a block of its own
    call(recorder, track, {5, 6}, {7}, 2);
    CHECK(track->rows().rows[2].memory.data() != early.rows[0].memory.data());
    CHECK(track->rows().rows[0].data == early.rows[0].data);
    const std::int64_t floats = recorder->row_floats(0) + recorder->row_floats(1) + recorder->row_floats(2);
    CHECK(recorder->bytes_taken() == floats * 4);  // and not what was left of the block before
    CHECK(holds(*recorder, *track, {5, 6, 7}, {{0, 1}, {1, 1}, {2, 2}}));
  }
  CHECK(early.rows[1].data[0] == mark(1, 0, 1));
  CHECK(track->rows().rows[2].data[0] == mark(2, 0, 2));
}

TEST_CASE("what the last norm was not asked for is NaN") {
  const auto recorder = recorder_of({{Point::ln_final_scale, 2}, {Point::resid_post, 2}});
  const auto track = std::make_shared<Track>();
  RecorderHook recording(recorder, {track});
  const Tokens tokens = {1, 2, 3};
  const Feed feed{{}, tokens};
  recording.begin({&feed, 1});
  float scale = 5;
  recording.at(Point::ln_final_scale, 2, Tensor(&scale, {1, 1}), {0, 1, 2, 0});  // the last token's logits
  recording.succeeded();
  const Track::Rows rows = track->rows();
  float scales[3] = {};
  recorder->copy({Point::ln_final_scale, 2}, rows.rows, scales);
  CHECK(std::isnan(scales[0]));
  CHECK(std::isnan(scales[1]));
  CHECK(scales[2] == 5);
}

TEST_CASE("a recorder's arguments are checked") {
  CHECK_THROWS_AS(recorder_of({{Point::z, 1}, {Point::z, 0}, {Point::z, 1}}), std::invalid_argument);
  const auto recorder = recorder_of();
  RecorderHook recording(recorder, {std::make_shared<Track>()});
  const std::vector<Feed> feeds(2);
  CHECK_THROWS_AS(recording.begin(feeds), std::invalid_argument);
  CHECK(recorder->bytes_taken() == 0);
  CHECK(recorder_of({})->bytes(0, 10) == 10 * 60);  // nothing but the rounding that it allows for
}

TEST_CASE("a model's recording has the bits of a capture, across forks, rewinds and calls that fail") {
  const auto model = tiny::model(2);
  const Config& c = model->config();
  const std::vector<Place> places = llama2cpp::all_places(c.n_layers);
  const auto recorder = std::make_shared<Recorder>(c, places);
  const auto feed = [&](Session& session, const std::shared_ptr<Track>& track, const Tokens& tokens, bool fails) {
    Hooks hooks(c, model->backend(), [&](Point, std::int64_t, const Tensor&, const HookSpan&) {
      if (fails) throw std::runtime_error("stop here");
    });
    hooks.watch(Point::mlp_out, 1);
    const auto recording = std::make_shared<RecorderHook>(recorder, std::vector<std::shared_ptr<Track>>{track});
    hooks.add(recording, recording->places());
    std::vector<float> logits(tokens.size() * static_cast<std::size_t>(c.vocab_size));  // so that ln_final is there
    const Work work{&session, tokens, logits.data()};
    llama2cpp::run({&work, 1}, hooks, tiny::no_poll);
  };
  const auto same_as_capture = [&](const Session& session, const Track& track) {
    const Tokens tokens = session.tokens();
    const Track::Rows recorded = track.rows();
    const auto count = static_cast<std::int64_t>(tokens.size());
    const auto capture = std::make_shared<llama2cpp::Capture>(c, places, 1, count, std::vector<std::int64_t>{});
    std::vector<float> memory(static_cast<std::size_t>(capture->floats()));
    capture->write_to(memory.data(), model->backend());
    Hooks hooks(c, model->backend());
    hooks.add(capture, capture->places());
    Session fresh(model, 0);
    std::vector<float> logits(tokens.size() * static_cast<std::size_t>(c.vocab_size));
    const Work work{&fresh, tokens, logits.data()};
    llama2cpp::run({&work, 1}, hooks, tiny::no_poll);
    bool same = recorded.tokens == tokens && recorded.rows.size() == tokens.size();
    for (std::size_t i = 0; same && i < places.size(); ++i) {
      const auto& shape = capture->slots()[i].shape;
      const auto size =
          static_cast<std::size_t>(std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>()));
      std::vector<float> copied(size);
      recorder->copy(places[i], recorded.rows, copied.data());
      same = tiny::bits_of(copied) == tiny::bits_of({memory.data() + capture->slots()[i].begin, size});
    }
    return same;
  };

  Session session(model, 0);
  const auto track = std::make_shared<Track>();
  feed(session, track, {1, 2, 3, 4, 5}, false);
  CHECK(same_as_capture(session, *track));
  const auto fork = session.fork(tiny::no_poll);
  const auto fork_track = track->fork();
  session.rewind(2, tiny::no_poll);
  feed(session, track, {7, 8}, false);
  CHECK_THROWS_AS(feed(session, track, {9, 10}, true), std::runtime_error);
  CHECK(same_as_capture(session, *track));
  feed(*fork, fork_track, {6}, false);
  CHECK_THROWS_AS(feed(*fork, fork_track, {9}, true), std::runtime_error);
  feed(*fork, fork_track, {11, 12, 13}, false);
  CHECK(same_as_capture(*fork, *fork_track));
  CHECK(same_as_capture(session, *track));
}

TEST_CASE("threads record with one recorder, while others look and fork") {
  const auto recorder = recorder_of();
  constexpr int kThreads = 4;
  std::vector<std::shared_ptr<Track>> tracks;
  for (int t = 0; t < kThreads; ++t) tracks.push_back(std::make_shared<Track>());
  std::atomic<int> wrong = 0;
  std::atomic<bool> done = false;
  std::thread looker([&] {
    while (!done) {
      for (const auto& track : tracks) {
        const auto fork = track->fork();
        const Track::Rows rows = fork->rows();
        for (const Track::Row& row : rows.rows) wrong += std::isfinite(row.data[0]) ? 0 : 1;
      }
      wrong += recorder->bytes_taken() >= 0 ? 0 : 1;
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      tiny::Random random(static_cast<std::uint64_t>(t) + 1);
      Tokens tokens;
      Calls calls;
      const auto& track = tracks[static_cast<std::size_t>(t)];
      for (int number = 1; number < 150; ++number) {
        if (tokens.size() > 30) tokens.erase(tokens.begin() + random.below(10), tokens.end());
        calls.erase(calls.lower_bound(static_cast<std::int64_t>(tokens.size())), calls.end());
        const Tokens more = tiny::tokens(1 + random.below(6), random.next());
        call(recorder, track, tokens, more, number, End::fails);
        call(recorder, track, tokens, more, number);
        for (const std::int32_t token : more) {
          calls[static_cast<std::int64_t>(tokens.size())] = number;
          tokens.push_back(token);
        }
        if (!holds(*recorder, *track, tokens, calls)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  done = true;
  looker.join();
  CHECK(wrong == 0);
}
