// An artifact at work on a board: its files mapped, its kernels called.
//
//   lib.so            the kernels, and functions run_0, run_1, ... that call them
//   weights.bin       packed weights, mapped and not read
//   indices.bin       offsets and tables, int32, mapped
//   constants.bin     constants of other types
//   program.json      where everything lies in memory, and what runs in which order

#ifndef TILEWRIGHT_BOARD_PROGRAM_H_
#define TILEWRIGHT_BOARD_PROGRAM_H_

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace tilewright {

namespace ffi = tvm::ffi;

// A file in memory; what is written to it stays there.
class Mapped {
 public:
  explicit Mapped(const std::string& path);
  ~Mapped();
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// New memory for a packed tensor.
ffi::Tensor NewTensor(const std::vector<int64_t>& shape, DLDataType dtype);

// An input or output: a window of a base array, with strides in elements.
struct Window {
  char* start;
  DLDataType dtype;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;

  size_t item() const { return dtype.bits / 8; }
  size_t elements() const;
};

// What runs at one set of input shapes.
struct Variant {
  std::map<std::string, Window> inputs;
  std::map<std::string, Window> outputs;
  std::map<std::string, int64_t> entries;  // of the table that an input picks from
  std::vector<ffi::Function> parts;
};

// A loaded artifact. Errors are ffi::Error of kind ValueError, with a sentence for users.
class Program {
 public:
  // `prefix` stands in front of the names of the files: a folder with its slash.
  // Threads 0: as many as the artifact was laid out for, or every core.
  Program(const std::string& prefix, int threads);
  ~Program();

  // Copy inputs into place, for the variant of their shapes. All inputs must be given.
  void Take(const std::map<std::string, const DLTensor*>& feeds);
  // Run on the inputs that are in place.
  void Run();
  // Run `repeats` times; return nanoseconds.
  std::vector<int64_t> Time(int repeats);
  // Run once part by part; return nanoseconds.
  std::vector<int64_t> TimeParts();
  // Copy an output out.
  ffi::Tensor Answer(const std::string& name) const;

  // Of the variant that the latest inputs chose.
  const Variant& variant() const { return variants_[latest_]; }

  // How many threads it takes.
  int threads() const { return threads_; }

 private:
  void RunParts();
  void TakeThreads() const;
  ffi::Tensor Base(const std::string& name, void* data, size_t bytes);

  std::unique_ptr<Mapped> weights_, indices_;
  void* arena_ = nullptr;
  std::vector<int32_t> launch_;
  std::vector<ffi::Tensor> bases_;
  std::vector<ffi::AnyView> arguments_;
  ffi::Optional<ffi::Module> library_, machine_;
  std::vector<Variant> variants_;
  size_t latest_ = 0;
  int threads_ = 1;
};

}  // namespace tilewright

#endif  // TILEWRIGHT_BOARD_PROGRAM_H_
