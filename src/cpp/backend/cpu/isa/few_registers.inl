// What ISA files share that have too few registers to do it as AVX-512's do.

// How many keys are done for all queries together (see scores_of_many.inl): none.
template <class T>
std::int64_t score_many(const ScoresOf<T>&) {
  return 0;
}
