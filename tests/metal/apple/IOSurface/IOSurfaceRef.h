// What metal-cpp uses of IOSurface: the name of a type that is only pointed to.
#pragma once

typedef struct __IOSurface* IOSurfaceRef;
