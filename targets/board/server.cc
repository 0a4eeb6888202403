// A TVM RPC server for boards without Python; with a tracker it is one of a fleet.
//
// Each session runs in a process of its own, one after the other: a crash or a time limit ends
// the session and not the server. Prints "READY PORT" once it listens.

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <memory>
#include <string>

namespace {

namespace ffi = tvm::ffi;

// As in TVM's python/tvm/rpc/base.py.
constexpr int kMagic = 0xff271, kMismatch = kMagic + 2, kTrackerMagic = 0x2f271;
constexpr int kPut = 3, kUpdateInfo = 5, kPendingKeys = 7;
constexpr int kMostBytes = 1 << 20;  // of a key or an answer of the tracker's
constexpr int kPingSeconds = 2, kUnusedPings = 3, kGreetSeconds = 10, kLookMilliseconds = 200;

constexpr char kHelp[] = R"(Usage: tilewright-server [--port N] [--key NAME] [--tracker HOST:PORT] [--host ADDRESS]

Takes artifacts over the network, by TVM RPC, and runs them on this board, one client at a time.
It runs what it is sent: start it in a network that you trust.

  --port N             where it listens; 9090 if not given, any that is free for 0
  --key NAME           what clients must know: rpc://HOST:PORT/NAME; tilewright if not given
  --tracker HOST:PORT  joins a fleet, as one of its boards of this key
  --host ADDRESS       the address to listen at; 0.0.0.0, which is all, if not given
)";

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "tilewright-server: %s\n", message.c_str());
  std::exit(2);
}

bool Read(int socket, void* data, size_t size) {
  for (char* at = static_cast<char*>(data); size;) {
    const ssize_t count = recv(socket, at, size, 0);
    if (count <= 0) return false;
    at += count, size -= count;
  }
  return true;
}

bool Write(int socket, const void* data, size_t size) {
  for (const char* at = static_cast<const char*>(data); size;) {
    const ssize_t count = send(socket, at, size, MSG_NOSIGNAL);
    if (count <= 0) return false;
    at += count, size -= count;
  }
  return true;
}

bool ReadText(int socket, std::string* text) {
  int size = 0;
  if (!Read(socket, &size, sizeof size) || size < 0 || size > kMostBytes) return false;
  text->resize(size);
  return Read(socket, text->data(), size);
}

bool WriteText(int socket, const std::string& text) {
  const int size = static_cast<int>(text.size());
  return Write(socket, &size, sizeof size) && Write(socket, text.data(), text.size());
}

std::string Quoted(const std::string& text) { return ffi::json::Stringify(ffi::String(text)); }

// SIGTERM and Ctrl-C: the session in progress ends, its files go, and then the server.
volatile sig_atomic_t stopped = 0;
void Stop(int) { stopped = 1; }

int Connect(const std::string& host, const std::string& port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found)) return -1;
  int connected = -1;
  for (addrinfo* each = found; each && connected < 0; each = each->ai_next) {
    const int tried = socket(each->ai_family, each->ai_socktype | SOCK_CLOEXEC, 0);
    if (tried >= 0 && connect(tried, each->ai_addr, each->ai_addrlen) == 0) connected = tried;
    if (tried >= 0 && connected < 0) close(tried);
  }
  freeaddrinfo(found);
  return connected;
}

// This board's place in a fleet: it says when it is free, under a new password each time.
class Tracker {
 public:
  Tracker(std::string host, std::string port, std::string key, int own_port)
      : host_(std::move(host)), port_(std::move(port)), key_(std::move(key)), own_port_(own_port) {}

  // Say that the board is free; connects again where the tracker was away.
  void Offer() {
    password_ = key_ + ":" + std::to_string(std::random_device{}());
    unused_ = 0;
    const std::string place = "[" + std::to_string(own_port_) + ", " + Quoted(password_) + "]";
    const std::string offer =
        "[" + std::to_string(kPut) + ", " + Quoted(key_) + ", " + place + ", null]";
    std::string answer;
    while (!stopped && (socket_ < 0 || !Ask(offer, &answer))) Join();
  }

