// Two symbols that headers of newer compilers ask for, defined here, so that a module built on a newer Linux also loads on
// an older one (glibc 2.28 on, as PyTorch's wheels): manylinux_2_28 in place of manylinux_2_34.
#include <new>

#if defined(__GLIBCXX__) && defined(__GLIBC__)

extern "C" {

// glibc 2.32's word that there is one thread, by which shared pointers would count without atomic operations.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

// Of libstdc++ 11, which containers call for an impossible size.
[[noreturn]] __attribute__((visibility("hidden"))) void inrfast_throw_bad_array_new_length() __asm__(
    "_ZSt28__throw_bad_array_new_lengthv");

[[noreturn]] void inrfast_throw_bad_array_new_length() { throw std::bad_array_new_length(); }

}  // extern "C"

#endif
