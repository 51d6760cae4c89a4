#include "connection.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>

#include "version.h"

namespace stm {

namespace {

constexpr const char* unknownVersion = "0.0.0";  // of an engine that runs from sources that are not installed
constexpr std::size_t endpointLimit = 4096;
constexpr std::size_t installationLimit = 65536;
constexpr std::size_t logTail = 600;
constexpr std::int64_t lastPort = 65535;
constexpr std::size_t receiveChunk = 1U << 20;
constexpr std::array<Milliseconds, 3> startPauses{Milliseconds{0}, Milliseconds{1000}, Milliseconds{4000}};
constexpr std::chrono::seconds startForgiven{60};
constexpr Milliseconds engineStartLimit{60000};

// Counts the starts of this process, so that an engine that dies at once is not started again and again.
class Starter {
  public:
    static Starter& instance() {
        static Starter& starter = *new Starter;  // never destroyed: see plugin.cpp
        return starter;
    }

    // Starts the engine, or joins a start that is still under way. Tells whether it has started one.
    bool ensureStarted(const Deadline& deadline) {
        const auto turn = deadline.lock(mutex_, "while another node starts it");
        if (child_ && folder_ == platform::runtimeFolder() && !child_->exitCode()) return false;
        const Installation found = installation();  // first: without one, waiting and trying again are no use
        const bool isAnothers = folder_ != platform::runtimeFolder();
        if (isAnothers || Clock::now() - lastStart_ > startForgiven) count_ = 0;
        if (count_ >= startPauses.size()) {
            throw EngineError("internal", "The engine stopped " + std::to_string(count_) +
                                  " times in a row and is not started again for a minute. " + lastWords(), Json::object());
        }
        deadline.sleep(startPauses[count_], "before it is started again");
        ++count_;
        lastStart_ = Clock::now();
        start(found);
        return true;
    }

    void startOnce(const Deadline& deadline) {
        const auto turn = deadline.lock(mutex_, "while another node starts it");
        const bool isOurs = folder_ == platform::runtimeFolder();
        if (isOurs && (!child_ || !child_->exitCode() || Clock::now() - lastStart_ < startForgiven)) return;
        const Installation found = installation();
        count_ = 1;
        lastStart_ = Clock::now();
        start(found);
    }

    // How the engine that was started last has ended; nothing while it runs.
    std::optional<int> exitCode(const Deadline& deadline) {
        const auto turn = deadline.lock(mutex_, "while another node starts it");
        return child_ ? child_->exitCode() : std::nullopt;
    }

    static std::string lastWords() {
        const std::string log = platform::runtimeFolder() + "/engine.log";
        const auto text = platform::readEnd(log, logTail);
        if (!text || text->empty()) return "Its log would be " + log + ".";
        return "The end of " + log + ": " + *text;
    }

  private:
    struct Installation {
        std::string python;
        std::optional<std::string> root;
    };

    static std::optional<Installation> described(const std::string& file) {
        const auto text = platform::readSmallFile(file, installationLimit);
        if (!text) return std::nullopt;
        try {
            const Json about = parseHeader(text->data(), text->size());
            Installation found{about.at("python").get<std::string>(), std::nullopt};
            if (about.contains("root") && about["root"].is_string()) found.root = about["root"].get<std::string>();
            return found;
        } catch (const std::exception&) {
            throw EngineError("internal", file + ": The description of the installation cannot be read. Run the installer again.",
                              Json::object());
        }
    }

    // PREFIX of PREFIX/ofx/STM.ofx.bundle/Contents/ARCH/STM.ofx.
    static std::optional<std::string> ownPrefix() {
        std::string path = platform::thisLibrary();
        for (int level = 0; level < 5; ++level) {
            const std::size_t slash = path.find_last_of("/\\");
            if (slash == std::string::npos) return std::nullopt;
            path.erase(slash);
        }
        return path;
    }

    static Installation installation() {
        if (const auto python = platform::environment("STM_ENGINE_PYTHON")) {
            return {*python, platform::environment("STM_ENGINE_ROOT")};
        }
        std::vector<std::string> prefixes;
        if (const auto named = platform::environment("STM_PREFIX")) prefixes.push_back(*named);
        if (const auto own = ownPrefix()) prefixes.push_back(*own);
        prefixes.push_back(platform::dataFolder());
        for (const std::string& prefix : prefixes) {
            if (const auto found = described(prefix + "/engine.json")) return *found;
        }
        throw EngineError("internal", "The engine is not installed for this user. Run install.py, or set STM_PREFIX to where it is.",
                          Json::object());
    }