  // Make a new offer where somebody took the board and never came.
  void Ping() {
    std::string pending;
    const bool answered = Ask("[" + std::to_string(kPendingKeys) + "]", &pending);
    unused_ = answered && pending.find(Quoted(password_)) == std::string::npos ? unused_ + 1 : 0;
    if (!answered || unused_ > kUnusedPings) Offer();
  }

  const std::string& password() const { return password_; }

 private:
  bool Ask(const std::string& question, std::string* answer) {
    if (socket_ >= 0 && WriteText(socket_, question) && ReadText(socket_, answer)) return true;
    if (socket_ >= 0) close(socket_);
    socket_ = -1;
    return false;
  }

  void Join() {
    int magic = kTrackerMagic;
    socket_ = Connect(host_, port_);
    if (socket_ < 0) {
      std::fprintf(stderr, "tilewright-server: no tracker at %s:%s; trying again\n",
                   host_.c_str(), port_.c_str());
      sleep(kPingSeconds);
      return;
    }
    // One that went away without a word must not hold the board for ever.
    const timeval limit{kGreetSeconds, 0};
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (!Write(socket_, &magic, sizeof magic) || !Read(socket_, &magic, sizeof magic)) {
      close(socket_);
      socket_ = -1;
      sleep(kPingSeconds);
      return;
    }
    if (magic != kTrackerMagic) Die(host_ + ":" + port_ + " is no tracker.");
    const std::string address = "[null, " + std::to_string(own_port_) + "]";
    std::string answer;
    const bool known = Ask("[" + std::to_string(kUpdateInfo) + ", {\"key\": " + Quoted("server:" + key_) +
                               ", \"addr\": " + address + "}]",
                           &answer);
    if (!known) sleep(kPingSeconds);
  }

  const std::string host_, port_, key_;
  const int own_port_;
  int socket_ = -1, unused_ = 0;
  std::string password_;
};

// A client's greeting: the key that it knows, and the seconds that it wants at most.
bool Greet(int client, const std::string& key, const std::string& password, unsigned* seconds) {
  timeval limit{kGreetSeconds, 0};
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  int magic = 0;
  std::string text;
  if (!Read(client, &magic, sizeof magic) || magic != kMagic || !ReadText(client, &text)) {
    return false;
  }
  if (text.substr(0, text.find(' ')) != "client:" + password) {
    Write(client, &kMismatch, sizeof kMismatch);
    return false;
  }
  const size_t at = text.find("-timeout=");
  *seconds = at == std::string::npos ? 0 : static_cast<unsigned>(std::atof(&text[at + 9])) + 1;
  limit = {0, 0};
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  return Write(client, &kMagic, sizeof kMagic) && WriteText(client, "server:" + key);
}

// The path of an uploaded file. Names lead nowhere else.
std::string Inside(const std::string& folder, const std::string& name) {
  if (name.find('/') != std::string::npos || name == "..") {
    TVM_FFI_THROW(ValueError) << "\"" << name << "\" is no name of a file.";
  }
  return name.empty() || name == "." ? folder : folder + "/" + name;
}

void Serve(int client, const std::string& folder) {
  ffi::Function::SetGlobal("tvm.rpc.server.workpath",
                           ffi::Function::FromTyped([folder](ffi::String name) -> ffi::String {
                             return Inside(folder, name);
                           }),
                           true);
  ffi::Function::SetGlobal("tvm.rpc.server.load_module",
                           ffi::Function::FromTyped([folder](ffi::String name) {
                             return ffi::Module::LoadFromFile(Inside(folder, name));
                           }),
                           true);
  ffi::Function::GetGlobalRequired("rpc.ServerLoop")(client);
}

