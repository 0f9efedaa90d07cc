// The part of metal-cpp's Foundation that a Metal backend needs: the same names and signatures, objects of our own.
// A backend that compiles against this compiles against Apple's headers; what each call checks is in ../soft_metal.h.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace soft {

class Counted;
void retain(const Counted* object);
void release(const Counted* object) noexcept;  // faults found here are thrown by the next call that can throw
void autorelease(const Counted* object);

// What every object is made of. An object whose count falls to zero gives up what it holds at once, but its few bytes
// stay for a while, so that a call on it afterwards is a fault with words instead of undefined behaviour.
class Counted {
 public:
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  const char* kind() const noexcept { return kind_; }

 protected:
  Counted() = default;
  virtual ~Counted() = default;
  virtual void dispose() noexcept {}

 private:
  friend void retain(const Counted*);
  friend void release(const Counted*) noexcept;
  friend struct Maker;
  friend class Graveyard;
  friend long count_of(const Counted*);
  mutable std::atomic<long> count_{1};
  const char* kind_ = "object";
};

long count_of(const Counted* object);

}  // namespace soft

namespace NS {

using Integer = std::intptr_t;
using UInteger = std::uintptr_t;
using TimeInterval = double;

class Object;
class String;

template <class Class, class Base = Object>
class Referencing : public Base {
 public:
  Class* retain() {
    soft::retain(this);
    return static_cast<Class*>(this);
  }
  void release() { soft::release(this); }
  Class* autorelease() {
    soft::autorelease(this);
    return static_cast<Class*>(this);
  }
  UInteger retainCount() const { return static_cast<UInteger>(soft::count_of(this)); }
};

template <class Class, class Base = Object>
class Copying : public Referencing<Class, Base> {};

class Object : public Referencing<Object, soft::Counted> {
 public:
  UInteger hash() const { return reinterpret_cast<UInteger>(this); }
  bool isEqual(const Object* other) const { return this == other; }
};

struct Range {
  static Range Make(UInteger location, UInteger length) { return Range(location, length); }
  Range(UInteger location_, UInteger length_) : location(location_), length(length_) {}
  UInteger location;
  UInteger length;
};

struct OperatingSystemVersion {
  Integer majorVersion;
  Integer minorVersion;
  Integer patchVersion;
};

enum StringEncoding : UInteger { ASCIIStringEncoding = 1, UTF8StringEncoding = 4 };

class String : public Copying<String> {
 public:
  static String* string(const char* text, StringEncoding encoding);  // autoreleased
  static String* alloc();
  String* init();
  String* init(const char* text, StringEncoding encoding);
  const char* utf8String() const { return text_.c_str(); }
  const char* cString(StringEncoding) const { return text_.c_str(); }
  UInteger length() const { return text_.size(); }
  bool isEqualToString(const String* other) const { return text_ == other->text_; }

 private:
  std::string text_;
};

using ErrorDomain = String*;

class Error : public Copying<Error> {
 public:
  static Error* alloc();
  Integer code() const { return code_; }
  ErrorDomain domain() const { return domain_; }
  String* localizedDescription() const { return description_; }

 private:
  friend Error* make_error(const char* domain, Integer code, const std::string& description);
  void dispose() noexcept override;
  String* domain_ = nullptr;
  String* description_ = nullptr;
  Integer code_ = 0;
};

Error* make_error(const char* domain, Integer code, const std::string& description);  // the caller owns it

class Array : public Copying<Array> {
 public:
  static Array* array(const Object* const* objects, UInteger count);  // autoreleased
  UInteger count() const { return objects_.size(); }
  template <class Class = Object>
  Class* object(UInteger index) const {
    return static_cast<Class*>(objects_.at(index));
  }

 private:
  friend Array* make_array(std::vector<Object*> objects);
  void dispose() noexcept override;
  std::vector<Object*> objects_;
};

Array* make_array(std::vector<Object*> objects);  // retains each; the caller owns the array

class AutoreleasePool : public Object {
 public:
  static AutoreleasePool* alloc();
  AutoreleasePool* init();
  void drain() { release(); }
  void addObject(Object* object);

 private:
  friend void soft::autorelease(const soft::Counted*);
  void dispose() noexcept override;
  std::vector<const soft::Counted*> objects_;
};

class ProcessInfo : public Referencing<ProcessInfo> {
 public:
  static ProcessInfo* processInfo();
  OperatingSystemVersion operatingSystemVersion() const;
  bool isOperatingSystemAtLeastVersion(OperatingSystemVersion version) const;
  unsigned long long physicalMemory() const;
};

template <class Class>
class SharedPtr {
 public:
  SharedPtr() = default;
  SharedPtr(std::nullptr_t) noexcept {}  // NOLINT: implicit, as in metal-cpp
  SharedPtr(const SharedPtr& other) noexcept : object_(other.object_) {
    if (object_ != nullptr) object_->retain();
  }
  template <class Other>
    requires std::is_convertible_v<Other*, Class*>
  SharedPtr(const SharedPtr<Other>& other) noexcept : object_(other.get()) {
    if (object_ != nullptr) object_->retain();
  }
  SharedPtr(SharedPtr&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  template <class Other>
    requires std::is_convertible_v<Other*, Class*>
  SharedPtr(SharedPtr<Other>&& other) noexcept : object_(other.get()) {
    other.detach();
  }
  ~SharedPtr() { reset(); }
  SharedPtr& operator=(const SharedPtr& other) {
    SharedPtr copy(other);
    std::swap(object_, copy.object_);
    return *this;
  }
  SharedPtr& operator=(SharedPtr&& other) {
    SharedPtr moved(std::move(other));
    std::swap(object_, moved.object_);
    return *this;
  }
  Class* get() const { return object_; }
  Class* operator->() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }
  void reset() {
    if (object_ != nullptr) std::exchange(object_, nullptr)->release();
  }
  void detach() { object_ = nullptr; }

  template <class Other>
  friend SharedPtr<Other> RetainPtr(Other* object);
  template <class Other>
  friend SharedPtr<Other> TransferPtr(Other* object);

 private:
  Class* object_ = nullptr;
};

template <class Class>
SharedPtr<Class> RetainPtr(Class* object) {
  SharedPtr<Class> result;
  result.object_ = object;
  if (object != nullptr) object->retain();
  return result;
}

template <class Class>
SharedPtr<Class> TransferPtr(Class* object) {
  SharedPtr<Class> result;
  result.object_ = object;
  return result;
}

template <class Left, class Right>
bool operator==(const SharedPtr<Left>& left, const SharedPtr<Right>& right) {
  return left.get() == right.get();
}

}  // namespace NS
