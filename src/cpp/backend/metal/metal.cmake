# The Metal kernels. Each listed file is a library; metal_sources.py puts what it includes in its place and makes strings of
# them, and for the software device (LLAMA2CPP_SOFT_METAL) C++ that clang compiles.
set(LLAMA2CPP_METAL_DIR ${CMAKE_CURRENT_LIST_DIR})
set(LLAMA2CPP_METAL_LIBRARIES
  attention.metal
  elementwise.metal
  norm.metal
  rope.metal
  formats/bf16.metal
  formats/f16.metal
  formats/f32.metal
  formats/gptq2.metal
  formats/gptq3.metal
  formats/gptq4.metal
  formats/gptq8.metal
  formats/int8_group.metal
  formats/q2_k.metal
  formats/q3_k.metal
  formats/q4_0.metal
  formats/q4_1.metal
  formats/q4_k.metal
  formats/q5_0.metal
  formats/q5_1.metal
  formats/q5_k.metal
  formats/q6_k.metal
  formats/q8_0.metal
)
list(TRANSFORM LLAMA2CPP_METAL_LIBRARIES PREPEND ${LLAMA2CPP_METAL_DIR}/kernels/)
set(LLAMA2CPP_METAL_HOST attention.cpp device.cpp memory_map.cpp metal_backend.cpp pass.cpp products.cpp self_test.cpp tools.cpp)
list(TRANSFORM LLAMA2CPP_METAL_HOST PREPEND ${LLAMA2CPP_METAL_DIR}/)
set(LLAMA2CPP_SHIM_DIR ${CMAKE_CURRENT_SOURCE_DIR}/tests/metal/shim)