// Runs a session in a process of its own and waits until it is over.
void Session(int client, int listening, unsigned seconds) {
  char folder[] = "/tmp/tilewright-XXXXXX";
  if (!mkdtemp(folder)) {
    std::fprintf(stderr, "tilewright-server: no folder can be made in /tmp: %s\n", strerror(errno));
    return;
  }
  const pid_t server = getpid(), child = fork();
  if (child == 0) {
    close(listening);
    // The session ends with the server.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != server) _exit(1);
    if (seconds) alarm(seconds);
    int status = 0;
    try {
      Serve(client, folder);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "tilewright-server: %s\n", error.what());
      status = 1;
    }
    _exit(status);
  }
  if (child < 0) std::fprintf(stderr, "tilewright-server: no process: %s\n", strerror(errno));
  int status = 0;
  while (child > 0 && waitpid(child, &status, WNOHANG) == 0) {
    // A client that gave up does not wait for what the session is doing.
    pollfd gone{client, POLLRDHUP, 0};
    const bool left = poll(&gone, 1, kLookMilliseconds) > 0;
    if (left || stopped) {
      const timespec grace{0, kLookMilliseconds * 1000000L};
      nanosleep(&grace, nullptr);
      kill(child, SIGKILL);
    }
  }
  if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) {
    const int number = WTERMSIG(status);
    std::fprintf(stderr, "tilewright-server: the session was ended by %s\n",
                 number == SIGALRM ? "its time limit" : strsignal(number));
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
}

int Listen(const std::string& host, int* port) {
  const int made = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
  setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  sockaddr_in place{};
  place.sin_family = AF_INET;
  place.sin_port = htons(static_cast<uint16_t>(*port));
  if (inet_pton(AF_INET, host.c_str(), &place.sin_addr) != 1) Die(host + " is no address.");
  socklen_t size = sizeof place;
  if (bind(made, reinterpret_cast<sockaddr*>(&place), size) || listen(made, 4)) {
    Die("port " + std::to_string(*port) + " cannot be listened at: " + std::strerror(errno));
  }
  getsockname(made, reinterpret_cast<sockaddr*>(&place), &size);
  *port = ntohs(place.sin_port);
  return made;
}

int Port(const std::string& text) {
  char* end = nullptr;
  const long found = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end || found < 0 || found > 65535) Die("--port " + text + " is no port.");
  return static_cast<int>(found);
}

}  // namespace

int main(int count, char** values) {
  std::string key = "tilewright", tracker, host = "0.0.0.0";
  int port = 9090;
  if (count == 2 && (!std::strcmp(values[1], "--help") || !std::strcmp(values[1], "-h"))) {
    std::printf("%s", kHelp);
    return 0;
  }
  for (int i = 1; i < count; i += 2) {
    const std::string name = values[i];
    if (i + 1 == count) Die(name + " needs a value.");
    const std::string value = values[i + 1];
    if (name == "--port") port = Port(value);
    else if (name == "--key") key = value;
    else if (name == "--tracker") tracker = value;
    else if (name == "--host") host = value;
    else Die("there is no option " + name + "; there are --port, --key, --tracker, --host.");
  }
  if (key.empty() || key.find_first_of(" /:") != std::string::npos) {
    Die("--key \"" + key + "\": leave out spaces, slashes and colons.");
  }
  const int listening = Listen(host, &port);
  std::printf("READY %d\n", port);
  std::fflush(stdout);
  const size_t colon = tracker.rfind(':');
  if (!tracker.empty() && colon == std::string::npos) Die("--tracker " + tracker + ": write HOST:PORT.");
  std::unique_ptr<Tracker> fleet;
  if (!tracker.empty()) {
    fleet = std::make_unique<Tracker>(tracker.substr(0, colon), tracker.substr(colon + 1), key, port);
    fleet->Offer();
  }
  struct sigaction stop {};
  stop.sa_handler = Stop;
  sigaction(SIGTERM, &stop, nullptr);
  sigaction(SIGINT, &stop, nullptr);
  while (!stopped) {
    pollfd waiting{listening, POLLIN, 0};
    if (poll(&waiting, 1, fleet ? kPingSeconds * 1000 : -1) <= 0) {
      if (fleet) fleet->Ping();
      continue;
    }
    const int client = accept(listening, nullptr, nullptr), one = 1;
    if (client < 0) continue;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    unsigned seconds = 0;
    if (Greet(client, key, fleet ? fleet->password() : key, &seconds)) {
      Session(client, listening, seconds);
      if (fleet) fleet->Offer();
    }
    close(client);
  }
}
