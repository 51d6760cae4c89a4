// What differs between systems: sockets, mapped files, processes, folders. One implementation per system.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "look.h"

namespace stm {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// The longest wait without looking whether the host wants us to stop. Every wait of the effect is made of waits like
// this one, and every long piece of work looks up in between (look.h): nothing of ours blocks longer.
inline constexpr Milliseconds pollInterval{50};

// Thrown when the host asks to stop. No message: the host knows.
struct Cancelled : std::exception {
    const char* what() const noexcept override { return "The host asked to stop."; }
};

struct DeadlinePassed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The engine has gone, in the middle of a talk or before it.
struct ConnectionLost : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// How long a caller waits, and how it is asked whether it still wants to.
class Patience {
  public:
    Patience(Milliseconds atMost, std::function<bool()> cancelled)
        : deadline_(Clock::now() + atMost), cancelled_(std::move(cancelled)) {}
    // Throws Cancelled or DeadlinePassed.
    void check(const char* waitingFor) const;
    void sleep(Milliseconds duration, const char* waitingFor) const;
    std::unique_lock<std::timed_mutex> lock(std::timed_mutex& mutex, const char* waitingFor) const;
    // `check` for work that is not ours to know about patience. Must not outlive this.
    Look look(const char* waitingFor) const {
        return [this, waitingFor] { check(waitingFor); };
    }

  private:
    Clock::time_point deadline_;
    std::function<bool()> cancelled_;
};

namespace platform {

std::optional<std::string> environment(const std::string& name);
std::map<std::string, std::string> wholeEnvironment();
std::uint64_t processId();
std::string randomHex(std::size_t bytes);
std::string thisLibrary();            // the file that this code was loaded from; empty if the system does not say
std::string dataFolder();             // where the user's installation and shots are by default
std::string runtimeFolder();          // PROTOCOL.md, section 1
void requirePrivateFolder(const std::string& folder);  // throws std::runtime_error with words
bool exists(const std::string& path);
void makeFolders(const std::string& path);  // throws std::runtime_error with words
// The file's text, or nothing when there is no such file, it is no plain file, or it is longer than `limit`.
std::optional<std::string> readSmallFile(const std::string& path, std::size_t limit);

class Socket {
  public:
    // Both throw ConnectionLost when nobody listens or the peer is another user's, and wait with patience while the one
    // who listens takes nobody in.
    static Socket connectUnix(const std::string& path, const Patience& patience);
    static Socket connectLoopback(int port, const Patience& patience);
    Socket(Socket&& other) noexcept;
    Socket& operator=(Socket&& other) noexcept;
    Socket(const Socket&) = delete;
    Socket& operator=(const Socket&) = delete;
    ~Socket();

    // At least one byte, or 0 when none came within `wait`. Throws ConnectionLost at the end.
    std::size_t receive(std::uint8_t* into, std::size_t capacity, Milliseconds wait);
    // As many bytes as the system takes within `wait`, perhaps 0. Throws ConnectionLost.
    std::size_t send(const std::uint8_t* from, std::size_t count, Milliseconds wait);

  private:
    explicit Socket(std::intptr_t handle) : handle_(handle) {}
    std::intptr_t handle_;
};

// A file in the engine's map folder, mapped into memory; removed with the object.
class MappedFile {
  public:
    // Throws std::runtime_error when the folder cannot be used or is full. `look` is called between parts of a large one.
    MappedFile(const std::string& folder, const std::string& name, std::size_t bytes, const Look& look);
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    ~MappedFile();
    std::uint8_t* data() const { return data_; }
    std::size_t size() const { return size_; }
    const std::string& name() const { return name_; }

  private:
    std::string path_;
    std::string name_;
    std::uint8_t* data_ = nullptr;
    std::size_t size_ = 0;
};

// A process that was started and may outlive this object.
class Child {
  public:
    virtual ~Child() = default;
    // Nothing while it runs; then its exit code, or -1 when it was killed or nobody can tell.
    virtual std::optional<int> exitCode() = 0;
};

// Starts `command` in a session of its own with exactly `variables`, in `folder`, with null input and output and no
// descriptor of the host. Throws std::runtime_error.
std::unique_ptr<Child> start(const std::vector<std::string>& command, const std::map<std::string, std::string>& variables,
                             const std::string& folder);

}  // namespace platform
}  // namespace stm