# Adds the libraries' strings, metal_source.cpp, to a target; with DEVICE also the compiled kernels and their table.
#   llama2cpp_add_metal_libraries(target folder [DEVICE] file.metal...)   `folder`: where to write them
function(llama2cpp_add_metal_libraries target folder)
  cmake_parse_arguments(PARSE_ARGV 2 arg "DEVICE" "" "")
  set(files ${arg_UNPARSED_ARGUMENTS})
  find_package(Python COMPONENTS Interpreter REQUIRED)
  set(written ${folder}/metal_source.cpp)
  set(device "")
  if(arg_DEVICE)
    set(device --device)
    list(APPEND written ${folder}/libraries.cpp)
    foreach(file IN LISTS files)
      get_filename_component(name ${file} NAME_WE)
      # The .metal too: kernels are compiled from it, and an unchanged .cpp includes it.
      list(APPEND written ${folder}/${name}.cpp ${folder}/${name}.metal)
    endforeach()
  endif()
  # Any of them may be included by another.
  file(GLOB_RECURSE read CONFIGURE_DEPENDS ${LLAMA2CPP_METAL_DIR}/kernels/*.metal ${LLAMA2CPP_METAL_DIR}/kernels/*.h)
  add_custom_command(OUTPUT ${written}
    COMMAND ${Python_EXECUTABLE} ${LLAMA2CPP_METAL_DIR}/metal_sources.py ${device} ${folder} ${files}
    DEPENDS ${LLAMA2CPP_METAL_DIR}/metal_sources.py ${read} ${files}
    COMMENT "Metal kernels: sources"
    VERBATIM)
  target_sources(${target} PRIVATE ${folder}/metal_source.cpp)
  if(NOT arg_DEVICE)
    return()
  endif()
  target_sources(${target} PRIVATE ${folder}/libraries.cpp)
  # -fdeclspec: vectors have properties. -fsanitize=thread: a call at each access, for trace.cpp; nothing of it is linked.
  # No vectorizer: an access is as wide as the kernel has it. What a kernel does not set is NaN.
  set(flags -std=c++20 -O2 -march=x86-64-v3 -fPIC -fvisibility=hidden -fdeclspec -fno-exceptions -fno-rtti -fno-math-errno
    -fno-vectorize -fno-slp-vectorize -ftrivial-auto-var-init=pattern -Xclang -ffloat16-excess-precision=none
    -fsanitize=thread -mllvm -tsan-instrument-func-entry-exit=0
    -mllvm -tsan-instrument-read-before-write=1
    -Wall -Wextra -Wno-unknown-attributes -Wno-ignored-attributes -Wno-ignored-qualifiers
    -Wno-c23-extensions $<$<BOOL:${LLAMA2CPP_WERROR}>:-Werror>)
  foreach(file IN LISTS files)
    get_filename_component(name ${file} NAME_WE)
    foreach(contracted 0 1)
      set(object ${folder}/${name}_${contracted}.o)
      add_custom_command(OUTPUT ${object}
        COMMAND ${LLAMA2CPP_KERNEL_LAUNCHER} ${LLAMA2CPP_KERNEL_COMPILER} ${flags}
          -ffp-contract=$<IF:${contracted},fast,off> -DSOFT_CONTRACTED=${contracted} -I ${LLAMA2CPP_SHIM_DIR}
          -MD -MF ${object}.d -MT ${object} -c ${folder}/${name}.cpp -o ${object}
        DEPENDS ${folder}/${name}.cpp
        DEPFILE ${object}.d
        COMMENT "Metal kernels: ${name}, $<IF:${contracted},contracted,not contracted>"
        COMMAND_EXPAND_LISTS VERBATIM)
      set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
      target_sources(${target} PRIVATE ${object})
    endforeach()
  endforeach()
  target_include_directories(${target} PRIVATE ${LLAMA2CPP_SHIM_DIR})
endfunction()

if(APPLE AND LLAMA2CPP_CPU MATCHES "^(aarch64|arm64)$")
  include(${LLAMA2CPP_METAL_DIR}/apple.cmake)
endif()
if(LLAMA2CPP_SOFT_METAL)
  if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT LLAMA2CPP_CPU MATCHES "^(x86_64|amd64)$")
    message(FATAL_ERROR " LLAMA2CPP_SOFT_METAL: the software Metal device runs on Linux on x86-64, and this is "
      "${CMAKE_SYSTEM_NAME} on ${CMAKE_SYSTEM_PROCESSOR}")
  endif()
  if(LLAMA2CPP_SANITIZE MATCHES "thread")
    message(FATAL_ERROR " LLAMA2CPP_SOFT_METAL cannot be built with the thread sanitizer: the device itself defines what "
      "that one's library does")
  endif()
  if(LLAMA2CPP_SANITIZE MATCHES "address")
    message(FATAL_ERROR " LLAMA2CPP_SOFT_METAL cannot be built with the address sanitizer: it takes the stacks of GPU "
      "threads for memory that is not to be used")
  endif()
  find_program(LLAMA2CPP_KERNEL_COMPILER clang++-19 DOC "Compiles Metal kernels for the software device")
  if(NOT LLAMA2CPP_KERNEL_COMPILER)
    message(FATAL_ERROR " LLAMA2CPP_SOFT_METAL compiles the Metal kernels with clang++-19, and it was not found. Install "
      "it: `apt install clang-19` (Debian); or name one in -DLLAMA2CPP_KERNEL_COMPILER=")
  endif()
  set(LLAMA2CPP_KERNEL_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
  add_library(llama2cpp_shim STATIC ${LLAMA2CPP_SHIM_DIR}/fibers.cpp ${LLAMA2CPP_SHIM_DIR}/trace.cpp)
  target_include_directories(llama2cpp_shim PUBLIC ${LLAMA2CPP_SHIM_DIR})
  target_link_libraries(llama2cpp_shim PRIVATE llama2cpp_flags)
  add_library(llama2cpp_metal_kernels STATIC)
  target_include_directories(llama2cpp_metal_kernels PRIVATE src/cpp)
  target_link_libraries(llama2cpp_metal_kernels PRIVATE llama2cpp_shim llama2cpp_flags)
  llama2cpp_add_metal_libraries(llama2cpp_metal_kernels ${CMAKE_CURRENT_BINARY_DIR}/metal DEVICE
    ${LLAMA2CPP_METAL_LIBRARIES})
  set(LLAMA2CPP_SOFT_DIR ${CMAKE_CURRENT_SOURCE_DIR}/tests/metal/soft)
  add_library(llama2cpp_soft_metal STATIC
    ${LLAMA2CPP_SOFT_DIR}/commands.cpp
    ${LLAMA2CPP_SOFT_DIR}/device.cpp
    ${LLAMA2CPP_SOFT_DIR}/objects.cpp
    ${LLAMA2CPP_SOFT_DIR}/run.cpp
    ${LLAMA2CPP_SOFT_DIR}/state.cpp
  )
  target_include_directories(llama2cpp_soft_metal PUBLIC ${LLAMA2CPP_SOFT_DIR})
  target_link_libraries(llama2cpp_soft_metal PUBLIC llama2cpp_shim PRIVATE llama2cpp_metal_kernels llama2cpp_flags)
  target_sources(llama2cpp_core PRIVATE ${LLAMA2CPP_METAL_HOST})
  target_compile_definitions(llama2cpp_core PUBLIC LLAMA2CPP_SOFT_METAL)
  target_link_libraries(llama2cpp_core PRIVATE llama2cpp_soft_metal llama2cpp_metal_kernels)
elseif(APPLE AND LLAMA2CPP_METAL_CPP)
  llama2cpp_add_metal_libraries(llama2cpp_core ${CMAKE_CURRENT_BINARY_DIR}/metal ${LLAMA2CPP_METAL_LIBRARIES})
  target_sources(llama2cpp_core PRIVATE ${LLAMA2CPP_METAL_HOST} ${LLAMA2CPP_METAL_DIR}/apple.cpp)
  target_include_directories(llama2cpp_core SYSTEM PRIVATE ${LLAMA2CPP_METAL_CPP})
  target_link_libraries(llama2cpp_core PUBLIC "-framework Metal" "-framework Foundation" objc)
else()
  target_sources(llama2cpp_core PRIVATE ${LLAMA2CPP_METAL_DIR}/no_metal.cpp)
endif()
