# What others find the headers and the library by: a CMake package and files for pkg-config, which
# may be moved with the folder that they lie in.
include(CMakePackageConfigHelpers)

# `folder` is where to, below the prefix, and `libdir` a folder in that one. Where libonepass is
# installed too, `libs` and `libs_private` are what programs are linked with.
function(onepass_install_package folder libdir libs libs_private)
  set(written "${CMAKE_CURRENT_BINARY_DIR}/package/${folder}")
  set(pc_libs "${libs}")
  set(pc_libs_private "${libs_private}")
  list(JOIN kernel_flags " " pc_flags)
  file(RELATIVE_PATH from_config "/${libdir}/cmake/onepass" "/")
  file(RELATIVE_PATH from_pc "/${libdir}/pkgconfig" "/")
  foreach(path from_config from_pc)
    string(REGEX REPLACE "/$" "" ${path} "${${path}}")
  endforeach()

  configure_file(cmake/onepass-config.cmake.in "${written}/onepass-config.cmake" @ONLY)
  write_basic_package_version_file("${written}/onepass-config-version.cmake"
                                   COMPATIBILITY SameMinorVersion) # until 1.0
  configure_file(cmake/onepass.pc.in "${written}/onepass.pc" @ONLY)
  configure_file(cmake/onepass-headers.pc.in "${written}/onepass-headers.pc" @ONLY)

  install(DIRECTORY cpp/include/onepass DESTINATION "${folder}/include")
  install(FILES "${written}/onepass-config.cmake" "${written}/onepass-config-version.cmake"
          DESTINATION "${folder}/${libdir}/cmake/onepass")
  install(FILES "${written}/onepass.pc" "${written}/onepass-headers.pc"
          DESTINATION "${folder}/${libdir}/pkgconfig")
endfunction()
