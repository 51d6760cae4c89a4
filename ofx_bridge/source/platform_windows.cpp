// Compiled for Windows, never run there (docs/openfx-for-artists.md says so).
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>
#include <ntsecapi.h>

#include <algorithm>
#include <cwchar>
#include <string_view>
#include <utility>

#include "platform.h"

namespace stm::platform {

namespace {

constexpr DWORD longPath = 32768;

std::string systemError() { return "Windows error " + std::to_string(::GetLastError()); }

std::wstring wide(const std::string& text) {
    const int length = ::MultiByteToWideChar(CP_UTF8, 0, text.data(), static_cast<int>(text.size()), nullptr, 0);
    std::wstring result(static_cast<std::size_t>(length), L'\0');
    ::MultiByteToWideChar(CP_UTF8, 0, text.data(), static_cast<int>(text.size()), result.data(), length);
    return result;
}

std::string narrow(std::wstring_view text) {
    const int length =
        ::WideCharToMultiByte(CP_UTF8, 0, text.data(), static_cast<int>(text.size()), nullptr, 0, nullptr, nullptr);
    std::string result(static_cast<std::size_t>(length), '\0');
    ::WideCharToMultiByte(CP_UTF8, 0, text.data(), static_cast<int>(text.size()), result.data(), length, nullptr, nullptr);
    return result;
}

// Quoted as the C runtime of the started program reads it.
std::wstring quoted(const std::string& argument) {
    std::wstring result = L"\"";
    std::size_t slashes = 0;
    for (const wchar_t letter : wide(argument)) {
        if (letter == L'\\') {
            ++slashes;
            continue;
        }
        result.append(letter == L'"' ? 2 * slashes + 1 : slashes, L'\\');
        slashes = 0;
        result += letter;
    }
    result.append(2 * slashes, L'\\');
    return result + L'"';
}

class Handle {
  public:
    explicit Handle(HANDLE handle) : handle_(handle) {}
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
        if (valid()) ::CloseHandle(handle_);
    }
    bool valid() const { return handle_ != nullptr && handle_ != INVALID_HANDLE_VALUE; }
    HANDLE get() const { return handle_; }
    HANDLE release() { return std::exchange(handle_, nullptr); }

  private:
    HANDLE handle_;
};

void startSockets() {
    static const int started = [] {
        WSADATA about{};
        return ::WSAStartup(MAKEWORD(2, 2), &about);
    }();
    if (started != 0) throw ConnectionLost("Windows has no sockets.");
}

bool waitFor(SOCKET socket, short events, Milliseconds wait) {
    WSAPOLLFD asked{socket, events, 0};
    const int ready = ::WSAPoll(&asked, 1, static_cast<int>(wait.count()));
    if (ready < 0) throw ConnectionLost("The connection to the engine failed.");
    return ready > 0;
}

// `select` reports failed connections on every Windows; WSAPoll does not.
void awaitConnected(SOCKET socket, const Deadline& deadline) {
    while (true) {
        deadline.check("to take a connection");
        fd_set done;
        fd_set failed;
        FD_ZERO(&done);
        FD_ZERO(&failed);
        FD_SET(socket, &done);
        FD_SET(socket, &failed);
        const timeval wait{0, static_cast<long>(std::chrono::microseconds(pollInterval).count())};
        if (::select(0, nullptr, &done, &failed, &wait) < 0 || FD_ISSET(socket, &failed)) {
            throw ConnectionLost("No engine answers.");
        }
        if (FD_ISSET(socket, &done)) return;
    }
}

class WindowsChild : public Child {
  public:
    explicit WindowsChild(HANDLE process) : process_(process) {}
    std::optional<int> exitCode() override {
        DWORD code = 0;
        if (::WaitForSingleObject(process_.get(), 0) == WAIT_TIMEOUT) return std::nullopt;
        return ::GetExitCodeProcess(process_.get(), &code) != 0 ? static_cast<int>(code) : -1;
    }

  private:
    Handle process_;
};

}  // namespace

std::optional<std::string> environment(const std::string& name) {
    std::wstring text(longPath, L'\0');
    const DWORD length = ::GetEnvironmentVariableW(wide(name).c_str(), text.data(), longPath);
    if (length == 0 || length >= longPath) return std::nullopt;
    return narrow({text.data(), length});
}

