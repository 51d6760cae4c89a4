#include "platform.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pwd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#ifdef __APPLE__
#include <crt_externs.h>
#else
extern char** environ;
#endif

namespace stm::platform {

namespace {

#ifdef __APPLE__
constexpr int sendFlags = 0;  // SO_NOSIGPIPE is set on the socket
char** environmentStrings() { return *_NSGetEnviron(); }
#else
constexpr int sendFlags = MSG_NOSIGNAL;
char** environmentStrings() { return environ; }
#endif

constexpr off_t allocatedAtOnce = off_t{32} << 20;  // bytes: about 10 ms

std::string systemError() { return std::strerror(errno); }

// A descriptor that is closed when it goes out of sight.
class Descriptor {
  public:
    explicit Descriptor(int number) : number_(number) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (number_ >= 0) ::close(number_);
    }
    int number() const { return number_; }
    int release() { return std::exchange(number_, -1); }

  private:
    int number_;
};

void closeOnExec(int descriptor) { ::fcntl(descriptor, F_SETFD, FD_CLOEXEC); }

bool waitFor(int descriptor, short events, Milliseconds wait) {
    pollfd asked{descriptor, events, 0};
    const int ready = ::poll(&asked, 1, static_cast<int>(wait.count()));
    if (ready < 0 && errno != EINTR) throw ConnectionLost("The connection to the engine failed: " + systemError());
    return ready > 0;
}

void checkPeer(int descriptor) {
#ifdef __APPLE__
    uid_t user = 0;
    gid_t group = 0;
    if (::getpeereid(descriptor, &user, &group) != 0 || user != ::geteuid()) {
        throw ConnectionLost("The engine's socket belongs to another user.");
    }
#else
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.uid != ::geteuid()) {
        throw ConnectionLost("The engine's socket belongs to another user.");
    }
#endif
}

