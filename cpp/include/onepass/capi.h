/* onepass in C: the rules, steps over many tensors, and batch normalisation. C99 and C++11.
 *
 * The functions are exported by the Python module (onepass.get_library() is its path), by
 * libonepass, and stand in a table that `onepass_import` fetches from the module.
 */
#ifndef ONEPASS_CAPI_H
#define ONEPASS_CAPI_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "onepass/capi_functions.h"

/* Structs with their sizes, and 0 in every other member. */
static inline onepass_call onepass_new_call(void) {
  onepass_call made;
  memset(&made, 0, sizeof made);
  made.struct_size = sizeof made;
  made.group_size = sizeof(onepass_group);
  made.tensor_size = sizeof(onepass_tensor);
  return made;
}
static inline onepass_result onepass_new_result(void) {
  onepass_result made;
  memset(&made, 0, sizeof made);
  made.struct_size = sizeof made;
  return made;
}
static inline onepass_batch_norm onepass_new_batch_norm(void) {
  onepass_batch_norm made;
  memset(&made, 0, sizeof made);
  made.struct_size = sizeof made;
  return made;
}

/* Include Python.h first. Returns the functions of the installed onepass, or NULL with an
 * ImportError set. Call it while your module is imported and keep the table: it is static memory,
 * which stays for ever and holds no Python object. */
#ifdef Py_PYTHON_H
static inline const onepass_api* onepass_import(void) {
  const onepass_api* api;
  PyObject* core = PyImport_ImportModule("onepass._core");
  if (core == NULL) return NULL;
  Py_DECREF(core);
  api = (const onepass_api*)PyCapsule_Import("onepass._core._C_API", 0);
  if (api == NULL) return NULL;
  /* Before the first ABI that is promised, nothing but the same table will do. */
  if (api->abi == ONEPASS_ABI &&
      (ONEPASS_ABI == 0 ? api->size == sizeof(onepass_api) : api->size >= sizeof(onepass_api))) {
    return api;
  }
  PyErr_Format(PyExc_ImportError,
               "onepass: expected ABI %d with %d bytes of functions, got ABI %d with %d "
               "(onepass %s)",
               ONEPASS_ABI, (int)sizeof(onepass_api), (int)api->abi, (int)api->size, api->version);
  return NULL;
}
#endif

#ifdef __cplusplus
}
#endif
#endif
