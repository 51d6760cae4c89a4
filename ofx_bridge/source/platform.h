// What differs between systems: sockets, mapped files, processes, folders. One implementation per system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "deadline.h"

namespace stm {

// The engine has ended, before or during an exchange of messages.
struct ConnectionLost : std::runtime_error {
    using std::runtime_error::runtime_error;
};

namespace platform {

std::optional<std::string> environment(const std::string& name);
std::map<std::string, std::string> wholeEnvironment();
std::uint64_t processId();
std::string randomHex(std::size_t bytes);
std::string thisLibrary();            // the file that this code was loaded from; empty if unknown
std::string dataFolder();             // where the user's installation and shots are by default
std::string runtimeFolder();          // PROTOCOL.md, section 1
void requirePrivateFolder(const std::string& folder);  // throws std::runtime_error with words
bool exists(const std::string& path);
void makeFolders(const std::string& path);  // throws std::runtime_error with words
// The file's text, or nothing when there is no such file, it is no plain file, or it is longer than `limit`.
std::optional<std::string> readSmallFile(const std::string& path, std::size_t limit);
// The last `bytes` of a plain file, however long it is; nothing when there is none.
std::optional<std::string> readEnd(const std::string& path, std::size_t bytes);

class Socket {
  public:
    // Both throw ConnectionLost when nobody listens or the peer is another user's, and wait until the deadline while
    // the one who listens takes nobody in.
    static Socket connectUnix(const std::string& path, const Deadline& deadline);
    static Socket connectLoopback(int port, const Deadline& deadline);
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
    // Throws std::runtime_error when the folder cannot be used or is full. `check` is called between parts of a large one.
    MappedFile(const std::string& folder, const std::string& name, std::size_t bytes, const Check& check);
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
    // Nothing while it runs; then its exit code, or -1 when it was killed or the code is unknown.
    virtual std::optional<int> exitCode() = 0;
};

// Starts `command` in a new session with exactly `variables`, in `folder`, with null input and output and no
// descriptor of the host. Throws std::runtime_error.
std::unique_ptr<Child> start(const std::vector<std::string>& command, const std::map<std::string, std::string>& variables,
                             const std::string& folder);

}  // namespace platform
}  // namespace stm
