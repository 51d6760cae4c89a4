#include "protocol.h"

#include <algorithm>
#include <limits>
#include <set>

namespace stm {

namespace {

constexpr std::array<std::uint8_t, 4> magic{0x53, 0x54, 0x4D, 0x01};
constexpr std::uint64_t minHeaderBytes = 2;
constexpr int maxDepth = 16;
constexpr std::int64_t maxInteger = std::int64_t{1} << 53;

std::uint64_t littleEndian(const std::uint8_t* from, std::size_t bytes) {
    std::uint64_t value = 0;
    for (std::size_t i = bytes; i-- > 0;) value = (value << 8) | from[i];
    return value;
}

void appendLittleEndian(Bytes& into, std::uint64_t value, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i) into.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

// What the standard parser lets pass and the protocol does not.
class Strictness {
  public:
    bool operator()(int depth, Json::parse_event_t event, const Json& parsed) {
        switch (event) {
            case Json::parse_event_t::object_start: names_.emplace_back(); [[fallthrough]];
            case Json::parse_event_t::array_start:
                if (depth >= maxDepth) throw FramingError("The header is nested too deep.");
                break;
            case Json::parse_event_t::object_end: names_.pop_back(); break;
            case Json::parse_event_t::key:
                if (!names_.back().insert(parsed.get<std::string>()).second) {
                    throw FramingError("A name is repeated in the header.");
                }
                break;
            case Json::parse_event_t::value: checkNumber(parsed); break;
            case Json::parse_event_t::array_end: break;
        }
        return true;
    }

  private:
    static void checkNumber(const Json& parsed) {
        if (!parsed.is_number_integer()) return;
        const bool fits = parsed.is_number_unsigned()
                              ? parsed.get<std::uint64_t>() <= static_cast<std::uint64_t>(maxInteger)
                              : parsed.get<std::int64_t>() >= -maxInteger;
        if (!fits) throw FramingError("A whole number in the header is too large.");
    }

    std::vector<std::set<std::string>> names_;
};

}  // namespace

Json parseHeader(const char* text, std::size_t bytes) {
    if (bytes == 0 || static_cast<unsigned char>(*text) == 0xEF) throw FramingError("The header is not a JSON object.");
    try {
        Strictness strictness;
        Json header = Json::parse(
            text, text + bytes,
            [&strictness](int depth, Json::parse_event_t event, Json& parsed) { return strictness(depth, event, parsed); });
        if (!header.is_object()) throw FramingError("The header is not a JSON object.");
        return header;
    } catch (const Json::exception&) {
        throw FramingError("The header is not valid JSON.");
    }
}

std::int64_t wholeNumber(const Json& value) {
    if (!value.is_number_integer()) throw FramingError("A whole number was expected.");
    return value.get<std::int64_t>();
}

std::vector<std::int64_t> wholeNumbers(const Json& values) {
    std::vector<std::int64_t> found;
    if (!values.is_array()) throw FramingError("A list of whole numbers was expected.");
    for (const Json& value : values) found.push_back(wholeNumber(value));
    return found;
}

Bytes encoded(Kind kind, std::uint32_t id, const Json& header, std::uint64_t payloadBytes) {
    std::string text;
    try {
        text = header.dump();
    } catch (const Json::exception&) {
        throw FramingError("A text is not valid UTF-8 and cannot be sent to the engine.");
    }
    if (text.size() > maxHeaderBytes || payloadBytes > maxPayloadBytes) {
        throw FramingError("A message is too large for the engine.");
    }
    Bytes bytes(magic.begin(), magic.end());
    bytes.push_back(static_cast<std::uint8_t>(kind));
    bytes.resize(bytes.size() + 3, 0);
    appendLittleEndian(bytes, id, 4);
    appendLittleEndian(bytes, text.size(), 4);
    appendLittleEndian(bytes, payloadBytes, 8);
    bytes.insert(bytes.end(), text.begin(), text.end());
    return bytes;
}

std::optional<MessageReader::Prefix> MessageReader::prefix() const {
    if (buffer_.size() < prefixBytes) return std::nullopt;
    const std::uint8_t* bytes = buffer_.data();
    const std::uint8_t kind = bytes[4];
    if (!std::equal(magic.begin(), magic.end(), bytes) || kind < 1 || kind > 4 || (bytes[5] | bytes[6] | bytes[7]) != 0) {
        throw FramingError("The engine does not speak the protocol.");
    }
    const Prefix found{static_cast<Kind>(kind), static_cast<std::uint32_t>(littleEndian(bytes + 8, 4)),
                       littleEndian(bytes + 12, 4), littleEndian(bytes + 16, 8)};
    if (found.id == 0 && found.kind != Kind::error) throw FramingError("A message has no request id.");
    if (found.headerBytes < minHeaderBytes || found.headerBytes > maxHeaderBytes) {
        throw FramingError("A header has an impossible length.");
    }
    if (found.payloadBytes > std::min(payloadLimit_, maxPayloadBytes)) {
        throw FramingError("A payload is longer than what was asked for.");
    }
    return found;
}

std::size_t MessageReader::wanted() const {
    const auto found = prefix();
    const std::uint64_t whole = found ? prefixBytes + found->headerBytes + found->payloadBytes : prefixBytes;
    return static_cast<std::size_t>(whole > buffer_.size() ? whole - buffer_.size() : 1);
}

void MessageReader::feed(const std::uint8_t* bytes, std::size_t count) {
    buffer_.insert(buffer_.end(), bytes, bytes + count);
    (void)prefix();
}

std::optional<Message> MessageReader::next() {
    const auto found = prefix();
    if (!found) return std::nullopt;
    const std::uint64_t headerEnd = prefixBytes + found->headerBytes;
    if (buffer_.size() < headerEnd + found->payloadBytes) return std::nullopt;
    const auto at = [this](std::uint64_t offset) { return buffer_.begin() + static_cast<std::ptrdiff_t>(offset); };
    Message message{found->kind, found->id, parseHeader(reinterpret_cast<const char*>(buffer_.data()) + prefixBytes,
                                                       static_cast<std::size_t>(found->headerBytes)),
                    {}};
    message.payload.assign(at(headerEnd), at(headerEnd + found->payloadBytes));
    buffer_.erase(buffer_.begin(), at(headerEnd + found->payloadBytes));
    return message;
}

}  // namespace stm
