// One connection to the engine: hello, requests, pixels through mapped files. Starts the engine where there is none.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "platform.h"
#include "protocol.h"

namespace stm {

// The engine's error for a request that it could not carry out (PROTOCOL.md, section 6).
struct EngineError : std::runtime_error {
    EngineError(std::string errorCode, const std::string& text, Json errorDetails)
        : std::runtime_error(text), code(std::move(errorCode)), details(std::move(errorDetails)) {}
    std::string code;
    Json details;
};

struct Reply {
    Json header;
    Bytes payload;
};

// What the configuration of the engine's site says (PROTOCOL.md, hello).
struct Site {
    Json locked = Json::object();      // settings that are locked: by name, the value and the reason
    Json configured = Json::object();  // settings of new shots that it says: by name, the value
    std::string cacheFolder;           // of shots without a chosen place; empty: it says none
};

// Pixels on their way to the engine: `fill` writes exactly `bytes` bytes, and checks for cancellation now and then.
struct OutgoingPixels {
    std::size_t bytes = 0;
    std::function<void(std::uint8_t*, const Check&)> fill;
};

// The time in an environment variable, else `otherwise`.
Milliseconds secondsFrom(const char* variable, double otherwise);

// One user at a time; ShotSession holds the lock. After ConnectionLost or FramingError it is of no more use.
class Connection {
  public:
    // Connects to the running engine, or starts one and waits for it. `client` is this host's name and version.
    static std::unique_ptr<Connection> open(const std::string& client, const Deadline& deadline);
    // Connects to the running engine; nothing when there is none.
    static std::unique_ptr<Connection> openRunning(const std::string& client, const Deadline& deadline);

    // Starts the engine where none runs, at most once a minute, and does not wait for it: it loads while the artist draws.
    // What goes wrong is reported by the request that needs it.
    static void startAhead(const Deadline& deadline);

    // The lower one of both sides' minor versions: what may be asked for.
    int minor() const { return minor_; }
    // Settings that the configuration of the engine's site locks: by name, the value and the reason. They are not sent.
    const Json& locked() const { return site_.locked; }
    const Site& site() const { return site_; }
    // Takes over what an answer of the engine says of the configuration.
    void learnSite(const Json& answer);

    // Sends a request and waits for its answer. Throws EngineError, ConnectionLost, Cancelled or DeadlinePassed. A request
    // that is given up is still carried out; its answer is dropped when it comes.
    Reply request(Json header, const Deadline& deadline);
    // Sends a request and does not wait for its answer, which is dropped when it comes.
    void post(const Json& header, const Deadline& deadline);
    // `request` with an image: `header["image"]` is completed with where the pixels are.
    Reply requestWithPixels(Json header, const OutgoingPixels& pixels, const Deadline& deadline);
    // The same for an operation that answers `bytes` of pixels; they are handed to `take` before this returns.
    Json requestPixels(Json header, std::size_t bytes, const std::function<void(const std::uint8_t*)>& take,
                       const Deadline& deadline);

  private:
    Connection(platform::Socket socket, const std::string& client, const std::string& token, const std::string& answer,
               const Deadline& deadline);

    std::uint32_t send(const Json& header, const std::uint8_t* payload, std::size_t payloadBytes, const Deadline& deadline);
    Reply exchange(const Json& header, const std::uint8_t* payload, std::size_t payloadBytes, std::uint64_t answerBytes,
                   const Deadline& deadline);
    Message nextMessage(const Deadline& deadline);
    void sendAll(const std::uint8_t* bytes, std::size_t count, const Deadline& deadline);
    platform::MappedFile* mapped(std::unique_ptr<platform::MappedFile>& slot, std::size_t bytes, const Deadline& deadline);

    platform::Socket socket_;
    MessageReader reader_;
    std::uint32_t lastId_ = 0;
    std::optional<std::string> mapFolder_;
    std::string mapPrefix_;
    int mapCount_ = 0;
    int minor_ = 0;
    Site site_;
    std::unique_ptr<platform::MappedFile> outgoing_;
    std::unique_ptr<platform::MappedFile> incoming_;
    bool broken_ = false;
};

}  // namespace stm