template <typename Address>
int connected(int family, const Address& address, const Deadline& deadline) {
    Descriptor descriptor(::socket(family, SOCK_STREAM, 0));
    if (descriptor.number() < 0) throw ConnectionLost("No socket could be had: " + systemError());
    closeOnExec(descriptor.number());
#ifdef __APPLE__
    const int on = 1;
    ::setsockopt(descriptor.number(), SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    ::fcntl(descriptor.number(), F_SETFL, ::fcntl(descriptor.number(), F_GETFL) | O_NONBLOCK);
    while (::connect(descriptor.number(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        const int why = errno;
        if (why == EISCONN) break;
        deadline.check("to take a connection");
        if (why == EAGAIN) {  // a unix socket whose queue is full
            deadline.sleep(pollInterval, "to take a connection");
        } else if (why == EINPROGRESS || why == EALREADY || why == EINTR) {
            waitFor(descriptor.number(), POLLOUT, pollInterval);
        } else {
            throw ConnectionLost(std::string("No engine answers: ") + std::strerror(why));
        }
    }
    return descriptor.release();
}

void preallocate(int descriptor, std::size_t bytes, const Check& check) {
    const auto length = static_cast<off_t>(bytes);
#ifdef __APPLE__
    check();
    fstore_t wanted{F_ALLOCATEALL, F_PEOFPOSMODE, 0, length, 0};
    if (::fcntl(descriptor, F_PREALLOCATE, &wanted) != 0 || ::ftruncate(descriptor, length) != 0) {
        throw std::runtime_error("The shared memory folder is full: " + systemError());
    }
#else
    for (off_t done = 0; done < length; done += allocatedAtOnce) {
        check();
        const int failure = ::posix_fallocate(descriptor, done, std::min(allocatedAtOnce, length - done));
        if (failure != 0) throw std::runtime_error(std::string("The shared memory folder is full: ") + std::strerror(failure));
    }
#endif
}

std::optional<std::string> readAtMost(int descriptor, std::size_t bytes) {
    std::string text(bytes, '\0');
    std::size_t filled = 0;
    while (filled < bytes) {
        const ssize_t got = ::read(descriptor, text.data() + filled, bytes - filled);
        if (got < 0) return std::nullopt;
        if (got == 0) break;
        filled += static_cast<std::size_t>(got);
    }
    text.resize(filled);
    return text;
}

class PosixChild : public Child {
  public:
    explicit PosixChild(pid_t process) : process_(process) {}
    std::optional<int> exitCode() override {
        if (code_) return code_;
        int state = 0;
        const pid_t answered = ::waitpid(process_, &state, WNOHANG);
        if (answered == 0) return std::nullopt;
        code_ = answered == process_ && WIFEXITED(state) ? WEXITSTATUS(state) : -1;
        return code_;
    }

  private:
    pid_t process_;
    std::optional<int> code_;
};

// Runs in the child, in the host's own memory, until exec: only calls that are safe there.
[[noreturn]] void become(char* const* arguments, char* const* variables, const char* folder, int highest) {
    ::setsid();
    if (::chdir(folder) != 0) ::_exit(127);
    const int null = ::open("/dev/null", O_RDWR);
    for (int standard = 0; standard < 3; ++standard) ::dup2(null, standard);
    for (int descriptor = 3; descriptor < highest; ++descriptor) ::close(descriptor);
    struct sigaction usual{};
    usual.sa_handler = SIG_DFL;
    for (const int signal : {SIGPIPE, SIGCHLD, SIGINT, SIGTERM, SIGHUP}) ::sigaction(signal, &usual, nullptr);
    sigset_t none;
    sigemptyset(&none);  // a macro on some systems
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::execve(arguments[0], arguments, variables);
    ::_exit(127);
}

std::vector<char*> pointersTo(std::vector<std::string>& texts) {
    std::vector<char*> pointers;
    for (std::string& text : texts) pointers.push_back(text.data());
    pointers.push_back(nullptr);
    return pointers;
}

}  // namespace

std::optional<std::string> environment(const std::string& name) {
    const char* found = std::getenv(name.c_str());
    if (found == nullptr || *found == '\0') return std::nullopt;
    return std::string(found);
}

std::map<std::string, std::string> wholeEnvironment() {
    std::map<std::string, std::string> variables;
    for (char** entry = environmentStrings(); entry != nullptr && *entry != nullptr; ++entry) {
        const std::string text(*entry);
        const std::size_t equals = text.find('=');
        if (equals != std::string::npos) variables.emplace(text.substr(0, equals), text.substr(equals + 1));
    }
    return variables;
}

std::uint64_t processId() { return static_cast<std::uint64_t>(::getpid()); }

std::string randomHex(std::size_t bytes) {
    Descriptor source(::open("/dev/urandom", O_RDONLY | O_CLOEXEC));
    std::vector<std::uint8_t> drawn(bytes);
    if (::read(source.number(), drawn.data(), bytes) != static_cast<ssize_t>(bytes)) {
        throw std::runtime_error("The system gives no random numbers.");
    }
    std::string text;
    for (const std::uint8_t byte : drawn) {
        constexpr std::string_view digits = "0123456789abcdef";
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

std::string thisLibrary() {
    Dl_info about{};
    if (::dladdr(reinterpret_cast<const void*>(&thisLibrary), &about) == 0 || about.dli_fname == nullptr) return {};
    char* resolved = ::realpath(about.dli_fname, nullptr);
    if (resolved == nullptr) return about.dli_fname;
    std::string path(resolved);
    std::free(resolved);
    return path;
}

std::string dataFolder() {
    std::string home = environment("HOME").value_or("");
    if (home.empty()) {
        const passwd* user = ::getpwuid(::geteuid());
        home = user != nullptr ? user->pw_dir : "/";
    }
#ifdef __APPLE__
    return home + "/Library/Application Support/STM for Nuke";
#else
    return home + "/.local/share/stm-for-nuke";
#endif
}

std::string runtimeFolder() {
    if (const auto named = environment("STM_RUNTIME_DIR")) return *named;
    const std::string user = std::to_string(::geteuid());
#ifndef __APPLE__
    struct stat found{};
    const std::string run = "/run/user/" + user;
    if (::stat(run.c_str(), &found) == 0 && S_ISDIR(found.st_mode) && found.st_uid == ::geteuid()) {
        return run + "/stm-for-nuke";
    }
#endif
    return "/tmp/stm-for-nuke-" + user;
}

void requirePrivateFolder(const std::string& folder) {
    if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
        throw std::runtime_error(folder + ": The engine's folder cannot be made: " + systemError());
    }
    struct stat found{};
    if (::lstat(folder.c_str(), &found) != 0 || !S_ISDIR(found.st_mode) || found.st_uid != ::geteuid() ||
        (found.st_mode & 0077) != 0) {
        throw std::runtime_error(folder + ": The engine's folder must be a folder of yours that is closed to others.");
    }
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

void makeFolders(const std::string& path) {
    for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
        const std::string part = path.substr(0, end);
        if (::mkdir(part.c_str(), 0777) != 0 && errno != EEXIST && !exists(part)) {
            throw std::runtime_error(part + ": The folder cannot be made: " + systemError());
        }
        if (end == std::string::npos) return;
    }
}

std::optional<std::string> readSmallFile(const std::string& path, std::size_t limit) {
    Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat found{};
    if (file.number() < 0 || ::fstat(file.number(), &found) != 0 || !S_ISREG(found.st_mode)) return std::nullopt;
    const auto text = readAtMost(file.number(), limit + 1);
    return text && text->size() <= limit ? text : std::nullopt;
}

std::optional<std::string> readEnd(const std::string& path, std::size_t bytes) {
    Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat found{};
    if (file.number() < 0 || ::fstat(file.number(), &found) != 0 || !S_ISREG(found.st_mode)) return std::nullopt;
    const auto length = static_cast<off_t>(bytes);
    if (found.st_size > length && ::lseek(file.number(), -length, SEEK_END) < 0) return std::nullopt;
    return readAtMost(file.number(), bytes);
}

Socket Socket::connectUnix(const std::string& path, const Deadline& deadline) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) throw ConnectionLost("The engine's socket has too long a path.");
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    Socket socket(connected(AF_UNIX, address, deadline));
    checkPeer(static_cast<int>(socket.handle_));
    return socket;
}

Socket Socket::connectLoopback(int port, const Deadline& deadline) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    Socket socket(connected(AF_INET, address, deadline));
    const int on = 1;
    ::setsockopt(static_cast<int>(socket.handle_), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return socket;
}

Socket::Socket(Socket&& other) noexcept : handle_(std::exchange(other.handle_, -1)) {}

Socket& Socket::operator=(Socket&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
}

Socket::~Socket() {
    if (handle_ >= 0) ::close(static_cast<int>(handle_));
}

std::size_t Socket::receive(std::uint8_t* into, std::size_t capacity, Milliseconds wait) {
    const int descriptor = static_cast<int>(handle_);
    if (!waitFor(descriptor, POLLIN, wait)) return 0;
    const ssize_t got = ::recv(descriptor, into, capacity, 0);
    if (got > 0) return static_cast<std::size_t>(got);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return 0;
    throw ConnectionLost("The engine has closed the connection.");
}

std::size_t Socket::send(const std::uint8_t* from, std::size_t count, Milliseconds wait) {
    const int descriptor = static_cast<int>(handle_);
    if (!waitFor(descriptor, POLLOUT, wait)) return 0;
    const ssize_t sent = ::send(descriptor, from, count, sendFlags);
    if (sent >= 0) return static_cast<std::size_t>(sent);
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return 0;
    throw ConnectionLost("The engine has closed the connection.");
}

MappedFile::MappedFile(const std::string& folder, const std::string& name, std::size_t bytes, const Check& check)
    : path_(folder + "/" + name), name_(name), size_(bytes) {
    Descriptor file(::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (file.number() < 0) throw std::runtime_error(path_ + ": The shared memory cannot be made: " + systemError());
    try {
        preallocate(file.number(), bytes, check);
        void* mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.number(), 0);
        if (mapped == MAP_FAILED) throw std::runtime_error(path_ + ": The shared memory cannot be used: " + systemError());
        data_ = static_cast<std::uint8_t*>(mapped);
    } catch (...) {
        ::unlink(path_.c_str());
        throw;
    }
}

MappedFile::~MappedFile() {
    ::munmap(data_, size_);
    ::unlink(path_.c_str());
}

std::unique_ptr<Child> start(const std::vector<std::string>& command, const std::map<std::string, std::string>& variables,
                             const std::string& folder) {
    std::vector<std::string> arguments = command;
    std::vector<std::string> settings;
    for (const auto& [name, text] : variables) settings.push_back(name + "=" + text);
    // All memory is had before the fork: another thread of the host may hold the allocator's lock.
    const std::vector<char*> argumentPointers = pointersTo(arguments);
    const std::vector<char*> settingPointers = pointersTo(settings);
    const int highest = static_cast<int>(std::min<long>(::sysconf(_SC_OPEN_MAX), 65536));
    // The memory of a host may be large: to copy its tables, as fork does, took 40 ms for each GB. No handler of the host
    // may run in the child.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
#ifdef __APPLE__
    const pid_t process = ::fork();
#else
    const pid_t process = ::vfork();
#endif
    if (process == 0) become(argumentPointers.data(), settingPointers.data(), folder.c_str(), highest);
    const int why = errno;
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (process < 0) throw std::runtime_error(std::string("The engine cannot be started: ") + std::strerror(why));
    return std::make_unique<PosixChild>(process);
}

}  // namespace stm::platform
