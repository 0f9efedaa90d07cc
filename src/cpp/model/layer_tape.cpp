// The forward normalises, turns and gates in place: what was there before is kept here.
#include "model/layer_tape.h"

#include <algorithm>
#include <utility>

#include "model/views.h"

namespace llama2cpp {
namespace {

std::vector<Point> norms_of(const Config& c) {
  std::vector<Point> points;
  for (const Point point :
       {Point::ln1_scale, Point::ln1_normalized, Point::ln2_scale, Point::ln2_normalized, Point::ln1_post_scale,
        Point::ln1_post_normalized, Point::ln2_post_scale, Point::ln2_post_normalized}) {
    if (has_point(point, c)) points.push_back(point);
  }
  return points;
}

std::vector<Point> points_of(const Config& c) {
  std::vector<Point> points = norms_of(c);
  points.push_back(Point::mlp_pre);
  if (c.qk_norm == QkNorm::head_after_rope) {
    points.insert(points.end(), {Point::rot_q, Point::rot_k});
  } else if (c.qk_norm != QkNorm::none) {
    points.insert(points.end(), {Point::q, Point::k});
  }
  return points;
}

// Floats of a token.
std::int64_t width_of(Point point, const Config& c) {
  const PointShape shape = point_shape(point, c);
  return std::max<std::int64_t>(shape.heads, 1) * shape.width;
}

double bytes_of(const std::vector<Point>& points, const Config& c, std::int64_t tokens) {
  double floats = 0.0;
  for (const Point point : points) {
    floats += static_cast<double>(tokens) * static_cast<double>(width_of(point, c)) + Views::kLine;
  }
  return floats * sizeof(float);
}

}  // namespace

double LayerTape::bytes(const Config& config, std::int64_t tokens) {
  return bytes_of(points_of(config), config, tokens);
}

LayerTape::LayerTape(const Config& config, Backend& backend, std::int64_t tokens)
    : LayerTape(config, backend, tokens, points_of(config)) {}

std::shared_ptr<LayerTape> LayerTape::of_norms(const Config& config, Backend& backend, std::int64_t tokens) {
  return std::shared_ptr<LayerTape>(new LayerTape(config, backend, tokens, norms_of(config)));
}

LayerTape::LayerTape(const Config& config, Backend& backend, std::int64_t tokens, std::vector<Point> points)
    : Hook(Kind::look),
      config_(config),
      backend_(backend),
      points_(std::move(points)),
      memory_(backend.alloc(static_cast<std::size_t>(bytes_of(points_, config, tokens)))) {
  Views view(memory_);
  for (const Point point : points_) {
    kept_[static_cast<std::size_t>(point)] = view(tokens, width_of(point, config));
  }
}

PlaceSet LayerTape::places() const {
  PlaceSet set(config_.n_layers);
  for (std::int64_t layer = 0; layer < config_.n_layers; ++layer) {
    for (const Point point : points_) set.add({point, layer});
  }
  return set;
}

void LayerTape::at(Point point, std::int64_t /*layer*/, const Tensor& activation, const HookSpan& span) {
  Tensor& to = kept_[static_cast<std::size_t>(point)];
  const std::int64_t floats = activation.rows() * activation.columns();
  to.shape[0] = span.count;
  backend_.parallel_for(span.count, floats * static_cast<std::int64_t>(sizeof(float)),
                        [&](std::int64_t begin, std::int64_t end) {
                          const std::int64_t width = to.columns();
                          std::copy(activation.row(0) + begin * width, activation.row(0) + end * width, to.row(begin));
                        });
}

}  // namespace llama2cpp
