// Zeroed memory in huge pages where the system has them: a stream over it needs few translations.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>

namespace toka {

constexpr size_t HUGE_PAGE = size_t(2) << 20;

// Pages get memory on first touch. Freed when the last copy of the pointer is gone.
inline std::shared_ptr<char> map_huge_pages(size_t bytes) {
  const size_t mapped = bytes + HUGE_PAGE;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  const uintptr_t aligned = (reinterpret_cast<uintptr_t>(raw) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
  char* start = reinterpret_cast<char*>(aligned);
#if defined(MADV_HUGEPAGE)
  madvise(start, bytes, MADV_HUGEPAGE);  // only a hint: without it small pages do
#endif
  return {start, [raw, mapped](char*) { munmap(raw, mapped); }};
}

// Packs many tensors into few mappings, so that a small one does not take a huge page of its own.
class HugePageArena {
 public:
  std::shared_ptr<char> allocate(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t rounded = (bytes + 255) / 256 * 256;
    if (used_ + rounded > size_) {
      size_ = rounded > CHUNK ? rounded : CHUNK;
      chunk_ = map_huge_pages(size_);
      used_ = 0;
    }
    char* start = chunk_.get() + used_;
    used_ += rounded;
    return {chunk_, start};
  }

 private:
  static constexpr size_t CHUNK = size_t(64) << 20;
  std::mutex mutex_;
  std::shared_ptr<char> chunk_;
  size_t size_ = 0, used_ = 0;
};

}  // namespace toka
