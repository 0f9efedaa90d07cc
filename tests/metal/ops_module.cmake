# llama2cpp_ops, the ops for tests in Python; beside _core in the build folder, where tests/metal/conftest.py looks.
pybind11_add_module(llama2cpp_ops MODULE NO_EXTRAS ${CMAKE_CURRENT_LIST_DIR}/ops_module.cpp)
target_link_libraries(llama2cpp_ops PRIVATE llama2cpp_core llama2cpp_flags)
if(LLAMA2CPP_SOFT_METAL)
  target_link_libraries(llama2cpp_ops PRIVATE llama2cpp_soft_metal)
endif()
if(NOT MSVC)
  target_compile_options(llama2cpp_ops PRIVATE $<$<CONFIG:Release>:-O1>) # it passes arguments on and computes nothing
endif()
