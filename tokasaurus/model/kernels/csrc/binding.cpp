// The torch operators of one build flavour, in a namespace of their own. This is the one file that
// includes torch: its headers take longer to compile than any of the kernels.
#include <torch/library.h>

#include "binding_attention.h"
#include "binding_decode.h"
#include "binding_linear.h"
#include "binding_sampling.h"
#include "binding_stack.h"

// Expand the namespace's name before torch's macros make a string of it.
#define TOKA_LIBRARY(name, m) TORCH_LIBRARY(name, m)
#define TOKA_LIBRARY_IMPL(name, key, m) TORCH_LIBRARY_IMPL(name, key, m)

TOKA_LIBRARY(TOKA_NAMESPACE, m) {
  toka::define_attention(m);
  toka::define_linear(m);
  toka::define_sampling(m);
  toka::define_stack(m);
  toka::define_decode(m);
}

TOKA_LIBRARY_IMPL(TOKA_NAMESPACE, CPU, m) {
  toka::implement_attention(m);
  toka::implement_linear(m);
  toka::implement_sampling(m);
  toka::implement_stack(m);
}
