// With INRFAST_OLDER_SYSTEMS, a module that GCC 11 to 13 built on a newer Linux also loads on an older one: from glibc 2.28
// and libstdc++ 8 on, as PyTorch's wheels (manylinux_2_28 in place of manylinux_2_34). What headers of newer compilers ask
// for is defined here, for this module alone.
#ifdef INRFAST_OLDER_SYSTEMS
#include <new>

#define INRFAST_INSIDE __attribute__((visibility("hidden")))

extern "C" {

// glibc 2.32's word that there is one thread, by which shared pointers would count without atomic operations.
INRFAST_INSIDE char __libc_single_threaded = 0;

// Of libstdc++ 11, which containers call for an impossible size.
[[noreturn]] INRFAST_INSIDE void inrfast_bad_array_new_length() __asm__("_ZSt28__throw_bad_array_new_lengthv");
[[noreturn]] void inrfast_bad_array_new_length() { throw std::bad_array_new_length(); }

// Members of std::exception_ptr that libstdc++ 11 exports, by its constructor and destructor, which all versions export.
// An exception_ptr is one pointer.
void inrfast_copy(void** made, void* const* from) __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void inrfast_destroy(void** own) __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");

INRFAST_INSIDE void inrfast_addref(void** own) __asm__("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
void inrfast_addref(void** own) {
  void* counted;
  inrfast_copy(&counted, own);  // never destroyed: the count stays higher by one
}

INRFAST_INSIDE void inrfast_release(void** own) __asm__("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
void inrfast_release(void** own) {
  void* counted = *own;
  *own = nullptr;
  inrfast_destroy(&counted);
}

}  // extern "C"
#endif