    static bool isHostOnly(const std::string& name) {
        const auto begins = [&name](const char* with) { return name.rfind(with, 0) == 0; };
        return begins("PYTHON") || begins("DYLD_") || begins("QT_") || begins("QML") || name == "NUKE_PATH" ||
               name == "OFX_PLUGIN_PATH" || name == "LD_PRELOAD" || name == "LD_LIBRARY_PATH";
    }

    void start(const Installation& found) {
        auto variables = platform::wholeEnvironment();
        for (auto entry = variables.begin(); entry != variables.end();) {
            entry = isHostOnly(entry->first) ? variables.erase(entry) : std::next(entry);
        }
        // MLT 7.41 sets this when there is no $OCIO; no OpenColorIO config has such a name.
        if (const auto ocio = variables.find("OCIO"); ocio != variables.end() && ocio->second.rfind("ocio://ocio://", 0) == 0) {
            variables.erase(ocio);
        }
        variables["PYTHONNOUSERSITE"] = "1";
        if (found.root) variables["PYTHONPATH"] = *found.root;
        folder_ = platform::runtimeFolder();
        platform::requirePrivateFolder(folder_);
        const char* isolated = found.root ? "-sP" : "-I";  // only a checkout needs PYTHONPATH
        child_ = platform::start({found.python, isolated, "-m", "stm_plugin.server", "--parent",
                                  std::to_string(platform::processId())},
                                 variables, folder_);
    }

