// Runs an artifact that lies on the board.
//
//   tilewright-run ARTIFACT --input NAME=FILE.npy ... [--output FOLDER] [--threads N]
//                  [--repeat N]
//
// kHelp says what the options do. Exit 2 where something cannot be used.

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "arrays.h"
#include "program.h"

namespace {

using tilewright::Program;

struct Wanted {
  std::string folder, output;
  std::map<std::string, std::string> inputs;
  int threads = 0, repeat = 0;
};

constexpr char kUsage[] =
    "Usage: tilewright-run ARTIFACT --input NAME=FILE.npy ... [--output FOLDER] [--threads N] "
    "[--repeat N]";
constexpr char kHelp[] = R"(
Runs an artifact that lies on this board.

  --input NAME=FILE.npy  an input; those that are not given are zeros, which is told
  --output FOLDER        where outputs go, as NAME.npy ("/" in a name becomes "_")
  --threads N            threads; all cores if not given
  --repeat N             times so many more runs: their fastest and their middle one
)";

[[noreturn]] void Refuse(const std::string& message) {
  TVM_FFI_THROW(ValueError) << message << " " << kUsage;
}

int Number(const std::string& option, const std::string& text) {
  char* end = nullptr;
  const long found = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end || found < 1 || found > 1000000) {
    Refuse(option + " " + text + ": give a whole number from 1 on.");
  }
  return static_cast<int>(found);
}

Wanted Parse(int count, char** values) {
  Wanted wanted;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    if (name.rfind("--", 0) != 0) {
      if (!wanted.folder.empty()) Refuse("\"" + name + "\" is a second artifact.");
      wanted.folder = name;
      continue;
    }
    if (++i == count) Refuse(name + " needs a value.");
    const std::string value = values[i];
    if (name == "--input") {
      const size_t equals = value.rfind('=');
      if (equals == std::string::npos) Refuse("--input " + value + ": write NAME=FILE.npy.");
      wanted.inputs[value.substr(0, equals)] = value.substr(equals + 1);
    } else if (name == "--output") {
      wanted.output = value;
    } else if (name == "--threads") {
      wanted.threads = Number(name, value);
    } else if (name == "--repeat") {
      wanted.repeat = Number(name, value);
    } else {
      Refuse("There is no option " + name + ".");
    }
  }
  if (wanted.folder.empty()) Refuse("No artifact was given.");
  return wanted;
}

std::map<std::string, tvm::ffi::Tensor> Inputs(const Wanted& wanted, const Program& program) {
  const auto& inputs = program.variant().inputs;
  for (const auto& [name, file] : wanted.inputs) {
    if (!inputs.count(name)) Refuse("The artifact has no input \"" + name + "\".");
  }
  std::map<std::string, tvm::ffi::Tensor> found;
  for (const auto& [name, window] : inputs) {
    auto file = wanted.inputs.find(name);
    if (file != wanted.inputs.end()) {
      found.emplace(name, tilewright::ReadArray(file->second));
      continue;
    }
    // Not to stdout: who counts what is executed begins at what is written there (count.c).
    std::fprintf(stderr, "%s: not given, so zeros\n", name.c_str());
    tvm::ffi::Tensor zeros = tilewright::NewTensor(window.shape, window.dtype);
    std::memset(zeros.data_ptr(), 0, tvm::ffi::GetDataSize(*zeros.GetDLTensorPtr()));
    found.emplace(name, zeros);
  }
  return found;
}

// A tensor's name may hold what no file's name may.
std::string FileOf(std::string name) {
  std::replace(name.begin(), name.end(), '/', '_');
  return name + ".npy";
}

void Main(const Wanted& wanted) {
  if (!wanted.output.empty() && !std::filesystem::is_directory(wanted.output)) {
    Refuse("--output " + wanted.output + ": there is no such folder. Create it.");
  }
  Program program(wanted.folder + "/", wanted.threads);
  const auto inputs = Inputs(wanted, program);
  std::map<std::string, const DLTensor*> feeds;
  for (const auto& [name, tensor] : inputs) feeds[name] = tensor.GetDLTensorPtr();
  program.Take(feeds);
  program.Run();
  for (const auto& [name, window] : program.variant().outputs) {
    std::string shape;
    for (int64_t extent : window.shape) shape += (shape.empty() ? "" : "x") + std::to_string(extent);
    std::printf("%s: %s\n", name.c_str(), shape.c_str());
    if (!wanted.output.empty()) {
      tilewright::WriteArray(wanted.output + "/" + FileOf(name), program.Answer(name));
    }
  }
  if (!wanted.repeat) return;
  // The first that is written: who counts what is executed begins here (count.c).
  std::fflush(stdout);
  std::vector<int64_t> taken = program.Time(wanted.repeat);
  std::sort(taken.begin(), taken.end());
  std::printf("%d runs: fastest %.3f ms, middle %.3f ms\n", wanted.repeat, taken.front() / 1e6,
              taken[taken.size() / 2] / 1e6);
}

}  // namespace

int main(int count, char** values) {
  if (count == 2 && (!std::strcmp(values[1], "--help") || !std::strcmp(values[1], "-h"))) {
    std::printf("%s\n%s", kUsage, kHelp);
    return 0;
  }
  try {
    Main(Parse(count, values));
  } catch (const tvm::ffi::Error& error) {
    std::fprintf(stderr, "tilewright-run: %s\n", error.message().c_str());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tilewright-run: %s\n", error.what());
    return 2;
  }
}
