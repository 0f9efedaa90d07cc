# macOS on Apple silicon, with the compiler, C library and C++ library that PyPI's ziglang brings. LLAMA2CPP_ZIG is the folder
# of tests/slow.sh's wrappers around it, LLAMA2CPP_STUBS that of Apple's frameworks as text stubs.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_C_COMPILER ${LLAMA2CPP_ZIG}/cc)
set(CMAKE_CXX_COMPILER ${LLAMA2CPP_ZIG}/c++)
set(CMAKE_AR ${LLAMA2CPP_ZIG}/ar)
set(CMAKE_RANLIB ${LLAMA2CPP_ZIG}/ranlib)
set(CMAKE_INSTALL_NAME_TOOL /bin/true)
set(CMAKE_OSX_SYSROOT "")
set(CMAKE_OSX_DEPLOYMENT_TARGET "" CACHE STRING "")
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES LLAMA2CPP_ZIG LLAMA2CPP_STUBS)
# Without -O zig turns the sanitizer of undefined behaviour on, whose functions macOS has not.
get_filename_component(LLAMA2CPP_APPLE ${CMAKE_CURRENT_LIST_DIR}/../metal/apple ABSOLUTE)
set(LLAMA2CPP_ZIG_FLAGS "-isystem ${LLAMA2CPP_APPLE} -target aarch64-macos.13.0 -mcpu=apple_m1 -fno-sanitize=undefined")
set(CMAKE_C_FLAGS_INIT "${LLAMA2CPP_ZIG_FLAGS}")
set(CMAKE_CXX_FLAGS_INIT "${LLAMA2CPP_ZIG_FLAGS}")
# zig's linker makes no bundles. macOS loads a dynamic library as a module of Python as well.
set(CMAKE_USER_MAKE_RULES_OVERRIDE ${CMAKE_CURRENT_LIST_DIR}/no_bundles.cmake)
foreach(kind EXE MODULE)
  set(CMAKE_${kind}_LINKER_FLAGS_INIT "-F${LLAMA2CPP_STUBS} -L${LLAMA2CPP_STUBS}")
endforeach()