    std::timed_mutex mutex_;
    std::unique_ptr<platform::Child> child_;
    std::string folder_;  // that the child serves
    std::size_t count_ = 0;
    Clock::time_point lastStart_{};
};

// The content of the endpoint file (PROTOCOL.md, section 1).
struct Endpoint {
    bool isUnix = false;
    std::string path;
    int port = 0;
    std::string token;
    std::string answer;
    bool isAnotherShows = false;
};

// An engine that was started with another STM_CONFIG has another show's settings and locks.
bool isAnotherShows(const Json& about) {
    if (!about.contains("configuration") || !about["configuration"].is_string()) return false;
    return about["configuration"].get<std::string>() != platform::environment("STM_CONFIG").value_or("");
}

void requireThisShow(const Endpoint& found) {
    if (!found.isAnotherShows) return;
    throw EngineError("internal",
                      "The engine that is at work was started with the configuration of another show (STM_CONFIG). Close the "
                      "programs that use it, or set STM_RUNTIME_DIR, so that this show has a separate engine.",
                      Json::object());
}

// Nothing when there is no such file, or one that no engine has written: an engine that is started replaces it.
std::optional<Endpoint> endpoint() {
    const std::string folder = platform::runtimeFolder();
    if (!platform::exists(folder)) return std::nullopt;
    platform::requirePrivateFolder(folder);
    const auto text = platform::readSmallFile(folder + "/endpoint.json", endpointLimit);
    if (!text) return std::nullopt;
    try {
        const Json about = parseHeader(text->data(), text->size());
        Endpoint found;
        found.isAnotherShows = isAnotherShows(about);
        found.isUnix = about.at("transport").get<std::string>() == "unix";
        found.token = about.at("token").get<std::string>();
        found.answer = about.at("answer").get<std::string>();
        if (found.isUnix) {
            found.path = about.at("path").get<std::string>();
        } else {
            const std::int64_t port = wholeNumber(about.at("port"));
            if (port < 1 || port > lastPort) return std::nullopt;
            found.port = static_cast<int>(port);
        }
        return found;
    } catch (const FramingError&) {
        return std::nullopt;
    } catch (const Json::exception&) {
        return std::nullopt;
    }
}

// An engine of another version may make other mattes of the same shot.
void requireThisVersion(const std::string& engine) {
    if (engine == versionLabel || engine == unknownVersion) return;
    throw EngineError("version",
                      "The engine that is at work is of version " + engine + ", and this effect of " + versionLabel +
                          ". Close the programs that use it, or set STM_RUNTIME_DIR, so that this version has a separate engine.",
                      Json::object());
}

}  // namespace

Milliseconds secondsFrom(const char* variable, double otherwise) {
    double seconds = otherwise;
    if (const auto told = platform::environment(variable)) {
        const double asked = std::strtod(told->c_str(), nullptr);
        if (asked > 0.0 && asked <= 1e6) seconds = asked;
    }
    return Milliseconds(static_cast<std::int64_t>(seconds * 1000.0));
}

std::unique_ptr<Connection> Connection::openRunning(const std::string& client, const Deadline& deadline) {
    const auto found = endpoint();
    if (!found) return nullptr;
    try {
        platform::Socket socket = found->isUnix ? platform::Socket::connectUnix(found->path, deadline)
                                                : platform::Socket::connectLoopback(found->port, deadline);
        requireThisShow(*found);  // not earlier: the file may be one that an engine left when it was killed
        return std::unique_ptr<Connection>(
            new Connection(std::move(socket), client, found->token, found->answer, deadline));
    } catch (const ConnectionLost&) {
        return nullptr;  // a file that an engine left when it was killed
    }
}

void Connection::startAhead(const Deadline& deadline) {
    try {
        if (!endpoint()) Starter::instance().startOnce(deadline);
    } catch (const std::runtime_error&) {
    }
}

std::unique_ptr<Connection> Connection::open(const std::string& client, const Deadline& deadline) {
    if (auto connection = openRunning(client, deadline)) return connection;
    try {
        Starter& starter = Starter::instance();
        bool started = starter.ensureStarted(deadline);
        const auto givenUp = Clock::now() + engineStartLimit;
        while (Clock::now() < givenUp) {
            if (auto connection = openRunning(client, deadline)) return connection;
            const std::optional<int> ended = starter.exitCode(deadline);
            if (ended && !started) {
                started = starter.ensureStarted(deadline);  // what was ending when we came has ended now
            } else if (ended.value_or(0) != 0) {  // 0: another engine was quicker
                throw EngineError("internal", "The engine could not start. " + Starter::lastWords(), Json::object());
            }
            deadline.sleep(pollInterval, "to start");
        }
    } catch (const EngineError&) {
        throw;
    } catch (const DeadlinePassed&) {
        throw;
    } catch (const std::runtime_error& error) {
        throw EngineError("internal", error.what(), Json::object());
    }
    throw DeadlinePassed("The engine did not answer within a minute of its start. Its log is " + platform::runtimeFolder() +
                         "/engine.log.");
}

Connection::Connection(platform::Socket socket, const std::string& client, const std::string& token,
                       const std::string& answer, const Deadline& deadline)
    : socket_(std::move(socket)) {
    Reply reply;
    try {
        reply = request({{"op", "hello"},
                         {"protocol", {protocolMajor, protocolMinor}},
                         {"token", token},
                         {"client", client},
                         {"pid", platform::processId()}},
                        deadline);
    } catch (const EngineError& error) {
        // A new engine listens already, but the file is still that of the last one: try again soon.
        if (error.code == "token") throw ConnectionLost(error.what());
        throw;
    }
    if (reply.header.value("answer", "") != answer) {
        throw EngineError("token", "What listens in the engine's place is not the engine.", Json::object());
    }
    requireThisVersion(reply.header.value("engine", unknownVersion));
    if (reply.header.contains("protocol")) {
        minor_ = static_cast<int>(std::clamp<std::int64_t>(wholeNumber(reply.header["protocol"].at(1)), 0, protocolMinor));
    }
    learnSite(reply.header);
    if (reply.header.contains("map_folder") && reply.header["map_folder"].is_string()) {
        mapFolder_ = reply.header["map_folder"].get<std::string>();
        mapPrefix_ = reply.header.at("map_prefix").get<std::string>();
    }
}

void Connection::learnSite(const Json& answer) {
    const auto object = [&answer](const char* name, Json& into) {
        if (const auto found = answer.find(name); found != answer.end() && found->is_object()) into = *found;
    };
    object("locked", site_.locked);
    object("configured", site_.configured);
    if (const auto found = answer.find("cache_folder"); found != answer.end()) {
        site_.cacheFolder = found->is_string() ? found->get<std::string>() : std::string();
    }
}

Reply Connection::request(Json header, const Deadline& deadline) {
    return exchange(header, nullptr, 0, 0, deadline);
}

Reply Connection::requestWithPixels(Json header, const OutgoingPixels& pixels, const Deadline& deadline) {
    const Check check = deadline.checkFor("for the pixels");
    if (platform::MappedFile* file = mapped(outgoing_, pixels.bytes, deadline)) {
        pixels.fill(file->data(), check);
        Json withFile = header;
        withFile["image"]["mapped"] = {{"name", file->name()}, {"bytes", file->size()}};
        try {
            return exchange(withFile, nullptr, 0, 0, deadline);
        } catch (const EngineError& error) {
            if (error.code != "map") throw;
            mapFolder_.reset();
        }
    }
    Bytes payload(pixels.bytes);
    pixels.fill(payload.data(), check);
    return exchange(header, payload.data(), payload.size(), 0, deadline);
}

Json Connection::requestPixels(Json header, std::size_t bytes, const std::function<void(const std::uint8_t*)>& take,
                               const Deadline& deadline) {
    if (platform::MappedFile* file = mapped(incoming_, bytes, deadline)) {
        Json withFile = header;
        withFile["into"] = {{"name", file->name()}, {"offset", 0}, {"bytes", file->size()}};
        try {
            const Reply reply = exchange(withFile, nullptr, 0, bytes, deadline);
            if (!reply.payload.empty() && reply.payload.size() != bytes) throw FramingError("The engine sent too few pixels.");
            take(reply.payload.empty() ? file->data() : reply.payload.data());
            return reply.header;
        } catch (const EngineError& error) {
            if (error.code != "map") throw;
            mapFolder_.reset();
        }
    }
    const Reply reply = exchange(header, nullptr, 0, bytes, deadline);
    if (reply.payload.size() != bytes) throw FramingError("The engine sent too few pixels.");
    take(reply.payload.data());
    return reply.header;
}

std::uint32_t Connection::send(const Json& header, const std::uint8_t* payload, std::size_t payloadBytes,
                               const Deadline& deadline) {
    if (broken_) throw ConnectionLost("The connection to the engine was given up.");
    const std::uint32_t id = ++lastId_;
    const Bytes head = encoded(Kind::request, id, header, payloadBytes);
    broken_ = true;  // until all is sent: half a message cannot be taken back
    sendAll(head.data(), head.size(), deadline);
    sendAll(payload, payloadBytes, deadline);
    broken_ = false;
    return id;
}

void Connection::post(const Json& header, const Deadline& deadline) { send(header, nullptr, 0, deadline); }

Reply Connection::exchange(const Json& header, const std::uint8_t* payload, std::size_t payloadBytes,
                           std::uint64_t answerBytes, const Deadline& deadline) {
    reader_.setPayloadLimit(std::max<std::uint64_t>(answerBytes, maxPayloadBytes >> 4));
    try {
        const std::uint32_t id = send(header, payload, payloadBytes, deadline);
        while (true) {
            Message message = nextMessage(deadline);
            if (message.kind == Kind::error && (message.id == id || message.id == 0)) {
                if (message.id == 0) broken_ = true;
                const std::string code = message.header.value("code", "internal");
                if (code == "shutting_down") throw ConnectionLost("The engine is ending.");
                throw EngineError(code, message.header.value("text", "The engine reports an error (" + code + ")."),
                                  message.header.value("details", Json::object()));
            }
            if (message.kind == Kind::reply && message.id == id) return {std::move(message.header), std::move(message.payload)};
            if (message.kind == Kind::request || message.id > id) throw FramingError("The engine answers what nobody asked.");
            // Anything else answers a request that was given up.
        }
    } catch (const FramingError& error) {
        broken_ = true;
        throw ConnectionLost(error.what());
    } catch (const Json::exception&) {
        broken_ = true;
        throw ConnectionLost("The engine's answer has an unexpected form.");
    } catch (const EngineError&) {
        throw;
    } catch (...) {
        // Given up half-way: the engine may still read or write the mapped files. New ones are made for the next request.
        outgoing_.reset();
        incoming_.reset();
        throw;
    }
}

Message Connection::nextMessage(const Deadline& deadline) {
    Bytes chunk;
    while (true) {
        if (auto message = reader_.next()) return std::move(*message);
        deadline.check("for an answer");
        chunk.resize(std::min(reader_.wanted(), receiveChunk));
        const std::size_t got = socket_.receive(chunk.data(), chunk.size(), pollInterval);
        reader_.feed(chunk.data(), got);
    }
}

void Connection::sendAll(const std::uint8_t* bytes, std::size_t count, const Deadline& deadline) {
    while (count > 0) {
        deadline.check("to take what was sent");
        const std::size_t sent = socket_.send(bytes, count, pollInterval);
        bytes += sent;
        count -= sent;
    }
}

platform::MappedFile* Connection::mapped(std::unique_ptr<platform::MappedFile>& slot, std::size_t bytes,
                                         const Deadline& deadline) {
    if (!mapFolder_ || bytes == 0 || bytes > maxPayloadBytes) return nullptr;
    if (slot && slot->size() >= bytes) return slot.get();
    slot.reset();
    try {
        slot = std::make_unique<platform::MappedFile>(*mapFolder_, mapPrefix_ + std::to_string(++mapCount_), bytes,
                                                      deadline.checkFor("for shared memory"));
        return slot.get();
    } catch (const DeadlinePassed&) {
        throw;
    } catch (const std::runtime_error&) {
        mapFolder_.reset();  // full, or another mount namespace: pixels go through the socket
        return nullptr;
    }
}

}  // namespace stm
