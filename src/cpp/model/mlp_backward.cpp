// Back through the MLP.
#include "model/backward.h"

namespace llama2cpp {

void Backward::mlp(const LayerWeights& l, std::int64_t i, const Tensor& read) {
  be.scale(g.stream, 1.0F, g.added);
  see(Point::mlp_out, i, g.added);
  norm_after(l.ffn_post_norm, kLn2Post, i);
  const Tensor& gate = tape[Point::mlp_pre];
  back({&l.w2}, {g.added}, g.gate);  // [T, dim] -> [T, hidden_dim]
  see(Point::mlp_post, i, g.gate);
  if (c.gated) {
    ops.gated_gradient(c.activation, gate, a.up, g.gate, g.up);
    see(Point::mlp_pre_linear, i, g.up);
    see(Point::mlp_pre, i, g.gate);
    back({&l.w1, &l.w3}, {g.gate, g.up}, read);
  } else {
    ops.activate_gradient(c.activation, gate, g.gate);
    see(Point::mlp_pre, i, g.gate);
    back({&l.w3}, {g.gate}, read);
  }
}

}  // namespace llama2cpp
