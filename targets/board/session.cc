// What a TVM RPC server offers once this library is loaded into it: artifacts, by number.

#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include <cstring>
#include <sstream>
#include <utility>

#include "program.h"

namespace tilewright {
namespace {

using ffi::String;

struct Loaded {
  std::unique_ptr<Program> program;
  std::map<std::string, ffi::Tensor> feeds;
};

std::map<int64_t, Loaded>& All() {
  static std::map<int64_t, Loaded> all;
  return all;
}

Loaded& At(int64_t number) {
  auto found = All().find(number);
  if (found == All().end()) TVM_FFI_THROW(ValueError) << "No artifact is open as " << number << ".";
  return found->second;
}

// RPC carries no lists.
String Joined(const std::vector<int64_t>& numbers) {
  std::ostringstream out;
  for (size_t i = 0; i < numbers.size(); ++i) out << (i ? "," : "") << numbers[i];
  return out.str();
}

// `prefix` stands in front of the names of the files that were uploaded.
void Open(int64_t number, String prefix, int64_t threads) {
  All()[number].program = std::make_unique<Program>(prefix, static_cast<int>(threads));
}

// The files are the server's to remove.
void Close(int64_t number) { All().erase(number); }

int64_t Threads(int64_t number) { return At(number).program->threads(); }

void Feed(int64_t number, String name, DLTensor* value) {
  ffi::Tensor own = NewTensor({value->shape, value->shape + value->ndim}, value->dtype);
  std::memcpy(own.data_ptr(), static_cast<char*>(value->data) + value->byte_offset,
              ffi::GetDataSize(*value));
  At(number).feeds.insert_or_assign(name, own);
}

void Run(int64_t number) {
  Loaded& loaded = At(number);
  const auto given = std::move(loaded.feeds);
  loaded.feeds.clear();  // those that are refused are not those of the next run
  std::map<std::string, const DLTensor*> feeds;
  for (const auto& [name, tensor] : given) feeds[name] = tensor.GetDLTensorPtr();
  loaded.program->Take(feeds);
  loaded.program->Run();
}

ffi::Tensor Answer(int64_t number, String name) { return At(number).program->Answer(name); }

// Nanoseconds of `repeats` runs on the latest inputs.
String Time(int64_t number, int64_t repeats) {
  return Joined(At(number).program->Time(static_cast<int>(repeats)));
}

// Nanoseconds of each part, in one run.
String TimeParts(int64_t number) { return Joined(At(number).program->TimeParts()); }

}  // namespace
}  // namespace tilewright

TVM_FFI_DLL_EXPORT_TYPED_FUNC(open, tilewright::Open);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(close, tilewright::Close);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(threads, tilewright::Threads);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(feed, tilewright::Feed);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(run, tilewright::Run);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(answer, tilewright::Answer);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(time, tilewright::Time);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(time_parts, tilewright::TimeParts);
