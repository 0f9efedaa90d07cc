// doctest's main.
#include <cfloat>  // doctest 2.4.9 uses DBL_EPSILON without it, which not every C++ library forgives

#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