std::map<std::string, std::string> wholeEnvironment() {
    std::map<std::string, std::string> variables;
    wchar_t* block = ::GetEnvironmentStringsW();
    for (const wchar_t* entry = block; entry != nullptr && *entry != L'\0'; entry += std::wcslen(entry) + 1) {
        const std::string text = narrow(entry);
        const std::size_t equals = text.find('=', 1);
        if (equals != std::string::npos) variables.emplace(text.substr(0, equals), text.substr(equals + 1));
    }
    if (block != nullptr) ::FreeEnvironmentStringsW(block);
    return variables;
}

std::uint64_t processId() { return ::GetCurrentProcessId(); }

std::string randomHex(std::size_t bytes) {
    std::vector<std::uint8_t> drawn(bytes);
    if (RtlGenRandom(drawn.data(), static_cast<ULONG>(bytes)) == 0) {
        throw std::runtime_error("The system gives no random numbers.");
    }
    constexpr std::string_view digits = "0123456789abcdef";
    std::string text;
    for (const std::uint8_t byte : drawn) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

std::string thisLibrary() {
    HMODULE module = nullptr;
    std::wstring path(longPath, L'\0');
    constexpr DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (::GetModuleHandleExW(flags, reinterpret_cast<LPCWSTR>(&thisLibrary), &module) == 0) return {};
    const DWORD length = ::GetModuleFileNameW(module, path.data(), longPath);
    return narrow({path.data(), length});
}

std::string dataFolder() {
    const std::string local = environment("LOCALAPPDATA").value_or(environment("USERPROFILE").value_or("C:") + "\\AppData\\Local");
    return local + "\\STM for Nuke";
}

std::string runtimeFolder() {
    if (const auto named = environment("STM_RUNTIME_DIR")) return *named;
    return dataFolder() + "\\run";
}

// Folders under the user's local data are closed to others by what they inherit.
void requirePrivateFolder(const std::string& folder) {
    makeFolders(folder);
    const DWORD attributes = ::GetFileAttributesW(wide(folder).c_str());
    constexpr DWORD link = FILE_ATTRIBUTE_REPARSE_POINT;
    if (attributes == INVALID_FILE_ATTRIBUTES || (attributes & FILE_ATTRIBUTE_DIRECTORY) == 0 || (attributes & link) != 0) {
        throw std::runtime_error(folder + ": The engine's folder must be a folder of yours and no link.");
    }
}

bool exists(const std::string& path) { return ::GetFileAttributesW(wide(path).c_str()) != INVALID_FILE_ATTRIBUTES; }

void makeFolders(const std::string& path) {
    for (std::size_t end = path.find_first_of("/\\", 3);; end = path.find_first_of("/\\", end + 1)) {
        const std::string part = path.substr(0, end);
        if (::CreateDirectoryW(wide(part).c_str(), nullptr) == 0 && !exists(part)) {
            throw std::runtime_error(part + ": The folder cannot be made: " + systemError());
        }
        if (end == std::string::npos) return;
    }
}

// The last `bytes` of a file, or all of it where it is shorter; nothing where it is longer and has to be whole.
static std::optional<std::string> readLast(const std::string& path, std::size_t bytes, bool mustBeWhole) {
    constexpr DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    const Handle file(::CreateFileW(wide(path).c_str(), GENERIC_READ, share, nullptr, OPEN_EXISTING, 0, nullptr));
    LARGE_INTEGER size{};
    if (!file.valid() || ::GetFileSizeEx(file.get(), &size) == 0) return std::nullopt;
    const auto length = static_cast<std::uint64_t>(size.QuadPart);
    if (length > bytes) {
        if (mustBeWhole) return std::nullopt;
        LARGE_INTEGER from{};
        from.QuadPart = static_cast<LONGLONG>(length - bytes);
        if (::SetFilePointerEx(file.get(), from, nullptr, FILE_BEGIN) == 0) return std::nullopt;
    }
    std::string text(static_cast<std::size_t>(std::min<std::uint64_t>(length, bytes)), '\0');
    DWORD got = 0;
    if (::ReadFile(file.get(), text.data(), static_cast<DWORD>(text.size()), &got, nullptr) == 0) return std::nullopt;
    text.resize(got);
    return text;
}

std::optional<std::string> readSmallFile(const std::string& path, std::size_t limit) { return readLast(path, limit, true); }

std::optional<std::string> readEnd(const std::string& path, std::size_t bytes) { return readLast(path, bytes, false); }

Socket Socket::connectUnix(const std::string&, const Deadline&) { throw ConnectionLost("The engine's socket is of another system."); }

Socket Socket::connectLoopback(int port, const Deadline& deadline) {
    startSockets();
    const SOCKET socket = ::socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
    if (socket == INVALID_SOCKET) throw ConnectionLost("No socket could be had.");
    Socket result(static_cast<std::intptr_t>(socket));
    ::SetHandleInformation(reinterpret_cast<HANDLE>(socket), HANDLE_FLAG_INHERIT, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    u_long on = 1;
    ::ioctlsocket(socket, static_cast<long>(FIONBIO), &on);
    if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        if (::WSAGetLastError() != WSAEWOULDBLOCK) throw ConnectionLost("No engine answers.");
        awaitConnected(socket, deadline);
    }
    ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, reinterpret_cast<const char*>(&on), sizeof on);
    return result;
}

