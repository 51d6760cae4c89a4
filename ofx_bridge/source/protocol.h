// Messages of the engine protocol (PROTOCOL.md, sections 2 and 6): bytes to values and back. No sockets here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace stm {

using Json = nlohmann::json;
using Bytes = std::vector<std::uint8_t>;

inline constexpr int protocolMajor = 1;
inline constexpr int protocolMinor = 4;
inline constexpr int minorWithRestoring = 4;  // restore_key
inline constexpr int minorWithForeground = 3;
inline constexpr int minorWithLayers = 2;  // get_matte has `layer`, open_shot has `copy_of`
inline constexpr std::size_t prefixBytes = 24;
inline constexpr std::uint64_t maxHeaderBytes = 4194304;
inline constexpr std::uint64_t maxPayloadBytes = 1073741824;

enum class Kind : std::uint8_t { request = 1, reply = 2, error = 3, event = 4 };

struct Message {
    Kind kind = Kind::request;
    std::uint32_t id = 0;
    Json header;
    Bytes payload;
};

// The other side does not speak the protocol; the connection is of no more use.
struct FramingError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Strict JSON: one object, UTF-8 without a mark, no repeated names, at most 16 deep, whole numbers within 2^53, all
// finite. Throws FramingError.
Json parseHeader(const char* text, std::size_t bytes);

// A whole number of a header. Throws FramingError for anything else: converting a huge number with a fraction is undefined.
std::int64_t wholeNumber(const Json& value);
std::vector<std::int64_t> wholeNumbers(const Json& values);

// The prefix and the header of a message whose payload of `payloadBytes` follows.
Bytes encoded(Kind kind, std::uint32_t id, const Json& header, std::uint64_t payloadBytes);

// Turns the bytes of a connection into messages. Nothing is allocated for bytes that have not arrived.
class MessageReader {
  public:
    // A payload longer than this is refused; the header limit never changes.
    void setPayloadLimit(std::uint64_t bytes) { payloadLimit_ = bytes; }
    // How many bytes would complete what is being read: a good size for the next receive. At least 1.
    std::size_t wanted() const;
    // Throws FramingError as soon as what has come cannot be a message. Then the reader must not be used again.
    void feed(const std::uint8_t* bytes, std::size_t count);
    // The next whole message, if there is one. Throws FramingError.
    std::optional<Message> next();

  private:
    struct Prefix {
        Kind kind;
        std::uint32_t id;
        std::uint64_t headerBytes;
        std::uint64_t payloadBytes;
    };
    std::optional<Prefix> prefix() const;

    Bytes buffer_;
    std::uint64_t payloadLimit_ = maxPayloadBytes;
};

}  // namespace stm
