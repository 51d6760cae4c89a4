#include "shot_session.h"

#include <algorithm>
#include <cstring>

namespace stm {

namespace {

constexpr Frame mostFrames = 10000000;  // of all ranges of an answer
constexpr int attempts = 3;
constexpr int guesses = 2;
constexpr const char* unexpectedForm = "The engine's answer has an unexpected form.";
constexpr int shortWait = 50;  // milliseconds that the engine may keep a request
constexpr Milliseconds sendingLimit{100};
const char* const channelLetters[] = {"R", "G", "B", "A"};

Range rangeOf(const Json& range) { return {wholeNumber(range.at(0)), wholeNumber(range.at(1))}; }

EngineWindow windowOf(const Json& window) {
    const std::vector<std::int64_t> sides = wholeNumbers(window);
    if (sides.size() != EngineWindow{}.size()) throw FramingError("A window has four numbers.");
    return {sides[0], sides[1], sides[2], sides[3]};
}

Json asJson(const Range& range) { return Json::array({range.first, range.second}); }

// For answers of a wrong form: treated like no answer.
template <typename Work>
auto reading(const Work& work) -> decltype(work()) {
    try {
        return work();
    } catch (const Json::exception&) {
        throw ConnectionLost(unexpectedForm);
    } catch (const FramingError&) {
        throw ConnectionLost(unexpectedForm);
    }
}

}  // namespace

std::vector<Range> rangesOf(const Json& ranges) {
    std::vector<Range> found;
    Frame frames = 0;
    for (const Json& range : ranges) {
        found.push_back(rangeOf(range));
        frames += std::max<Frame>(0, found.back().second - found.back().first + 1);
        if (frames > mostFrames) throw ConnectionLost("The engine's answer names more frames than any shot has.");
    }
    return found;
}

std::string inWords(const std::vector<Range>& ranges) {
    std::string text;
    for (const auto& [first, last] : ranges) {
        if (!text.empty()) text += ", ";
        text += std::to_string(first);
        if (last != first) text += "-" + std::to_string(last);
    }
    return text;
}

// One thread's turn on the session.
class ShotSession::Turn {
  public:
    Turn(ShotSession& session, const Deadline& deadline) : session_(session) {
        if (session.atWork_ == std::this_thread::get_id()) throw Reentered();
        lock_ = deadline.lock(session.mutex_, "until another call of this node is done");
        session.atWork_ = std::this_thread::get_id();
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { session_.atWork_ = std::thread::id(); }

  private:
    ShotSession& session_;
    std::unique_lock<std::timed_mutex> lock_;
};

ShotSession::ShotSession(std::string client, std::string owner) : client_(std::move(client)), owner_(std::move(owner)) {}

void ShotSession::withShot(const ShotSpec& spec, const Deadline& deadline, const Work& work) {
    const Turn turn(*this, deadline);
    healing([&] {
        // A store that was this node's may be another's by now.
        const bool isOwner = spec.ours && !spec.copied && owned_ == spec.folder;
        const std::string shot = ensureOpen(spec, isOwner, deadline).shot;
        sendCancels(deadline);
        work(*connection_, shot);
    });
}

bool ShotSession::claim(const ShotSpec& spec, const Deadline& deadline) {
    if (spec.copied || !spec.ours) return false;
    const Turn turn(*this, deadline);
    try {
        healing([&] {
            if (!platform::exists(spec.folder + "/shot.json")) close(spec.folder, deadline);  // it was removed meanwhile
            ensureOpen(spec, true, deadline);
        });
        return true;
    } catch (const EngineError& error) {
        if (error.code != "shot_open") throw;
        return false;
    }
}

// Does `work`, again after each loss of the connection. Ownership ends where the engine refuses it, and with the connection.
void ShotSession::healing(const std::function<void()>& work) {
    for (int attempt = 1;; ++attempt) {
        try {
            return work();
        } catch (const ConnectionLost&) {
            connection_.reset();
            opened_.clear();
            if (attempt == attempts) {
                owned_.clear();
                throw;
            }
        } catch (const EngineError& error) {
            if (error.code == "shot_open") owned_.clear();
            throw;
        }
    }
}

void ShotSession::ensureConnected(const Deadline& deadline) {
    if (connection_) return;
    opened_.clear();
    connection_ = Connection::open(client_, deadline);
    connected_ = true;
}

Site ShotSession::site(const Deadline& deadline) {
    const Turn turn(*this, deadline);
    healing([&] { ensureConnected(deadline); });
    return connection_->site();
}

ShotSession::Opened& ShotSession::ensureOpen(const ShotSpec& spec, bool asOwner, const Deadline& deadline) {
    ensureConnected(deadline);
    const bool isOurs = spec.ours && !spec.copied;
    if (isOurs && !platform::exists(spec.folder + "/shot.json")) asOwner = true;  // who makes a store owns it
    const auto found = opened_.find(spec.folder);
    const bool isOpen = found != opened_.end() && found->second.asOwner == asOwner;
    if (isOpen && found->second.spec == spec) return found->second;
    // Only the owner of the store sends another range or size of the plate.
    const bool tellsPlate = asOwner && (!isOpen || found->second.spec.plate != spec.plate);
    if (!isOpen || tellsPlate) open(spec, asOwner, deadline);
    if (spec.ours) bringSettings(spec, deadline);
    Opened& now = opened_.at(spec.folder);
    now.spec = spec;
    return now;
}

void ShotSession::open(const ShotSpec& spec, bool asOwner, const Deadline& deadline) {
    closeOthers(spec.folder, deadline);
    const bool isThere = platform::exists(spec.folder + "/shot.json");
    if (asOwner && isThere && spec.guessedFrames && opened_.count(spec.folder) == 0) open(spec, false, deadline);
    Json request{{"op", "open_shot"}, {"folder", spec.folder}};
    const auto before = opened_.find(spec.folder);
    if (asOwner) {
        request["owner"] = owner_;
        request["create"] = true;
        request["plate"] = spec.plate;
        if (!isThere) request["settings"] = unlocked(spec.settings);
        if (!isThere && !spec.copyOf.empty() && connection_->minor() >= minorWithLayers) request["copy_of"] = spec.copyOf;
        if (spec.guessedFrames && before != opened_.end()) {
            const auto [first, last] = before->second.frames;
            Json& frames = request["plate"]["frames"];
            frames = {std::min(first, frames.at(0).get<Frame>()), std::max(last, frames.at(1).get<Frame>())};
        }
    }
    if (before != opened_.end() && before->second.asOwner != asOwner) close(spec.folder, deadline);
    const Json answer = connection_->request(std::move(request), deadline).header;
    Opened opened;
    opened.asOwner = asOwner;
    opened.spec = spec;
    opened.spec.settings = nullptr;
    const auto guessed = spec.plate.at("frames").get<Range>();
    opened.frames = guessed;
    reading([&] {
        opened.shot = answer.at("shot").get<std::string>();
        if (answer.contains("status") && answer["status"].contains("frames")) opened.frames = rangeOf(answer["status"]["frames"]);
    });
    if (asOwner) owned_ = spec.folder;
    opened_[spec.folder] = std::move(opened);
}

void ShotSession::close(const std::string& folder, const Deadline& deadline) {
    const auto found = opened_.find(folder);
    if (found == opened_.end()) return;
    const std::string shot = found->second.shot;
    opened_.erase(found);
    if (connection_) connection_->request({{"op", "close_shot"}, {"shot", shot}}, deadline);
}

void ShotSession::closeOthers(const std::string& folder, const Deadline& deadline) {
    std::vector<std::string> others;
    {
        const std::lock_guard<std::mutex> guard(cancelsMutex_);
        for (const auto& [other, opened] : opened_) {
            if (other != folder && other != waitingFor_) others.push_back(other);
        }
    }
    for (const std::string& other : others) close(other, deadline);
}

void ShotSession::setWaitingFor(const std::string& folder) {
    const std::lock_guard<std::mutex> guard(cancelsMutex_);
    waitingFor_ = folder;
}

void ShotSession::bringSettings(const ShotSpec& spec, const Deadline& deadline) {
    const Opened& opened = opened_.at(spec.folder);
    if (opened.spec.settings == spec.settings) return;
    const Json answer = connection_->request({{"op", "get_settings"}, {"shot", opened.shot}}, deadline).header;
    const Json settings = unlocked(spec.settings);
    const bool differ = reading([&] {
        const Json& have = answer.at("settings");
        return std::any_of(settings.items().begin(), settings.items().end(), [&have](const auto& wanted) {
            return !have.contains(wanted.key()) || have[wanted.key()] != wanted.value();
        });
    });
    if (!differ) return;
    if (spec.copied) throw CopyDiffers("settings");
    // Changing a store needs its ownership; refused (`shot_open`) when another node has it.
    if (!opened.asOwner) open(spec, true, deadline);
    const std::string shot = opened_.at(spec.folder).shot;
    connection_->request({{"op", "set_settings"}, {"shot", shot}, {"settings", settings}, {"interrupt", true}}, deadline);
}

// A setting that the site's configuration locks has its value whatever the node says.
Json ShotSession::unlocked(Json settings) const {
    for (const auto& [name, about] : connection_->locked().items()) settings.erase(name);
    return settings;
}

void ShotSession::cancel(const std::string& job) {
    {
        const std::lock_guard<std::mutex> guard(cancelsMutex_);
        cancels_.push_back(job);
    }
    const Deadline deadline(sendingLimit, nullptr);
    try {
        const Turn turn(*this, deadline);
        sendCancels(deadline);
    } catch (const DeadlinePassed&) {
        // Another call is at work, or the engine reads nothing.
    } catch (const Reentered&) {
    } catch (const ConnectionLost&) {
        // Its jobs have ended with it.
    }
}

bool ShotSession::engineRuns(const Deadline& deadline) {
    const Turn turn(*this, deadline);
    if (!connection_) {
        opened_.clear();
        connection_ = Connection::openRunning(client_, deadline);
    }
    return connection_ != nullptr;
}

void ShotSession::sendCancels(const Deadline& deadline) {
    std::vector<std::string> jobs;
    {
        const std::lock_guard<std::mutex> guard(cancelsMutex_);
        jobs.swap(cancels_);
    }
    if (!connection_) return;  // the jobs of a connection end with it
    for (const std::string& job : jobs) connection_->post({{"op", "cancel"}, {"job", job}}, deadline);
}

Json Shot::status(const std::optional<Range>& frames, const Deadline& deadline) const {
    Json request{{"op", "status"}};
    if (frames) request["frames"] = asJson(*frames);
    Json answer;
    session_->withShot(spec_, deadline, [&](Connection& connection, const std::string& shot) {
        request["shot"] = shot;
        answer = connection.request(request, deadline).header;
        connection.learnSite(answer);
    });
    return answer;
}

std::map<Frame, KeyMasks> Shot::keys(const Deadline& deadline) const {
    const Json answer = call({{"op", "list_keys"}}, deadline);
    return reading([&answer] {
        std::map<Frame, KeyMasks> keys;
        for (const Json& key : answer.at("keys")) {
            KeyMasks& masks = keys[wholeNumber(key.at("frame"))];
            if (key.contains("digest") && key["digest"].is_string()) masks.digest = key["digest"].get<std::string>();
            for (const Json& one : key.value("objects", Json::array())) {
                masks.contents[one.at("name").get<std::string>()] = one.at("content").get<std::string>();
            }
        }
        return keys;
    });
}

std::vector<Range> Shot::plateNeeded(const Range& frames, const std::map<Frame, std::string>& digests,
                                            const Deadline& deadline) const {
    Json request{{"op", "plate_needed"}, {"frames", asJson(frames)}};
    if (!digests.empty()) {
        Json told = Json::object();
        for (const auto& [frame, digest] : digests) told[std::to_string(frame)] = digest;
        request["digests"] = told;
    }
    const Json answer = call(std::move(request), deadline);
    return reading([&answer] { return rangesOf(answer.at("needed")); });
}

bool Shot::pushPlate(Frame frame, const PushedImage& image, double pixelAspect, const Deadline& deadline) const {
    bool madeStale = false;
    session_->withShot(spec_, deadline, [&](Connection& connection, const std::string& shot) {
        Json request{{"op", "push_plate"},           {"shot", shot},
                     {"frame", frame},               {"image", imageHeader(image)},
                     {"pixel_aspect", pixelAspect},  {"digest", image.digest}};
        if (spec_.plate.contains("display_window")) request["display_window"] = spec_.plate["display_window"];
        const OutgoingPixels pixels{image.view.pixelBytes() * static_cast<std::size_t>(image.box.width()) *
                                        static_cast<std::size_t>(image.box.height()),
                                    [&image](std::uint8_t* into, const Check& check) { packRows(image.view, image.box, into, check); }};
        const Json answer = connection.requestWithPixels(std::move(request), pixels, deadline).header;
        madeStale = reading([&answer] { return !answer.at("dirty").empty(); });
    });
    return madeStale;
}

void Shot::pushKey(Frame frame, const PushedImage& mask, const std::vector<MaskChannel>& channels,
                          const Deadline& deadline) const {
    Json objects = Json::array();
    for (const MaskChannel& one : channels) objects.push_back({{"name", one.object}, {"channel", one.channel}});
    session_->withShot(spec_, deadline, [&](Connection& connection, const std::string& shot) {
        Json request{{"op", "push_key"},  {"shot", shot},          {"frame", frame},
                     {"objects", objects}, {"image", imageHeader(mask)}, {"digest", mask.digest},
                     {"interrupt", true},  {"replace", true}};
        connection.requestWithPixels(std::move(request),
                                     {mask.view.pixelBytes() * static_cast<std::size_t>(mask.box.width()) *
                                          static_cast<std::size_t>(mask.box.height()),
                                      [&mask](std::uint8_t* into, const Check& check) { packRows(mask.view, mask.box, into, check); }},
                                     deadline);
    });
}

void Shot::removeKey(Frame frame, const Deadline& deadline) const {
    call({{"op", "remove_key"}, {"frame", frame}, {"interrupt", true}}, deadline);
}

bool Shot::restoreKey(Frame frame, const KeyMasks& masks, const Deadline& deadline) const {
    Json objects = Json::array();
    for (const auto& [name, content] : masks.contents) objects.push_back({{"name", name}, {"content", content}});
    Json request{{"op", "restore_key"}, {"frame", frame}, {"objects", objects}, {"interrupt", true}};
    if (!masks.digest.empty()) request["digest"] = masks.digest;
    bool isPossible = !masks.contents.empty();
    try {
        session_->withShot(spec_, deadline, [&](Connection& connection, const std::string& shot) {
            isPossible = isPossible && connection.minor() >= minorWithRestoring;
            request["shot"] = shot;
            if (isPossible) connection.request(request, deadline);
        });
    } catch (const EngineError& error) {
        if (error.code != "mask") throw;
        return false;
    }
    return isPossible;
}

Json Shot::plan(const Range& frames, const std::string& direction, const Deadline& deadline) const {
    return call({{"op", "plan"}, {"frames", asJson(frames)}, {"direction", direction}}, deadline);
}

std::string Shot::propagate(const Range& frames, const std::string& direction, const Deadline& deadline) const {
    const Json answer = call({{"op", "propagate"}, {"frames", asJson(frames)}, {"direction", direction}}, deadline);
    return reading([&answer] { return answer.at("job").get<std::string>(); });
}

JobState Shot::job(const std::string& job, const std::optional<std::int64_t>& seen, const Deadline& deadline) const {
    JobState found;
    session_->withShot(spec_, deadline, [&](Connection& connection, const std::string&) {
        Json request{{"op", "job"}, {"job", job}};
        if (seen) request.update({{"wait_ms", shortWait}, {"seen", *seen}});
        const Json answer = connection.request(request, deadline).header;
        found = reading([&answer] {
            JobState state{answer.at("state").get<std::string>(), wholeNumber(answer.at("version")),
                           wholeNumber(answer.at("done")),           wholeNumber(answer.at("total")),
                           answer.value("text", ""),              {},
                           std::nullopt};
            if (answer.contains("seconds_left") && answer["seconds_left"].is_number()) {
                state.secondsLeft = answer["seconds_left"].get<double>();
            }
            if (answer.contains("error") && answer["error"].is_object()) state.error = answer["error"].value("text", "");
            return state;
        });
    });
    return found;
}

void Shot::cancelAll(const Deadline& deadline) const {
    if (!session_->engineRuns(deadline)) return;
    const Json status = this->status(std::nullopt, deadline);
    for (const std::string& job : reading([&status] { return status.at("jobs").get<std::vector<std::string>>(); })) cancel(job);
}

Matte Shot::matte(Frame frame, const Box& box, const MatteChoice& choice, bool stale, const Deadline& deadline) const {
    Matte matte{box, {}};
    float frameConfidence = 1.0F;  // a key's
    const std::size_t count = static_cast<std::size_t>(box.width()) * static_cast<std::size_t>(box.height());
    const bool hasColours = choice.layer == MatteLayer::foreground;
    const std::size_t planes = hasColours ? 4 : 1;  // red, green, blue and the matte
    session_->withShot(spec_, deadline, [&](Connection& connection, const std::string& shot) {
        Json request{{"op", "get_matte"}, {"shot", shot}, {"frame", frame},  {"format", "float"},
                     {"rows", "up"},      {"stale", stale}, {"wait_ms", shortWait}};
        if (!choice.object.empty()) request["objects"] = Json::array({choice.object});
        const bool hasLayers = connection.minor() >= minorWithLayers;
        const bool isConfidence = choice.layer == MatteLayer::confidence;
        if (isConfidence && hasLayers) request["layer"] = "confidence";
        if (hasColours && connection.minor() < minorWithForeground) {
            throw EngineError("version", "The engine is older than this effect and gives no foreground colours.", Json::object());
        }
        if (hasColours) request["layer"] = "foreground";
        const auto take = [&](const std::uint8_t* pixels) {
            const Check check = deadline.checkFor("for the matte");
            CancelCheck cancelCheck(check);
            matte.values.resize(count);
            matte.colours.resize(hasColours ? 3 * count : 0);
            const auto width = static_cast<std::size_t>(box.width());
            std::vector<float> row(width);
            for (std::size_t plane = 0; plane < planes; ++plane) {
                const bool isMatte = plane + 1 == planes;
                float* into = isMatte ? matte.values.data() : matte.colours.data() + plane;
                const std::size_t step = isMatte ? 1 : 3;
                for (int y = 0; y < box.height(); ++y, pixels += width * sizeof(float)) {
                    std::memcpy(row.data(), pixels, width * sizeof(float));  // the pixels may lie anywhere
                    for (std::size_t x = 0; x < width; ++x, into += step) *into = row[x];
                    cancelCheck.worked(width * sizeof(float));
                }
            }
        };
        // The store's display window is its own: where ours was a wrong guess, the matte is asked for again.
        auto display = spec_.plate.at("display_window").get<EngineWindow>();
        for (int guess = 1;; ++guess) {
            const EngineWindow window = placed(box, display);
            request["window"] = window;
            const Json answer = connection.requestPixels(request, planes * count * sizeof(float), take, deadline);
            if (answer.contains("confidence") && answer["confidence"].is_number()) {
                frameConfidence = answer["confidence"].get<float>();
            }
            const bool fits = reading([&] {
                const Json& image = answer.at("image");
                display = windowOf(answer.at("display_window"));
                return image.at("format") == "float" && image.at("channels").size() == planes &&
                       image.at("data_window") == Json(window) && answer.at("frame") == frame;
            });
            if (fits && placed(box, display) == window) {
                // An older engine knows one number for the frame.
                if (isConfidence && !hasLayers) std::fill(matte.values.begin(), matte.values.end(), frameConfidence);
                return;
            }
            if (!fits || guess == guesses) {
                throw ConnectionLost("The engine sent another matte than the one that was asked for.");
            }
        }
    });
    return matte;
}

Json Shot::call(Json request, const Deadline& deadline) const {
    Json answer;
    session_->withShot(spec_, deadline, [&](Connection& connection, const std::string& shot) {
        request["shot"] = shot;
        answer = connection.request(request, deadline).header;
    });
    return answer;
}

Json Shot::imageHeader(const PushedImage& image) const {
    Json channels = Json::array();
    if (image.view.components == 1) {
        channels.push_back("A");
    } else {
        for (int i = 0; i < image.view.components; ++i) channels.push_back(channelLetters[i]);
    }
    return {{"format", engineFormat(image.view.depth)},
            {"channels", channels},
            {"data_window", engineWindow(image.box)},
            {"layout", "interleaved"},
            {"offset", 0},
            {"row_bytes", image.view.pixelBytes() * static_cast<std::size_t>(image.box.width())},
            {"premultiplied", image.premultiplied}};
}

// Where `box` lies in a shot with this display window: its lower left corner is that of the host's format.
EngineWindow Shot::placed(const Box& box, const EngineWindow& display) const {
    const auto [x, y, width, height] = display;
    const std::int64_t bottom = y + height;
    return {x + box.x1 - spec_.formatLeft, bottom - (std::int64_t{box.y2} - spec_.formatBottom), box.width(), box.height()};
}

EngineWindow Shot::engineWindow(const Box& box) const { return toEngineWindow(box, spec_.displayTop); }

}  // namespace stm
