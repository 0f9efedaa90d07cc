# For CMAKE_USER_MAKE_RULES_OVERRIDE, which is read after CMake's own rules for macOS.
set(CMAKE_SHARED_MODULE_CREATE_CXX_FLAGS "-shared")
