/* For LD_PRELOAD, on Linux with glibc: lets the n-th allocation of a program fail, counted from fail_after(n) on. Of all that asks
   the C library or the system for memory: C++'s new, Python's objects, NumPy's arrays, maps. Who asked for it is written to a
   file. See allocation_sweep.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static atomic_int counting = 0;
static atomic_long seen = 0;
static atomic_long chosen = -1;
static atomic_int hit = 0;
static int report = -1;

/* The first call of backtrace() loads a library. */
__attribute__((constructor)) static void prepare(void) {
  void *frame;
  backtrace(&frame, 1);
}

void fail_after(long n, int file) {
  seen = 0;
  report = file;
  chosen = n;
  hit = 0;
  counting = 1;
}

long stop_failing(void) {
  counting = 0;
  return seen;
}

int has_failed(void) { return hit; }

static int fails(void) {
  if (!counting || atomic_fetch_add(&seen, 1) != chosen) return 0;
  hit = 1;
  void *frames[64];
  backtrace_symbols_fd(frames, backtrace(frames, 64), report);
  errno = ENOMEM;
  return 1;
}

void *malloc(size_t bytes) { return fails() ? NULL : __libc_malloc(bytes); }
void *calloc(size_t count, size_t bytes) { return fails() ? NULL : __libc_calloc(count, bytes); }
void *realloc(void *memory, size_t bytes) { return bytes != 0 && fails() ? NULL : __libc_realloc(memory, bytes); }
void *memalign(size_t alignment, size_t bytes) { return fails() ? NULL : __libc_memalign(alignment, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void **memory, size_t alignment, size_t bytes) {
  if (fails()) return ENOMEM;
  *memory = __libc_memalign(alignment, bytes);
  return *memory == NULL ? ENOMEM : 0;
}

void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
  static void *(*system_mmap)(void *, size_t, int, int, int, off_t);
  if (system_mmap == NULL) *(void **)&system_mmap = dlsym(RTLD_NEXT, "mmap");
  return fails() ? MAP_FAILED : system_mmap(at, bytes, protection, flags, file, offset);
}
