// Arrays in files of numpy's format, version 1.0 to 3.0 (numpy/lib/format.py).

#ifndef TILEWRIGHT_BOARD_ARRAYS_H_
#define TILEWRIGHT_BOARD_ARRAYS_H_

#include <tvm/ffi/container/tensor.h>

#include <string>

namespace tilewright {

tvm::ffi::Tensor ReadArray(const std::string& path);
void WriteArray(const std::string& path, const tvm::ffi::Tensor& array);

}  // namespace tilewright

#endif  // TILEWRIGHT_BOARD_ARRAYS_H_
