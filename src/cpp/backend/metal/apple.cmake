# Whether this build for Apple silicon has Metal: LLAMA2CPP_METAL_CPP becomes the folder of metal-cpp, Apple's C++ headers,
# or nothing. PyPI's mlx-metal has them: pyproject.toml asks for it, and the Python of the build knows where it lies.
set(LLAMA2CPP_METAL_CPP "" CACHE PATH "Folder of Apple's metal-cpp headers; empty: that of PyPI's mlx-metal")
if(NOT LLAMA2CPP_METAL_CPP)
  find_package(Python COMPONENTS Interpreter QUIET)
  if(Python_Interpreter_FOUND)
    set(asked "from importlib.metadata import distribution as d")
    string(APPEND asked "; print(d('mlx-metal').locate_file('mlx/include/metal_cpp'), end='')")
    execute_process(COMMAND ${Python_EXECUTABLE} -c "${asked}" OUTPUT_VARIABLE LLAMA2CPP_METAL_CPP ERROR_QUIET)
  endif()
endif()
if(NOT EXISTS "${LLAMA2CPP_METAL_CPP}/Metal/Metal.hpp")
  message(STATUS "No Metal: metal-cpp was not found (`pip install mlx-metal`, or name its folder in LLAMA2CPP_METAL_CPP). "
    "The CPU computes.")
  set(LLAMA2CPP_METAL_CPP "")
endif()
