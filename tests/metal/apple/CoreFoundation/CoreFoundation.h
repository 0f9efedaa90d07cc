// What metal-cpp uses of CoreFoundation, for tests/slow.sh macos: no package for Linux has Apple's frameworks.
#pragma once

#include <TargetConditionals.h>
#include <dispatch/dispatch.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef double CFTimeInterval;
