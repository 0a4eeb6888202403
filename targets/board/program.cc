#include "program.h"

#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

namespace tilewright {
namespace {

using ffi::Any;
using ffi::AnyView;
using ffi::Function;
using ffi::Module;
using ffi::String;
using ffi::Tensor;
namespace json = ffi::json;

constexpr size_t kAlignment = 64;  // bytes: a cache line, and what DLPack asks of an array
constexpr int kLine = 16;          // int32 of a cache line

[[noreturn]] void Refuse(const std::string& message) {
  TVM_FFI_THROW(ValueError) << message;
}

size_t Whole(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::string Shown(DLDataType dtype, const std::vector<int64_t>& shape) {
  std::ostringstream out;
  out << std::string(ffi::DLDataTypeToString(dtype)) << " [";
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  return out.str() + "]";
}

std::string Shown(const DLTensor* tensor) {
  return Shown(tensor->dtype, std::vector<int64_t>(tensor->shape, tensor->shape + tensor->ndim));
}

json::Object Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Refuse("\"" + path + "\" cannot be read. Give the folder of an artifact.");
  std::ostringstream text;
  text << file.rdbuf();
  String error;
  Any value = json::Parse(text.str(), &error);
  auto found = value.as<json::Object>();
  if (!error.empty() || !found) Refuse("\"" + path + "\" is damaged: compile the model again.");
  return *found;
}

template <typename T>
T Field(const json::Object& from, const char* name) {
  auto found = from.find(String(name));
  if (found == from.end()) Refuse(std::string("program.json has no \"") + name + "\".");
  return (*found).second.cast<T>();
}

std::vector<int64_t> Numbers(const json::Array& from) {
  std::vector<int64_t> found;
  for (const Any& each : from) found.push_back(each.cast<int64_t>());
  return found;
}

// Of a base array; kernels see weights and tables under names of their own.
DLDataType TypeOf(const std::string& base) {
  if (base == "weights") return DLDataType{kDLFloat, 32, 1};
  if (base == "indices" || base == "launch") return DLDataType{kDLInt, 32, 1};
  return ffi::StringToDLDataType(base);
}

// Features of the CPU that artifacts may need, as Linux spells them in /proc/cpuinfo.
void CheckFeatures(const json::Array& needs) {
#ifdef __aarch64__
  static const std::map<std::string, unsigned long> kBits = {
      {"asimd", 1ul << 1}, {"fphp", 1ul << 9}, {"asimdhp", 1ul << 10}, {"asimddp", 1ul << 20}};
  const unsigned long has = getauxval(AT_HWCAP);
  for (const Any& need : needs) {
    const std::string name = need.cast<String>();
    auto bit = kBits.find(name);
    if (bit == kBits.end() || !(has & bit->second)) {
      Refuse("The artifact was compiled for a CPU with \"" + name +
             "\", which this one does not have. Compile it for this board's target.");
    }
  }
#else
  (void)needs;
#endif
}

struct Borrowed {
  void* data;
  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};

struct Owned {
  void AllocData(DLTensor* tensor) {
    size_t bytes = tensor->dtype.bits / 8;
    for (int i = 0; i < tensor->ndim; ++i) bytes *= tensor->shape[i];
    tensor->data = std::aligned_alloc(kAlignment, Whole(bytes ? bytes : 1));
    if (!tensor->data) TVM_FFI_THROW(MemoryError) << "No memory for " << bytes << " bytes.";
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// Copies between a window and the packed elements of its shape.
void Copy(const Window& window, char* packed, bool in) {
  const size_t item = window.item(), axes = window.shape.size();
  const size_t row = axes ? window.shape[axes - 1] : 1;
  const bool dense = !axes || window.strides[axes - 1] == 1;
  std::vector<int64_t> at(axes, 0);
  for (size_t done = 0, all = window.elements(); done < all; done += row) {
    int64_t offset = 0;
    for (size_t a = 0; a + 1 < axes; ++a) offset += at[a] * window.strides[a];
    char* there = window.start + offset * item;
    if (dense) {
      std::memcpy(in ? there : packed, in ? packed : there, row * item);
    } else {
      for (size_t i = 0; i < row; ++i) {
        char* one = there + i * window.strides[axes - 1] * item;
        std::memcpy(in ? one : packed + i * item, in ? packed + i * item : one, item);
      }
    }
    packed += row * item;
    for (size_t a = axes; a-- > 1;) {
      if (++at[a - 1] < window.shape[a - 1]) break;
      at[a - 1] = 0;
    }
  }
}

// Entries of a table that an input picks; -1 is the last one, floats count towards zero.
template <typename T>
void CheckEntries(const std::string& name, const char* packed, size_t count, int64_t entries) {
  const T* values = reinterpret_cast<const T*>(packed);
  for (size_t i = 0; i < count; ++i) {
    const double value = std::trunc(static_cast<double>(values[i]));
    if (value >= -static_cast<double>(entries) && value < static_cast<double>(entries)) continue;
    Refuse("Input \"" + name + "\" picks entries of a table that has " +
           std::to_string(entries) + "; found " + std::to_string(values[i]) +
           ". Give numbers from " + std::to_string(-entries) + " to " +
           std::to_string(entries - 1) + ".");
  }
}

void CheckEntries(const std::string& name, const char* packed, const Window& window,
                  int64_t entries) {
  const size_t count = window.elements();
  const bool is_signed = window.dtype.code == kDLInt, is_float = window.dtype.code == kDLFloat;
  switch (window.dtype.bits) {
    case 8:
      return is_signed ? CheckEntries<int8_t>(name, packed, count, entries)
                       : CheckEntries<uint8_t>(name, packed, count, entries);
    case 16:
      if (is_float) return;  // nothing here reads them
      return is_signed ? CheckEntries<int16_t>(name, packed, count, entries)
                       : CheckEntries<uint16_t>(name, packed, count, entries);
    case 32:
      return is_float    ? CheckEntries<float>(name, packed, count, entries)
             : is_signed ? CheckEntries<int32_t>(name, packed, count, entries)
                         : CheckEntries<uint32_t>(name, packed, count, entries);
    default:
      return is_float    ? CheckEntries<double>(name, packed, count, entries)
             : is_signed ? CheckEntries<int64_t>(name, packed, count, entries)
                         : CheckEntries<uint64_t>(name, packed, count, entries);
  }
}

bool Fits(const Window& window, const DLTensor* tensor) {
  return tensor->dtype.code == window.dtype.code && tensor->dtype.bits == window.dtype.bits &&
         std::vector<int64_t>(tensor->shape, tensor->shape + tensor->ndim) == window.shape;
}

int64_t Now() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Mapped::Mapped(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (file < 0 || fstat(file, &status)) {
    Refuse("\"" + path + "\" cannot be read: " + std::strerror(errno) + ".");
  }
  size_ = status.st_size;
  if (size_) {
    data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    if (data_ == MAP_FAILED) Refuse("\"" + path + "\" cannot be mapped.");
  }
  close(file);
}

Mapped::~Mapped() {
  if (size_) munmap(data_, size_);
}

Tensor NewTensor(const std::vector<int64_t>& shape, DLDataType dtype) {
  return Tensor::FromNDAlloc(Owned{}, ffi::Shape(shape.begin(), shape.end()), dtype,
                             DLDevice{kDLCPU, 0});
}

size_t Window::elements() const {
  size_t count = 1;
  for (int64_t each : shape) count *= each;
  return count;
}

Tensor Program::Base(const std::string& name, void* data, size_t bytes) {
  const DLDataType dtype = TypeOf(name);
  const int64_t count = bytes / (dtype.bits / 8);
  return Tensor::FromNDAlloc(Borrowed{data}, ffi::Shape({count}), dtype, DLDevice{kDLCPU, 0});
}

Program::Program(const std::string& prefix, int threads) {
  const json::Object content = Read(prefix + "program.json");
  CheckFeatures(Field<json::Array>(content, "needs"));
  const int cores = std::max(1u, std::thread::hardware_concurrency());
  if (!threads) threads = static_cast<int>(Field<int64_t>(content, "threads"));
  if (!threads || threads > cores) threads = cores;
  // The pool reads these when it starts. A pinned worker and the caller, which is not, end up
  // on one core at times.
  setenv("TVM_NUM_THREADS", std::to_string(cores).c_str(), 0);
  setenv("TVM_BIND_THREADS", "0", 0);
  threads_ = threads;

  const auto sizes = Field<json::Object>(content, "files");
  auto mapped = [&](const char* name) {
    auto file = std::make_unique<Mapped>(prefix + name);
    const int64_t written = Field<int64_t>(sizes, name);
    if (file->size() != static_cast<size_t>(written)) {
      Refuse("\"" + prefix + name + "\" has " + std::to_string(file->size()) + " bytes, and " +
             std::to_string(written) + " were written. Copy the artifact again.");
    }
    return file;
  };
  weights_ = mapped("weights.bin");
  indices_ = mapped("indices.bin");
  const auto constants = mapped("constants.bin");
  const Mapped& rest = *constants;
  const size_t scratch = Field<int64_t>(content, "arena_bytes");
  const size_t bytes = Whole(scratch + rest.size() + kAlignment);
  arena_ = std::aligned_alloc(kAlignment, bytes);
  if (!arena_) TVM_FFI_THROW(MemoryError) << "No memory for " << bytes << " bytes.";
  std::memset(arena_, 0, bytes);
  if (rest.size()) std::memcpy(static_cast<char*>(arena_) + scratch, rest.data(), rest.size());
  // The number of threads, and whose turn it is; then each thread's two lines of counters.
  launch_.assign((1 + 2 * threads) * kLine + kLine, 0);
  int32_t* launch = launch_.data();
  while (reinterpret_cast<uintptr_t>(launch) % kAlignment) ++launch;
  launch[0] = threads;

  struct Extent {
    char* start;
    size_t bytes;
  };
  std::map<std::string, Extent> extents;
  for (const Any& each : Field<json::Array>(content, "bases")) {
    const std::string name = each.cast<String>();
    void* data = arena_;
    size_t size = bytes;
    if (name == "weights") data = weights_->data(), size = weights_->size();
    if (name == "indices") data = indices_->data(), size = indices_->size();
    if (name == "launch") data = launch, size = (1 + 2 * threads) * kLine * sizeof(int32_t);
    extents[name] = {static_cast<char*>(data), size};
    bases_.push_back(Base(name, data, size));
  }
  arguments_.assign(bases_.begin(), bases_.end());

  auto function = [&](const std::string& name) {
    if (!machine_) {  // a model of nothing but views has no kernels
      library_ = Module::LoadFromFile(prefix + "lib.so");
      machine_ = (*library_)->GetFunction("vm_load_executable", true).value()().cast<Module>();
      const int pooled = 2;
      (*machine_)->GetFunction("vm_initialization", true).value()(int(kDLCPU), 0, pooled);
    }
    return (*machine_)->GetFunction(name, true).value();
  };
  auto windows = [&](const json::Object& from) {
    std::map<std::string, Window> found;
    for (const auto& [name, value] : from) {
      const auto window = value.cast<json::Object>();
      const std::string base = Field<String>(window, "base");
      auto extent = extents.find(base);
      if (extent == extents.end()) Refuse("program.json names no array \"" + base + "\".");
      const DLDataType dtype = TypeOf(base);
      Window shown{nullptr, dtype, Numbers(Field<json::Array>(window, "shape")),
                   Numbers(Field<json::Array>(window, "strides"))};
      const int64_t at = Field<int64_t>(window, "at");
      int64_t last = at;
      for (size_t axis = 0; axis < shown.shape.size(); ++axis) {
        const int64_t extent_of_axis = shown.shape[axis], stride = shown.strides.at(axis);
        if (extent_of_axis < 0 || stride < 0 || extent_of_axis > INT32_MAX || stride > INT32_MAX) {
          Refuse("program.json is damaged: compile the model again.");
        }
        if (extent_of_axis) last += (extent_of_axis - 1) * stride;
      }
      const auto [start, size] = extent->second;
      if (at < 0 || (shown.elements() && (last + 1) * shown.item() > size)) {
        Refuse("program.json is damaged: compile the model again.");
      }
      shown.start = start + at * shown.item();
      found[name.cast<String>()] = shown;
    }
    return found;
  };
  for (const Any& each : Field<json::Array>(content, "programs")) {
    const auto described = each.cast<json::Object>();
    Variant variant;
    variant.inputs = windows(Field<json::Object>(described, "inputs"));
    variant.outputs = windows(Field<json::Object>(described, "outputs"));
    for (const auto& [name, count] : Field<json::Object>(described, "entries")) {
      variant.entries[name.cast<String>()] = count.cast<int64_t>();
    }
    for (const Any& part : Field<json::Array>(described, "parts")) {
      const auto number = Field<int64_t>(part.cast<json::Object>(), "function");
      variant.parts.push_back(function("run_" + std::to_string(number)));
    }
    variants_.push_back(std::move(variant));
  }
}

Program::~Program() {
  variants_.clear();
  machine_ = std::nullopt;
  library_ = std::nullopt;
  std::free(arena_);
}

void Program::Take(const std::map<std::string, const DLTensor*>& feeds) {
  latest_ = 0;
  for (size_t i = 0; i < variants_.size(); ++i) {
    bool fits = true;
    for (const auto& [name, window] : variants_[i].inputs) {
      auto fed = feeds.find(name);
      fits = fits && fed != feeds.end() && Fits(window, fed->second);
    }
    if (fits) {
      latest_ = i;
      break;
    }
  }
  for (const auto& [name, window] : variant().inputs) {
    auto fed = feeds.find(name);
    if (fed == feeds.end() || !Fits(window, fed->second)) {
      Refuse("Input \"" + name + "\" must be " + Shown(window.dtype, window.shape) + "; " +
             (fed == feeds.end() ? "it was not given." : "found " + Shown(fed->second) + "."));
    }
    char* packed = static_cast<char*>(fed->second->data) + fed->second->byte_offset;
    auto entries = variant().entries.find(name);
    if (entries != variant().entries.end()) {
      CheckEntries(name, packed, window, entries->second);
    }
    Copy(window, packed, true);
  }
}

// The pool is one for all that a process loads: each call says how many it takes.
void Program::TakeThreads() const {
  Function::GetGlobalRequired("runtime.config_threadpool")(1, threads_);
}

void Program::Run() {
  TakeThreads();
  RunParts();
}

void Program::RunParts() {
  Any result;
  for (const Function& part : variant().parts) {
    part.CallPacked(arguments_.data(), static_cast<int32_t>(arguments_.size()), &result);
  }
}

std::vector<int64_t> Program::Time(int repeats) {
  TakeThreads();
  std::vector<int64_t> taken;
  for (int i = 0; i < repeats; ++i) {
    const int64_t start = Now();
    RunParts();
    taken.push_back(Now() - start);
  }
  return taken;
}

std::vector<int64_t> Program::TimeParts() {
  TakeThreads();
  std::vector<int64_t> taken;
  Any result;
  for (const Function& part : variant().parts) {
    const int64_t start = Now();
    part.CallPacked(arguments_.data(), static_cast<int32_t>(arguments_.size()), &result);
    taken.push_back(Now() - start);
  }
  return taken;
}

Tensor Program::Answer(const std::string& name) const {
  auto found = variant().outputs.find(name);
  if (found == variant().outputs.end()) Refuse("There is no output \"" + name + "\".");
  const Window& window = found->second;
  Tensor answer = NewTensor(window.shape, window.dtype);
  Copy(window, static_cast<char*>(answer.data_ptr()), false);
  return answer;
}

}  // namespace tilewright
