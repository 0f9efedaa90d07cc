// What the matmul kernels share: how far ahead they ask for memory, and how many panels go with a tile of tokens.

// How far ahead of the arithmetic memory is asked for: headers and planes are read side by side, which processors do not
// take for one stream. It is what memory delivers from asking to arrival (200 ns at 40 GB/s). Past the end of a weight's
// panels are those of the next, and past the end of all it is harmless.
constexpr std::int64_t kAhead = 8192;

// Asks for what is read next behind row k of P panels: further on in them or, past their end, in the P after them.
template <int P, class Block, class T>
inline void ask_next(const Block& b, const T* panels, std::int64_t k) {
  constexpr std::int64_t kRows = kAhead / (16 * static_cast<std::int64_t>(sizeof(T)));
  const T* next = panels + (k + kRows) * 16 + (k + kRows < b.n_k ? 0 : (P - 1) * b.panel_stride);
  for (int p = 0; p < P; ++p) prefetch(reinterpret_cast<const std::uint8_t*>(next + p * b.panel_stride));
}

// The same where there are at most two streams, which processors follow by themselves but for the ends of pages.
constexpr std::int64_t kStreamAhead = 2048;

template <class T>
inline void ask_on(const T* reads) {
  prefetch(reinterpret_cast<const std::uint8_t*>(reads) + kStreamAhead);
}

// How many panels a tile of N tokens takes: the fewer the tokens, the more panels.
constexpr int panels_for(int tokens) {
  const int panels = kTileTokens * kTilePanels / tokens;
  int power = 1;
  while (power * 2 <= panels && power * 2 <= kMostPanels) power *= 2;
  return power;
}
