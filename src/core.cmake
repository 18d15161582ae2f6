# The rooms that need no library (base, cpu, format, kernel) and the flags of everything: the project's own CMakeLists.txt
# includes this, and so does tests/standalone, which builds the checks of these rooms for other compilers and processors.
#   nibble_flags    what every file is compiled with
#   LEVEL_OBJECTS   formats and kernels, once per level
#   CORE_SOURCES    the rest of these rooms
get_filename_component(NIBBLE_ROOT ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

option(NIBBLE_WERROR "warnings are errors" ON)
set(NIBBLE_SANITIZE "" CACHE STRING "address;undefined | thread | memory")

add_library(nibble_flags INTERFACE)
target_include_directories(nibble_flags INTERFACE ${NIBBLE_ROOT}/include ${NIBBLE_ROOT}/src)
# The same bytes from every compiler: no contraction, no reordering.
target_compile_options(nibble_flags INTERFACE -Wall -Wextra -Wshadow -Wstrict-prototypes -ffp-contract=off
  $<$<BOOL:${NIBBLE_WERROR}>:-Werror> $<$<CONFIG:Release>:-O3>)
target_compile_definitions(nibble_flags INTERFACE _GNU_SOURCE NIBBLE_VERSION="${PROJECT_VERSION}")
if(NIBBLE_SANITIZE)
  string(REPLACE ";" "," sanitizers "${NIBBLE_SANITIZE}")
  target_compile_options(nibble_flags INTERFACE -fsanitize=${sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer
    -g1) # lines alone: with variables, compiling takes more than twice as long
  target_compile_definitions(nibble_flags INTERFACE NIB_SANITIZED) # not all compilers say so themselves
  target_link_options(nibble_flags INTERFACE -fsanitize=${sanitizers})
endif()

# The levels of cpu/levels.def that this family of processors has, lowest first.
set(NIBBLE_LEVELS portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND NIBBLE_LEVELS avx2 avx512 avx512vnni avx512bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  list(APPEND NIBBLE_LEVELS neon neon_dotprod neon_i8mm)
endif()
set(flags_portable "")
set(flags_avx2 -march=x86-64-v3)
set(flags_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
set(flags_avx512vnni ${flags_avx512} -mavx512vnni -mavx512vbmi)
set(flags_avx512bf16 ${flags_avx512vnni} -mavx512bf16)
set(flags_neon -DNIB_VEC_NEON)
set(flags_neon_dotprod ${flags_neon} -march=armv8.2-a+dotprod)
set(flags_neon_i8mm ${flags_neon} -march=armv8.2-a+dotprod+i8mm)

# Every level compiles the formats and the kernels once more, with its own flags.
set(FORMAT_ONCE ${NIBBLE_ROOT}/src/format/registry.c ${NIBBLE_ROOT}/src/format/codebook.c ${NIBBLE_ROOT}/src/format/number.c)
file(GLOB FORMAT_SOURCES CONFIGURE_DEPENDS ${NIBBLE_ROOT}/src/format/*.c)
list(REMOVE_ITEM FORMAT_SOURCES ${FORMAT_ONCE})
file(GLOB KERNEL_SOURCES CONFIGURE_DEPENDS ${NIBBLE_ROOT}/src/kernel/level_*.c ${NIBBLE_ROOT}/src/cpu/level_*.c)
set(LEVEL_OBJECTS "")
foreach(level IN LISTS NIBBLE_LEVELS)
  add_library(nibble_level_${level} OBJECT ${FORMAT_SOURCES} ${KERNEL_SOURCES})
  target_link_libraries(nibble_level_${level} PRIVATE nibble_flags)
  target_compile_definitions(nibble_level_${level} PRIVATE NIB_LEVEL=${level})
  target_compile_options(nibble_level_${level} PRIVATE ${flags_${level}})
  list(APPEND LEVEL_OBJECTS $<TARGET_OBJECTS:nibble_level_${level}>)
endforeach()
file(GLOB CORE_SOURCES CONFIGURE_DEPENDS ${NIBBLE_ROOT}/src/base/*.c ${NIBBLE_ROOT}/src/cpu/*.c ${NIBBLE_ROOT}/src/kernel/*.c)
list(REMOVE_ITEM CORE_SOURCES ${KERNEL_SOURCES})
list(APPEND CORE_SOURCES ${FORMAT_ONCE})
