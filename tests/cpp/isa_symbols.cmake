# A kernel file compiled for some instruction set may define nothing that another file defines too (an inline function of
# a header): of several copies the linker takes any one, for the whole program. Reads the library's symbols with nm.
#   cmake -DNM=... -DLIBRARY=libllama2cpp_core.a -P isa_symbols.cmake
execute_process(COMMAND ${NM} -A -g --defined-only ${LIBRARY} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]*(avx2|avx512|neon)[_a-z]*\\.cpp\\.o[^\n]*" symbols "${symbols}")
set(kernels 0)
foreach(symbol IN LISTS symbols)
  if(symbol MATCHES "/?no_neon\\.cpp")
    continue()
  elseif(symbol MATCHES " T [^ ]*_kernels[^ ]*$")
    math(EXPR kernels "${kernels} + 1")
  elseif(NOT symbol MATCHES " [uRVr] [^ ]*kExpTable")  # data is the same in any file
    message(SEND_ERROR "not the file's own: ${symbol}")
  endif()
endforeach()
if(kernels LESS 2)
  message(SEND_ERROR "found ${kernels} files of kernels")
endif()
