/* onepass in C: the rules, steps over many tensors, and batch normalisation. C99 and C++11.
 *
 * The functions are exported by the Python module (onepass.get_library() is its path), by
 * libonepass, and stand in a table that `onepass_import` fetches from the module.
 */
#ifndef ONEPASS_CAPI_H
#define ONEPASS_CAPI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "onepass/capi_functions.h"

/* Designed to stand in an initialiser: onepass_call call = ONEPASS_CALL; Every member has its 0,
 * because compilers warn of members that are left out. */
#define ONEPASS_CALL \
  {sizeof(onepass_call), sizeof(onepass_group), sizeof(onepass_tensor), 0, 0, 0, 0, 0, 0, 0}
#define ONEPASS_RESULT {sizeof(onepass_result), 0, 0, 0, 0, 0, 0, 0, 0}
#define ONEPASS_BATCH_NORM                                                                     \
  {sizeof(onepass_batch_norm), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
   0, 0, 0, 0, 0, 0, 0}

/* Include Python.h first. Returns the functions of the installed onepass, or NULL with an
 * ImportError set. Call it while your module is imported and keep the table: it is static memory,
 * which stays for ever and holds no Python object. */
#ifdef Py_PYTHON_H
static inline const onepass_api *onepass_import(void) {
  const onepass_api *api;
  PyObject *core = PyImport_ImportModule("onepass._core");
  if (core == NULL) return NULL;
  Py_DECREF(core);
  api = (const onepass_api *)PyCapsule_Import("onepass._core._C_API", 0);
  if (api == NULL) return NULL;
  if (api->abi == ONEPASS_ABI && api->size >= sizeof(onepass_api)) return api;
  PyErr_Format(PyExc_ImportError,
               "onepass: expected ABI %d with at least %d bytes of functions, got ABI %d with %d "
               "(onepass %s)",
               ONEPASS_ABI, (int)sizeof(onepass_api), (int)api->abi, (int)api->size, api->version);
  return NULL;
}
#endif

#ifdef __cplusplus
}
#endif
#endif
