"""Triton kernels: tensors and pointers in, tensors out; they know no models, and ``inrfast.ops`` alone calls them."""
