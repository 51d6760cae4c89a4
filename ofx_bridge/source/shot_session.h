// A shot as the effect sees it: the engine's operations, typed, on a connection that heals itself.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "connection.h"
#include "pixels.h"

namespace stm {

using Frame = std::int64_t;
using Range = std::pair<Frame, Frame>;  // both ends included

// What identifies and describes the shot. Equal specifications need no word with the engine.
struct ShotSpec {
    std::string folder;   // absolute, ends with .stmshot
    bool ours = false;    // the effect keeps this store for itself: its keys and settings are the effect's
    Json plate;           // PROTOCOL.md, open_shot
    Json settings;        // pushed when the store is ours
    int displayTop = 0;   // pixels, y up: where the engine's y is 0 in what is pushed
    int formatLeft = 0, formatBottom = 0;  // pixels, y up: the corner of the host's format
    bool operator==(const ShotSpec& other) const {
        return folder == other.folder && ours == other.ours && plate == other.plate && settings == other.settings && displayTop == other.displayTop && formatLeft == other.formatLeft &&
               formatBottom == other.formatBottom;
    }
};

struct JobState {
    std::string state = "queued";  // queued, running, finished, cancelled, failed
    std::int64_t version = 0;
    std::int64_t done = 0;
    std::int64_t total = 0;
    std::string text;
    std::string error;
    bool ended() const { return state != "queued" && state != "running"; }
};

// An image of the host with where it lies in the engine's coordinates.
struct PushedImage {
    PixelView view;
    Box box;  // what of the view is pushed
    bool premultiplied = false;
    std::string digest;
};

struct MaskChannel {
    std::string object;
    std::string channel;
};

// The node was called in the middle of its own work, as by a host that shows pictures while it shows progress.
struct Reentered : std::runtime_error {
    Reentered() : std::runtime_error("This node is at work: its picture comes when that is done.") {}
};

// Every operation locks, connects (starting the engine if need be), opens the shot and recovers from an engine that has
// died. All throw EngineError, ConnectionLost, Cancelled, DeadlinePassed or Reentered.
class ShotSession {
  public:
    explicit ShotSession(std::string client);

    // Sets what later operations work on. Tells the engine only what has changed.
    void use(const ShotSpec& spec, const Deadline& deadline);
    // Whether this session is the one that may change the shot's keys and settings. False when another node has it.
    bool claim(const Deadline& deadline);

    Json status(const std::optional<Range>& frames, const Deadline& deadline);
    std::map<Frame, std::string> keys(const Deadline& deadline);  // frame -> digest, perhaps empty
    std::vector<Range> plateNeeded(const Range& frames, const std::map<Frame, std::string>& digests, const Deadline& deadline);
    // Tells whether mattes became stale by it.
    bool pushPlate(Frame frame, const PushedImage& image, double pixelAspect, const Deadline& deadline);
    void pushKey(Frame frame, const PushedImage& mask, const std::vector<MaskChannel>& channels, const Deadline& deadline);
    void removeKey(Frame frame, const Deadline& deadline);
    Json plan(const Range& frames, const std::string& direction, const Deadline& deadline);
    std::string propagate(const Range& frames, const std::string& direction, const Deadline& deadline);
    // The state of a job; waits a moment for a newer one than `seen` where that is given.
    JobState job(const std::string& job, const std::optional<std::int64_t>& seen, const Deadline& deadline);
    // Has a job stopped. Never waits for the engine: when it cannot be told now, it is told with the next request.
    void cancel(const std::string& job);
    // Stops all jobs of the shot, whoever started them. Starts no engine for it.
    void cancelAll(const Deadline& deadline);
    // The matte over `box` (full-size pixels, y up). `object` empty: all objects together.
    Matte matte(Frame frame, const Box& box, const std::string& object, bool stale, const Deadline& deadline);

  private:
    class Turn;

    Json call(Json request, const Deadline& deadline);
    // Runs `work` on an open shot; once more after each recovery.
    void withShot(const Deadline& deadline, const std::function<void(Connection&, const std::string& shot)>& work);
    void ensureOpen(const Deadline& deadline);
    void openShot(const Deadline& deadline);
    void bringSettings(const Deadline& deadline);
    Json imageHeader(const PushedImage& image) const;
    EngineWindow engineWindow(const Box& box) const;  // of what is pushed
    EngineWindow placed(const Box& box, const EngineWindow& display) const;

    void sendCancels(const Deadline& deadline);

    std::timed_mutex mutex_;
    std::atomic<std::thread::id> atWork_{};  // who has the mutex
    std::mutex cancelsMutex_;
    std::vector<std::string> cancels_;  // jobs that the engine must still be told to stop
    const std::string client_;
    const std::string owner_;
    bool owning_ = false;
    ShotSpec spec_;
    std::unique_ptr<Connection> connection_;
    std::optional<ShotSpec> opened_;  // what the engine knows
    bool openedAsOwner_ = false;
    std::string shot_;
};

// Helpers for answers.
std::vector<Range> rangesOf(const Json& ranges);
std::string inWords(const std::vector<Range>& ranges);  // "1001-1010, 1020"

}  // namespace stm
