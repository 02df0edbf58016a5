"""C++ kernels for CPUs as torch operators, and the Python objects that call them."""
