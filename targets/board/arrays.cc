#include "arrays.h"

#include <tvm/ffi/error.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <vector>

#include "program.h"

namespace tilewright {
namespace {

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicSize = 6, kAligned = 64;

// As numpy spells them, on a machine with the low byte first.
const std::map<std::string, DLDataType>& Types() {
  static const std::map<std::string, DLDataType> types = {
      {"<f4", {kDLFloat, 32, 1}}, {"<f8", {kDLFloat, 64, 1}}, {"<f2", {kDLFloat, 16, 1}},
      {"<i8", {kDLInt, 64, 1}},   {"<i4", {kDLInt, 32, 1}},   {"<i2", {kDLInt, 16, 1}},
      {"|i1", {kDLInt, 8, 1}},    {"|u1", {kDLUInt, 8, 1}},   {"|b1", {kDLBool, 8, 1}}};
  return types;
}

[[noreturn]] void Refuse(const std::string& path, const std::string& what) {
  TVM_FFI_THROW(ValueError) << "\"" << path << "\" " << what
                            << ". Write it with numpy.save, in C order.";
}

// What stands behind a key of the header, up to `end`.
std::string Behind(const std::string& header, const std::string& key, const std::string& end) {
  const size_t at = header.find("'" + key + "':");
  if (at == std::string::npos) return "";
  const size_t from = header.find_first_not_of(' ', at + key.size() + 3);
  return header.substr(from, header.find_first_of(end, from + 1) - from);
}

}  // namespace

tvm::ffi::Tensor ReadArray(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char start[8];
  if (!file.read(start, sizeof start) || std::memcmp(start, kMagic, kMagicSize)) {
    Refuse(path, "is no .npy file that can be read");
  }
  uint32_t size = 0;
  file.read(reinterpret_cast<char*>(&size), start[6] == 1 ? 2 : 4);
  std::string header(file && size < 65536 ? size : 0, ' ');
  file.read(header.data(), header.size());
  const std::string described = Behind(header, "descr", "'"), extents_text = Behind(header, "shape", ")");
  if (!file || described.empty() || extents_text.empty()) Refuse(path, "has a damaged header");
  auto type = Types().find(described.substr(1));
  if (type == Types().end()) Refuse(path, "holds an unknown type of numbers");
  if (Behind(header, "fortran_order", ",}") != "False") Refuse(path, "is not in C order");
  std::vector<int64_t> shape;
  std::istringstream extents(extents_text.substr(1));
  for (std::string each; std::getline(extents, each, ',');) {
    if (each.find_first_of("0123456789") != std::string::npos) shape.push_back(std::stoll(each));
  }
  tvm::ffi::Tensor array = NewTensor(shape, type->second);
  const size_t bytes = tvm::ffi::GetDataSize(*array.GetDLTensorPtr());
  file.read(static_cast<char*>(array.data_ptr()), bytes);
  if (static_cast<size_t>(file.gcount()) != bytes) Refuse(path, "ends too early");
  return array;
}

void WriteArray(const std::string& path, const tvm::ffi::Tensor& array) {
  std::string name;
  for (const auto& [spelled, type] : Types()) {
    if (type.code == array.dtype().code && type.bits == array.dtype().bits) name = spelled;
  }
  if (name.empty()) TVM_FFI_THROW(ValueError) << "\"" << path << "\": numpy knows no such type.";
  std::ostringstream header;
  header << "{'descr': '" << name << "', 'fortran_order': False, 'shape': (";
  for (int64_t extent : array.shape()) header << extent << ",";
  header << "), }";
  std::string text = header.str();
  const size_t before = kMagicSize + 4;
  text.append(kAligned - (before + text.size() + 1) % kAligned, ' ');
  text += '\n';
  const uint16_t size = static_cast<uint16_t>(text.size());
  std::ofstream file(path, std::ios::binary);
  file.write(kMagic, kMagicSize).write("\x01\x00", 2);
  file.write(reinterpret_cast<const char*>(&size), sizeof size);
  file << text;
  file.write(static_cast<const char*>(array.data_ptr()),
             tvm::ffi::GetDataSize(*array.GetDLTensorPtr()));
  if (!file.flush()) TVM_FFI_THROW(ValueError) << "\"" << path << "\" cannot be written.";
}

}  // namespace tilewright