Socket::Socket(Socket&& other) noexcept : handle_(std::exchange(other.handle_, -1)) {}

Socket& Socket::operator=(Socket&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
}

Socket::~Socket() {
    if (handle_ != -1) ::closesocket(static_cast<SOCKET>(handle_));
}

std::size_t Socket::receive(std::uint8_t* into, std::size_t capacity, Milliseconds wait) {
    const auto socket = static_cast<SOCKET>(handle_);
    if (!waitFor(socket, POLLRDNORM, wait)) return 0;
    const int got = ::recv(socket, reinterpret_cast<char*>(into), static_cast<int>(capacity), 0);
    if (got > 0) return static_cast<std::size_t>(got);
    if (got < 0 && ::WSAGetLastError() == WSAEWOULDBLOCK) return 0;
    throw ConnectionLost("The engine has closed the connection.");
}

std::size_t Socket::send(const std::uint8_t* from, std::size_t count, Milliseconds wait) {
    constexpr std::size_t most = std::size_t{1} << 20;
    const auto socket = static_cast<SOCKET>(handle_);
    if (!waitFor(socket, POLLWRNORM, wait)) return 0;
    const int length = static_cast<int>(count < most ? count : most);
    const int sent = ::send(socket, reinterpret_cast<const char*>(from), length, 0);
    if (sent >= 0) return static_cast<std::size_t>(sent);
    if (::WSAGetLastError() == WSAEWOULDBLOCK) return 0;
    throw ConnectionLost("The engine has closed the connection.");
}

MappedFile::MappedFile(const std::string& folder, const std::string& name, std::size_t bytes, const Check& check)
    : path_(folder + "\\" + name), name_(name), size_(bytes) {
    check();
    constexpr DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    const Handle file(::CreateFileW(wide(path_).c_str(), GENERIC_READ | GENERIC_WRITE, share, nullptr, CREATE_NEW,
                                    FILE_ATTRIBUTE_TEMPORARY, nullptr));
    if (!file.valid()) throw std::runtime_error(path_ + ": The shared memory cannot be made: " + systemError());
    const auto length = static_cast<std::uint64_t>(bytes);
    const Handle mapping(::CreateFileMappingW(file.get(), nullptr, PAGE_READWRITE, static_cast<DWORD>(length >> 32),
                                              static_cast<DWORD>(length), nullptr));
    if (mapping.valid()) data_ = static_cast<std::uint8_t*>(::MapViewOfFile(mapping.get(), FILE_MAP_ALL_ACCESS, 0, 0, bytes));
    if (data_ == nullptr) {
        const std::string failure = systemError();
        ::DeleteFileW(wide(path_).c_str());
        throw std::runtime_error(path_ + ": The shared memory cannot be used: " + failure);
    }
}

MappedFile::~MappedFile() {
    ::UnmapViewOfFile(data_);
    ::DeleteFileW(wide(path_).c_str());
}

std::unique_ptr<Child> start(const std::vector<std::string>& command, const std::map<std::string, std::string>& variables,
                             const std::string& folder) {
    std::wstring line;
    for (const std::string& argument : command) line += (line.empty() ? L"" : L" ") + quoted(argument);
    std::wstring block;
    for (const auto& [name, text] : variables) block += wide(name + "=" + text) + L'\0';
    block += L'\0';
    STARTUPINFOW how{};
    how.cb = sizeof how;
    PROCESS_INFORMATION started{};
    constexpr DWORD flags = DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP | CREATE_UNICODE_ENVIRONMENT;
    if (::CreateProcessW(nullptr, line.data(), nullptr, nullptr, FALSE, flags, block.data(), wide(folder).c_str(), &how,
                         &started) == 0) {
        throw std::runtime_error("The engine cannot be started: " + systemError());
    }
    ::CloseHandle(started.hThread);
    return std::make_unique<WindowsChild>(started.hProcess);
}

}  // namespace stm::platform
