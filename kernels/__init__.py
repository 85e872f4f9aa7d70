"""Triton kernels: tensors and pointers in, tensors out. They know no models; ``inrfast.ops`` launches them."""
