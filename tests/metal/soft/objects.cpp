// Reference counts, pools, strings, errors.
#include <unistd.h>

#include <Foundation/Foundation.hpp>
#include <deque>

#include "machine.h"

namespace soft {

// Objects that were given up lately, so that a call on one of them is seen.
class Graveyard {
 public:
  ~Graveyard() {
    for (const Counted* object : dead_) delete object;
  }
  void take(const Counted* object) {
    const Counted* oldest = nullptr;
    {
      const std::lock_guard lock(mutex_);
      dead_.push_back(object);
      if (dead_.size() > 4096) {
        oldest = dead_.front();
        dead_.pop_front();
      }
    }
    delete oldest;
  }

 private:
  std::mutex mutex_;
  std::deque<const Counted*> dead_;
};

namespace {

Graveyard& graveyard() {
  static Graveyard graveyard;
  return graveyard;
}

std::vector<NS::AutoreleasePool*>& pools() {
  thread_local std::vector<NS::AutoreleasePool*> pools;
  return pools;
}

}  // namespace

void Maker::count(const char* kind, long by) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.live[kind] += by;
}

long count_of(const Counted* object) { return object->count_.load(); }

void retain(const Counted* object) {
  if (object->count_.fetch_add(1) <= 0) {
    object->count_.fetch_sub(1);
    throw DeviceFault(FaultKind::released, std::string("retain of a ") + object->kind_ + " that is no more");
  }
}

void release(const Counted* object) noexcept {
  const long before = object->count_.fetch_sub(1);
  if (before > 1) return;
  if (before < 1) {
    object->count_.fetch_add(1);
    add_late_fault(FaultKind::released, std::string("a ") + object->kind_ + " was released more often than retained");
    return;
  }
  const_cast<Counted*>(object)->dispose();
  Maker::count(object->kind_, -1);
  graveyard().take(object);
}

void autorelease(const Counted* object) {
  if (pools().empty()) {
    const std::string kind = object->kind();
    release(object);  // on macOS it would stay for ever
    throw DeviceFault(FaultKind::no_pool, "a " + kind + " was autoreleased, and this thread has no pool: it leaks");
  }
  pools().back()->objects_.push_back(object);
}

}  // namespace soft

namespace NS {

using soft::Maker;

String* String::alloc() { return Maker::make<String>("String"); }
String* String::init() { return this; }
String* String::init(const char* text, StringEncoding) {
  text_ = text;
  return this;
}
String* String::string(const char* text, StringEncoding encoding) {
  return alloc()->init(text, encoding)->autorelease();
}

Error* Error::alloc() { return Maker::make<Error>("Error"); }
void Error::dispose() noexcept {
  if (domain_ != nullptr) domain_->release();
  if (description_ != nullptr) description_->release();
}
Error* make_error(const char* domain, Integer code, const std::string& description) {
  Error* error = Error::alloc();
  error->domain_ = String::alloc()->init(domain, UTF8StringEncoding);
  error->description_ = String::alloc()->init(description.c_str(), UTF8StringEncoding);
  error->code_ = code;
  return error;
}

Array* make_array(std::vector<Object*> objects) {
  Array* array = Maker::make<Array>("Array");
  for (Object* object : objects) object->retain();
  array->objects_ = std::move(objects);
  return array;
}
Array* Array::array(const Object* const* objects, UInteger count) {
  std::vector<Object*> list;
  for (UInteger i = 0; i < count; ++i) list.push_back(const_cast<Object*>(objects[i]));
  return make_array(std::move(list))->autorelease();
}
void Array::dispose() noexcept {
  for (Object* object : objects_) object->release();
}

AutoreleasePool* AutoreleasePool::alloc() { return Maker::make<AutoreleasePool>("AutoreleasePool"); }
AutoreleasePool* AutoreleasePool::init() {
  soft::pools().push_back(this);
  return this;
}
void AutoreleasePool::addObject(Object* object) { objects_.push_back(object); }
void AutoreleasePool::dispose() noexcept {
  // Pools nest: one that ends takes those with it that were begun in it.
  auto& stack = soft::pools();
  bool mine = false;
  for (const AutoreleasePool* pool : stack) mine = mine || pool == this;
  if (!mine) {
    soft::add_late_fault(soft::FaultKind::no_pool, "an AutoreleasePool ends on a thread where it was not begun");
  } else {
    while (stack.back() != this) stack.back()->release();
    stack.pop_back();
  }
  for (const soft::Counted* object : std::exchange(objects_, {})) soft::release(object);
}

// Lives for as long as the process, as on macOS.
ProcessInfo* ProcessInfo::processInfo() {
  static ProcessInfo info;
  return &info;
}
OperatingSystemVersion ProcessInfo::operatingSystemVersion() const {
  return {static_cast<Integer>(soft::options().os), 0, 0};
}
bool ProcessInfo::isOperatingSystemAtLeastVersion(OperatingSystemVersion version) const {
  const auto os = static_cast<Integer>(soft::options().os);
  return os > version.majorVersion ||
         (os == version.majorVersion && version.minorVersion == 0 && version.patchVersion == 0);
}
unsigned long long ProcessInfo::physicalMemory() const {
  return static_cast<unsigned long long>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<unsigned long long>(sysconf(_SC_PAGESIZE));
}

}  // namespace NS
