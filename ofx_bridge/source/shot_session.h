// The engine's operations on a shot, typed, on a connection that is made again after a loss.
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

// What identifies and describes the shot. Equal specifications need no request.
struct ShotSpec {
    std::string folder;   // absolute, ends with .stmshot
    std::string copyOf;   // a store that this one begins with, when it is made
    bool ours = false;    // the store is this node's, or that of the node it is a copy of: keys and settings are the node's
    bool copied = false;  // another node of this process has the store: it may be read only
    Json plate;           // PROTOCOL.md, open_shot; only an owner sends it
    bool guessedFrames = false;  // the host has no range: frames of the store belong to it too
    Json settings;        // pushed when the store is ours
    Json configured;      // what the site says of the settings of new shots, where the node is new
    int displayTop = 0;   // pixels, y up: where the engine's y is 0 in what is pushed
    int formatLeft = 0, formatBottom = 0;  // pixels, y up: the corner of the host's format
    bool operator==(const ShotSpec& other) const {
        return folder == other.folder && ours == other.ours && copied == other.copied && plate == other.plate &&
               settings == other.settings && displayTop == other.displayTop && formatLeft == other.formatLeft &&
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
    std::optional<double> secondsLeft;
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

// The masks of a key by what the store calls them. A store keeps those of keys that were removed or replaced.
struct KeyMasks {
    std::map<std::string, std::string> contents;  // object -> content
    std::string digest;  // of the picture that they came from, perhaps empty
};

enum class MatteLayer { matte, confidence, foreground };  // the last: the matte with the colours of what it shows

// Which matte of a frame is asked for.
struct MatteChoice {
    std::string object;  // empty: all objects together
    MatteLayer layer = MatteLayer::matte;
};

// The node was called during its own work, as by a host that renders pictures while it shows progress.
struct Reentered : std::runtime_error {
    Reentered() : std::runtime_error("This node is at work: its picture comes when that is done.") {}
};

// A copy of a node shows the store of the original until it is changed. Only a button can give it a separate store.
struct CopyDiffers : std::runtime_error {
    explicit CopyDiffers(const std::string& what)
        : std::runtime_error("This node is a copy of another one, and its " + what + " are not those of the other any more. Press "
                             "Set key or a Propagate button: it gets a separate shot store.") {}
};

// A node's connection to the engine, shared by all instances that a host makes of the node. It heals itself: an engine that
// has died is started again, and shots are opened again. Every call locks.
class ShotSession {
  public:
    ShotSession(std::string client, std::string owner);

    // Runs `work` on an open shot; once more after each recovery. Opening, and the work on what was opened, are one turn.
    using Work = std::function<void(Connection&, const std::string& shot)>;
    void withShot(const ShotSpec& spec, const Deadline& deadline, const Work& work);
    // Whether this node may change the store from now on. False when another node has it. Ownership ends with any error.
    bool claim(const ShotSpec& spec, const Deadline& deadline);
    // Cancels a job. Never waits for the engine: if it cannot be sent now, it is sent with the next request.
    void cancel(const std::string& job);
    bool isConnected() const { return connected_; }
    // What the configuration of the engine's site says. Connects, and starts an engine where none runs.
    Site site(const Deadline& deadline);
    // Connects if an engine runs; false when none does. Starts none.
    bool engineRuns(const Deadline& deadline);
    // The shot whose job is awaited stays open while this node uses others.
    void setWaitingFor(const std::string& folder);

  private:
    class Turn;
    struct Opened {
        ShotSpec spec;     // as the engine has it
        std::string shot;  // the engine's name for it
        bool asOwner = false;
        Range frames{0, 0};  // of the store's plate
    };

    void healing(const std::function<void()>& work);
    void ensureConnected(const Deadline& deadline);
    Opened& ensureOpen(const ShotSpec& spec, bool asOwner, const Deadline& deadline);
    void open(const ShotSpec& spec, bool asOwner, const Deadline& deadline);
    void bringSettings(const ShotSpec& spec, const Deadline& deadline);
    Json unlocked(Json settings) const;
    void close(const std::string& folder, const Deadline& deadline);
    void closeOthers(const std::string& folder, const Deadline& deadline);
    void sendCancels(const Deadline& deadline);

    std::timed_mutex mutex_;
    std::atomic<std::thread::id> atWork_{};  // who has the mutex
    std::mutex cancelsMutex_;  // guards the jobs to cancel
    std::vector<std::string> cancels_;  // jobs whose cancel request was not sent yet
    const std::string client_;
    const std::string owner_;
    std::string owned_;  // the folder that this node may change; empty: none
    std::string waitingFor_;
    std::unique_ptr<Connection> connection_;
    std::atomic<bool> connected_{false};  // has talked to an engine
    std::map<std::string, Opened> opened_;  // by folder
};

// A shot as one action of the effect works on it: the engine's operations, typed. All throw EngineError, ConnectionLost,
// Cancelled, DeadlinePassed or Reentered.
class Shot {
  public:
    Shot(ShotSession& session, ShotSpec spec) : session_(&session), spec_(std::move(spec)) {}

    const ShotSpec& spec() const { return spec_; }
    bool claim(const Deadline& deadline) const { return session_->claim(spec_, deadline); }
    Json status(const std::optional<Range>& frames, const Deadline& deadline) const;
    std::map<Frame, KeyMasks> keys(const Deadline& deadline) const;
    std::vector<Range> plateNeeded(const Range& frames, const std::map<Frame, std::string>& digests,
                                   const Deadline& deadline) const;
    // Returns whether mattes became stale.
    bool pushPlate(Frame frame, const PushedImage& image, double pixelAspect, const Deadline& deadline) const;
    void pushKey(Frame frame, const PushedImage& mask, const std::vector<MaskChannel>& channels,
                 const Deadline& deadline) const;
    void removeKey(Frame frame, const Deadline& deadline) const;
    // Makes a key of masks that the store has kept. False when it has not, or the engine is too old for it.
    bool restoreKey(Frame frame, const KeyMasks& masks, const Deadline& deadline) const;
    Json plan(const Range& frames, const std::string& direction, const Deadline& deadline) const;
    std::string propagate(const Range& frames, const std::string& direction, const Deadline& deadline) const;
    // The state of a job; waits a moment for a newer one than `seen` where that is given.
    JobState job(const std::string& job, const std::optional<std::int64_t>& seen, const Deadline& deadline) const;
    void cancel(const std::string& job) const { session_->cancel(job); }
    // Stops all jobs of the shot, whoever started them. Starts no engine for it.
    void cancelAll(const Deadline& deadline) const;
    // The matte over `box` (full-size pixels, y up), or another layer of it.
    Matte matte(Frame frame, const Box& box, const MatteChoice& choice, bool stale, const Deadline& deadline) const;

  private:
    Json call(Json request, const Deadline& deadline) const;
    Json imageHeader(const PushedImage& image) const;
    EngineWindow engineWindow(const Box& box) const;  // of what is pushed
    EngineWindow placed(const Box& box, const EngineWindow& display) const;

    ShotSession* session_;
    ShotSpec spec_;
};

// Helpers for answers.
std::vector<Range> rangesOf(const Json& ranges);
std::string inWords(const std::vector<Range>& ranges);  // "1001-1010, 1020"

}  // namespace stm
