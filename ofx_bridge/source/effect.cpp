#include "effect.h"

#include <algorithm>
#include <cmath>

namespace stm {

namespace {

constexpr Milliseconds buttonLimit{24 * 3600 * 1000};
constexpr Milliseconds stopLimit{5000};  // a machine that computes with all its cores answers late
constexpr Milliseconds startLimit{1000};
constexpr double defaultKeySeconds = 2.0;  // so long Set key waits for an engine that is starting, or busy
constexpr const char* keyVariable = "STM_OFX_KEY_SECONDS";
constexpr Milliseconds statusLimit{2000};
constexpr int recoveries = 3;
constexpr int regionSamples = 64;
constexpr Frame longestRange = 1000000;
constexpr double frameLimit = 1e9;
constexpr double frameSlack = 1e-6;
constexpr std::size_t shotIdBytes = 8;
constexpr std::size_t mostSteps = 1000;  // that an undo can take back
constexpr const char* displaySpace = "srgb_rec709_scene";
constexpr const char* storeSuffix = ".stmshot";
constexpr const char* paintedDigest = "fix-";  // how the digest of a key begins that is not the mask input's
constexpr const char* setFromFix = "STM: set key from fix";
constexpr const char* noKeyText = "There is no key yet. Go to a frame with a mask and press Set key.";
constexpr const char* shotValues[] = {param::keyFrames,   param::shotStore,   param::memoryRule, param::memoryEvery,
                                      param::workingSize, param::colourSpace, param::useRegion,  param::regionCorner,
                                      param::regionSize,  param::objects,     param::missingInWindow,
                                      param::state,       param::edges,      param::edgeWidth};

Milliseconds keyLimit() { return secondsFrom(keyVariable, defaultKeySeconds); }

bool endsWith(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool isAbsolute(const std::string& path) {
    const bool drive = path.size() > 2 && path[1] == ':' && (path[2] == '/' || path[2] == '\\');
    return drive || path.front() == '/' || path.rfind("\\\\", 0) == 0;
}

std::string parentOf(const std::string& path) { return path.substr(0, path.find_last_of("/\\")); }

bool isFullSize(const Image& image) { return image.scaleX() == 1.0 && image.scaleY() == 1.0; }

Box united(const Box& a, const Box& b) {
    return {std::min(a.x1, b.x1), std::min(a.y1, b.y1), std::max(a.x2, b.x2), std::max(a.y2, b.y2)};
}

// The engine counts each pass over a frame, and its finishing.
std::string progressText(const JobState& state) {
    const std::string count = std::to_string(state.done) + " of " + std::to_string(state.total);
    std::string text = "Computing: step " + count + ".";
    if (state.secondsLeft && *state.secondsLeft >= 1.0 && *state.secondsLeft < 1e7) {
        text += " About " + std::to_string(static_cast<std::int64_t>(*state.secondsLeft)) + " s left.";
    }
    std::string more = state.text;
    if (endsWith(more, ", " + count)) more.erase(more.size() - count.size() - 2);  // it is said above
    return more.empty() ? text : text + "\n" + more;
}

std::vector<Range> asRanges(const std::set<Frame>& frames) {
    std::vector<Range> ranges;
    for (const Frame frame : frames) {
        if (!ranges.empty() && ranges.back().second + 1 == frame) {
            ranges.back().second = frame;
        } else {
            ranges.emplace_back(frame, frame);
        }
    }
    return ranges;
}

}  // namespace

Frame frameAt(double time) {
    const double whole = std::round(time);
    if (!(std::fabs(time - whole) <= frameSlack) || !(std::fabs(whole) <= frameLimit)) {
        throw UserError("There are mattes of whole frames only: set the retime below this node, not above it.");
    }
    return static_cast<Frame>(whole);
}

// The host's progress bar, where it has one, and the ways to stop that a button's action has. Reading the plate and computing
// have a bar each: the time that is left, which hosts reckon from it, is then that of the network.
class EffectInstance::Progress {
  public:
    // `stopsBefore`: how often a stop had been asked for when the button was pressed. Each later one ends the action.
    Progress(EffectInstance& instance, unsigned stopsBefore)
        : instance_(instance), suite_(instance.host_.progress()), stopsBefore_(stopsBefore) {}
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    ~Progress() { end(); }

    void begin(const char* label) {
        end();
        part_ = 0.0;
        shown_ = suite_ != nullptr && suite_->start(instance_.effect_, label) == ofx::status::ok;
    }
    void set(double part) { part_ = std::clamp(part, part_, 1.0); }
    bool stopped() {
        if (isStopped()) return true;
        // The host may call the node, or destroy it, while it shows the progress.
        if (shown_ && suite_->update(instance_.effect_, part_) == ofx::status::replyNo) instance_.requestStop();
        return isStopped();
    }
    Deadline deadline() {
        return Deadline(buttonLimit, [this] { return stopped(); });
    }

  private:
    bool isStopped() const { return instance_.abandoned_ || instance_.node_->stops != stopsBefore_; }
    void end() {
        if (shown_ && !instance_.abandoned_) suite_->end(instance_.effect_);
        shown_ = false;
    }

    EffectInstance& instance_;
    const ofx::ProgressSuiteV1* suite_;
    const unsigned stopsBefore_;
    bool shown_ = false;
    double part_ = 0.0;
};

EffectInstance::EffectInstance(const Host& host, ofx::Effect effect)
    : host_(host),
      effect_(effect),
      parameters_(host, effect),
      source_(host, effect, ofx::value::sourceClip),
      mask_(host, effect, maskClip),
      fix_(host, effect, fixClip),
      output_(host, effect, ofx::value::outputClip) {
    const void* identity = parameters_.identity();
    bool isNew = false;
    node_ = nodeOf(identity != nullptr ? identity : effect, host.nameAndVersion(), isNew);
    if (!isNew) return;  // another instance of an existing node, perhaps on a render thread
    isFirst_ = true;
    node_->effect = effect;
    node_->step = parameters_.step();
    node_->renderAgain = [this] { parameters_.bumpRevision(); };
    try {
        const NodeShot own = parameters_.nodeShot();
        if (!hasStore(own)) {
            parameters_.setStatus(noKeyText);
            return;
        }
        // The first node with this store is the original; one that is made later from the same values is a copy.
        const bool isCopy = own.isOurs() && isAnothers(storeName(own.id), node_);
        if (isCopy) node_->pastedKeys = own.keys;
        parameters_.setStatus((own.keys.empty() ? "This node shows a shot store." : "Keys: " + inWords(asRanges(own.keys)) + ".") +
                              std::string(isCopy ? " This node is a copy: it shows the mattes of the other one until it is changed." : "") +
                              " Press Update status to see what is done.");
    } catch (const std::exception& error) {
        parameters_.setStatus(error.what());
    }
}

void EffectInstance::forget() const {
    if (!isFirst_) return;
    node_->effect = nullptr;
    node_->renderAgain = nullptr;
}

EffectInstance::~EffectInstance() {
    forget();
}

void EffectInstance::abandon() {
    abandoned_ = true;
    forget();
    if (isFirst_) requestStop();  // one that was made for a render leaves the node at its work
}

// ---- buttons

void EffectInstance::buttonPressed(const std::string& name, double time) {
    const unsigned stopsBefore = node_->stops;
    if (name == param::stop) return stopJobs();
    if (name == param::updateStatus) return refreshStatus(time, true);
    const bool isKey = name == param::setKey || name == param::setKeyFromFix || name == param::deleteKey;
    const bool isPropagation =
        name == param::propagateForward || name == param::propagateBackward || name == param::propagateBoth;
    if (!isKey && !isPropagation) return;
    // A host may let the artist press buttons while it shows our progress.
    if (node_->pressed.exchange(true)) {
        throw UserError("This node is at work already: wait until that is done, or press Stop.");
    }
    try {
        perform(name, time, stopsBefore);
        node_->pressed = false;
    } catch (...) {
        node_->pressed = false;
        throw;
    }
}

void EffectInstance::perform(const std::string& name, double time, unsigned stopsBefore) {
    host_.clearError(effect_);
    Progress progress(*this, stopsBefore);
    try {
        const Frame frame = frameAt(time);
        if (name == param::setKey) {
            setKey(frame, progress);
        } else if (name == param::setKeyFromFix) {
            setKeyFromFix(frame, progress);
        } else if (name == param::deleteKey) {
            deleteKey(frame, progress);
        } else {
            propagate(frame, name, progress);
        }
        renderCopiesAgain();
    } catch (const Cancelled&) {
        if (abandoned_) throw;
        parameters_.setStatus("Stopped. Finished frames are kept.");
        parameters_.bumpRevision();
        renderCopiesAgain();
    } catch (const std::exception& error) {
        if (!abandoned_) parameters_.setStatus(error.what());
        throw;
    }
}

void EffectInstance::setKey(Frame frame, Progress& progress) {
    progress.begin("STM: setting a key");
    const NodeShot before = parameters_.nodeShot();
    const ClipView& clip = maskSource();
    const Deadline soon(keyLimit(), [&progress] { return progress.stopped(); });
    if (takeKey(frame, clip, "STM: set key", before, progress, soon)) return;
    if (keepForLater(frame, before, progress)) return;
    takeKey(frame, clip, "STM: set key", before, progress, progress.deadline());
}

void EffectInstance::setKeyFromFix(Frame frame, Progress& progress) {
    progress.begin("STM: setting a key from the fix");
    takeKey(frame, fix_, setFromFix, parameters_.nodeShot(), progress, progress.deadline());
}

// The copies that show this node's store have not changed themselves, so that the host would keep their old pictures.
void EffectInstance::renderCopiesAgain() const {
    const NodeShot own = parameters_.nodeShot();
    if (abandoned_ || !hasStore(own)) return;
    for (const auto& copy : copiesThatShow(storeName(own.id), node_)) {
        if (copy->renderAgain) copy->renderAgain();
    }
}

// Has the engine take what `clip` shows at `frame` as a key, and lists it. False when the engine had not opened the shot by
// `ready`; then nothing has changed.
bool EffectInstance::takeKey(Frame frame, const ClipView& clip, const char* step, const NodeShot& before, Progress& progress,
                             const Deadline& ready) {
    NodeShot own = before;
    if (own.id.empty()) own.id = platform::randomHex(shotIdBytes);
    std::optional<Shot> opened;
    try {
        opened = claimedShot(own, frame, ready);
    } catch (const DeadlinePassed&) {
        return false;
    }
    const Shot& shot = *opened;
    const Deadline deadline = progress.deadline();
    const auto engineKeys = shot.keys(deadline);
    if (!before.isOurs()) {  // a store that somebody else began: its keys become this node's
        for (const auto& [known, masks] : engineKeys) own.keys.insert(known);
    }
    if (!pushFrom(shot, frame, deadline)) throw UserError("The source has no image at frame " + std::to_string(frame) + ".");
    const auto known = engineKeys.find(frame);
    const auto digest = known == engineKeys.end() ? std::nullopt : std::make_optional(known->second.digest);
    if (!bringKey(shot, frame, clip, digest, deadline)) throw UserError(noMaskText(clip, frame));
    own.keys.insert(frame);
    own.painted.erase(frame);
    if (&clip == &fix_) own.painted[frame] = shot.keys(deadline)[frame];
    save(before, own, step, shot.spec().configured);
    showStatus(shot, own, deadline);
    return true;
}

// Lists a key whose mask the engine takes when it is there: with the next picture, or the next Propagate. False where that
// needs the engine's answer: for a copy, or a store that another program made.
bool EffectInstance::keepForLater(Frame frame, const NodeShot& before, Progress& progress) const {
    NodeShot own = before;
    if (own.id.empty()) own.id = platform::randomHex(shotIdBytes);
    if (before.id.empty() && namesStore()) return false;
    if (isAnothers(storeName(own.id), node_)) return false;
    const ClipView& clip = maskSource();
    Box box;
    const Deadline deadline = progress.deadline();
    const std::optional<Image> image = maskAt(clip, frame, box, deadline);
    if (!image) throw UserError(noMaskText(clip, frame));
    const MaskLayout layout = parameters_.maskLayout(image->view().components, clip.hasAlpha());
    requireMaskInAlpha(clip, frame, *image, box, layout, deadline.checkFor("for the mask"));
    std::string channels = layout.isLuminance ? "RGB" : "";
    for (const MaskChannel& one : layout.channels) channels += layout.isLuminance ? "" : one.channel;
    if (isAllZero(image->view(), box, channels, deadline.checkFor("for the mask"))) {
        throw UserError("The mask at frame " + std::to_string(frame) + " is empty.");
    }
    own.keys.insert(frame);
    own.painted.erase(frame);
    save(before, own, "STM: set key");
    parameters_.setStatus("Keys: " + inWords(asRanges(own.keys)) + ". The engine is starting, or busy: it takes the mask of " +
                          std::to_string(frame) + " with the next picture, or the next Propagate.");
    return true;
}

void EffectInstance::deleteKey(Frame frame, Progress& progress) {
    progress.begin("STM: deleting a key");
    const Deadline deadline = progress.deadline();
    const NodeShot before = parameters_.nodeShot();
    NodeShot own = before;
    own.painted.erase(frame);
    if (own.keys.erase(frame) == 0) throw UserError("Frame " + std::to_string(frame) + " is no key.");
    if (own.id.empty()) own.id = platform::randomHex(shotIdBytes);
    const Shot shot = claimedShot(own, frame, deadline);
    if (shot.keys(deadline).count(frame) != 0) shot.removeKey(frame, deadline);
    save(before, own, "STM: delete key", shot.spec().configured);
    showStatus(shot, own, deadline);
}

void EffectInstance::propagate(Frame frame, const std::string& button, Progress& progress) {
    if (!host_.hasTemporalAccess()) {
        throw UserError("This host shows the effect one frame at a time: render the frames in order from a key instead.");
    }
    const NodeShot before = parameters_.nodeShot();
    NodeShot own = before;
    if (own.keys.empty()) {
        const std::string store = parameters_.shotStore();
        throw UserError(own.isOurs() || store.empty()
                            ? noKeyText
                            : "This node only shows the shot store " + store +
                                  ". Compute it where it was made, or press Set key here to make it this node's.");
    }
    const PropagationTurn turn;
    if (!turn.granted()) {
        throw UserError("Another node is propagating. Wait until it is done, or press its Stop.");
    }
    progress.begin("STM: reading the plate");
    const Deadline deadline = progress.deadline();
    if (own.id.empty()) own.id = platform::randomHex(shotIdBytes);  // the keys were typed
    const Shot shot = claimedShot(own, frame, deadline);
    save(before, own, "STM: propagate", shot.spec().configured);
    bringKeys(shot, own, own.keys, deadline);
    Range frames = shot.spec().plate.at("frames").get<Range>();
    std::string direction = "both";
    if (button == param::propagateForward) {
        frames.first = frame;
        direction = "forward";
    } else if (button == param::propagateBackward) {
        frames.second = frame;
        direction = "backward";
    }
    for (int attempt = 1;; ++attempt) {
        try {
            pushForPropagation(shot, frames, direction, progress);
            runJob(shot, frames, direction, progress);
            node_->plateMayHaveChanged = false;
            showStatus(shot, own, deadline);
            parameters_.bumpRevision();
            return;
        } catch (const EngineError& error) {
            if (error.code == "busy") {  // what was cancelled a moment ago ends with its frame
                deadline.sleep(pollInterval, "until another computation of this shot is done");
                --attempt;
                continue;
            }
            // The engine was started anew, or what was changed needs more of the plate: begin again with what it has.
            const bool again = error.code == "unknown_job" || error.code == "unknown_shot" || error.code == "plate_missing";
            if (!again || attempt == recoveries) throw;
            progress.begin("STM: reading the plate");
        }
    }
}

void EffectInstance::pushForPropagation(const Shot& shot, const Range& frames, const std::string& direction,
                                        Progress& progress) {
    const Deadline deadline = progress.deadline();
    std::set<Frame> needed;
    const auto add = [&needed](const Json& ranges) {
        for (const auto& [first, last] : rangesOf(ranges)) {
            for (Frame frame = first; frame <= last; ++frame) needed.insert(frame);
        }
    };
    const Json plan = shot.plan(frames, direction, deadline);
    add(plan.at("plate_needed"));
    add(plan.at("frames"));
    if (node_->plateMayHaveChanged) add(Json::array({{frames.first, frames.second}}));
    std::size_t count = 0;
    for (const Frame frame : needed) {
        parameters_.setStatus("Reading the plate: " + std::to_string(++count) + " of " + std::to_string(needed.size()) +
                              " frames.");
        progress.set(static_cast<double>(count - 1) / static_cast<double>(needed.size()));
        deadline.check("for the plate");
        if (!pushFrom(shot, frame, deadline)) {
            throw UserError("The source has no image at frame " + std::to_string(frame) + ", which is needed.");
        }
    }
}

void EffectInstance::runJob(const Shot& shot, const Range& frames, const std::string& direction, Progress& progress) {
    progress.begin("STM: computing");
    const Deadline deadline = progress.deadline();
    struct Waiting {  // the shot of a job that is awaited stays open
        Waiting(ShotSession& session, const std::string& folder) : session_(session) { session_.setWaitingFor(folder); }
        Waiting(const Waiting&) = delete;
        Waiting& operator=(const Waiting&) = delete;
        ~Waiting() { session_.setWaitingFor(""); }
        ShotSession& session_;
    } const waiting(node_->session, shot.spec().folder);
    const std::string job = shot.propagate(frames, direction, deadline);
    JobState state;
    std::optional<std::int64_t> seen;
    try {
        while (true) {
            state = shot.job(job, std::nullopt, deadline);
            if (state.ended()) break;
            const std::int64_t total = std::max<std::int64_t>(1, state.total);
            progress.set(static_cast<double>(state.done) / static_cast<double>(total));
            if (seen != state.version) {
                seen = state.version;
                parameters_.setStatus(progressText(state));
            }
            // Waiting here and not at the engine lets renders of this node through.
            deadline.sleep(pollInterval, "to compute");
        }
    } catch (const Cancelled&) {
        shot.cancel(job);
        throw;
    }
    if (state.state == "failed") throw UserError(state.error);
    if (state.state == "cancelled") throw Cancelled();
}

void EffectInstance::stopJobs() {
    requestStop();
    if (node_->pressed) return;  // the action that is under way sees the request and ends its job itself
    const NodeShot own = parameters_.nodeShot();
    if (!own.isOurs() || !hasStore(own)) return;
    const Deadline deadline(stopLimit, nullptr);
    if (!node_->session.engineRuns(deadline)) return;
    bool guessed = false;
    openShot(own, frameRange(0, own.keys, guessed).first, false, deadline).cancelAll(deadline);
}

// Writes what an action has changed as one step of the host's undo. Natron ends the step with the first value, and may join
// two steps: there the effect itself undoes (`takeStep`). The first value is the step's number, which Natron keeps.
void EffectInstance::save(const NodeShot& before, const NodeShot& after, const char* step, const Json& configured) const {
    const bool isSame = before.id == after.id && before.keys == after.keys && before.isNew == after.isNew;
    if (isSame && std::string(step) == "STM: propagate") return;
    const Parameters::Edit edit(parameters_, step);
    const int number = parameters_.markStep();
    if (before.keys != after.keys) parameters_.setKeyFrames(after.keys);
    if (configured.is_object()) parameters_.takeConfigured(configured);
    NodeShot saved = after;
    for (auto one = saved.painted.begin(); one != saved.painted.end();) {
        one = saved.keys.count(one->first) != 0 ? std::next(one) : saved.painted.erase(one);
    }
    parameters_.setState(saved);
    parameters_.bumpRevision();
    if (parameters_.shotId() != after.id) {
        throw UserError("This node's values are linked to those of another one and cannot be changed here. Work on the other node, "
                        "or unlink this one.");
    }
    node_->steps.erase(node_->steps.lower_bound(number), node_->steps.end());  // what was undone is forgotten
    if (node_->steps.size() == mostSteps) node_->steps.erase(node_->steps.begin());
    node_->steps[number] = {before, saved};
    node_->step = number;
    parameters_.offerUndo(step, number);
}

// The host has undone or redone steps: takes over the values of step `now`.
void EffectInstance::takeStep(int now) const {
    if (node_->pressed || abandoned_ || now == node_->step) return;
    const bool isBack = now < node_->step;
    const auto found = isBack ? node_->steps.upper_bound(now) : node_->steps.find(now);
    if (found == node_->steps.end() || (isBack && node_->steps.count(node_->step) == 0)) return;
    node_->step = now;
    parameters_.showStep(now);
    const NodeShot& values = isBack ? found->second.before : found->second.after;
    parameters_.setKeyFrames(values.keys);
    parameters_.setState(values);
    parameters_.bumpRevision();
    renderCopiesAgain();
}

void EffectInstance::showStatus(const Shot& shot, const NodeShot& own, const Deadline& deadline) const {
    const Json status = shot.status(std::nullopt, deadline);
    std::string text = status.value("text", "");
    for (const Json& reason : status.value("reasons", Json::array())) {
        const std::string why = reason.value("text", "");
        if (!why.empty()) text += "\n" + inWords(rangesOf(reason.at("frames"))) + ": " + why;
    }
    std::set<Frame> taken;
    for (const Json& frame : status.value("keys", Json::array())) taken.insert(wholeNumber(frame));
    std::set<Frame> old;  // on a key the mask is shown
    for (const auto& [first, last] : rangesOf(status.value("stale", Json::array()))) {
        for (Frame frame = first; frame <= last; ++frame) {
            if (taken.count(frame) == 0) old.insert(frame);
        }
    }
    if (!old.empty() && parameters_.missingInWindow() == MissingFrames::oldMatte) {
        text += "\nThe window shows OLD mattes on " + inWords(asRanges(old)) + ".";
    }
    if (own.isOurs() && taken != own.keys) {
        std::set<Frame> more;
        std::set<Frame> fewer;
        std::set_difference(own.keys.begin(), own.keys.end(), taken.begin(), taken.end(), std::inserter(more, more.end()));
        std::set_difference(taken.begin(), taken.end(), own.keys.begin(), own.keys.end(), std::inserter(fewer, fewer.end()));
        if (!more.empty()) text += "\nKeys not taken yet: " + inWords(asRanges(more)) + ". Propagate takes them.";
        if (!fewer.empty()) text += "\nKeys that are no longer listed: " + inWords(asRanges(fewer)) + ". Propagate removes them.";
    }
    const Json advice = status.value("advice", Json());
    if (advice.is_object() && !advice.value("text", "").empty()) text += "\nNext key: " + advice.value("text", "") + ".";
    if (const std::string none = status.value("no_advice", ""); !none.empty()) text += "\n" + none;
    for (const Json& note : status.value("notes", Json::array())) text += "\n" + note.get<std::string>();
    parameters_.setStatus(text + parameters_.showLocks(status.value("locked", Json())));
}

void EffectInstance::refreshStatus(double time, bool startEngine) const {
    if (node_->pressed || abandoned_) return;  // the running action reports
    try {
        const NodeShot own = parameters_.nodeShot();
        if (!hasStore(own)) {
            const std::string typed = own.keys.empty() ? noKeyText : "Keys: " + inWords(asRanges(own.keys)) + ". Propagate takes them.";
            return parameters_.setStatus(typed);
        }
        const Deadline deadline(startEngine ? buttonLimit : statusLimit, nullptr);
        if (!startEngine && !node_->session.isConnected()) {
            return parameters_.setStatus(own.keys.empty() ? "Press Update status to see what is done."
                                                          : "Keys: " + inWords(asRanges(own.keys)) +
                                                                ". Press Update status to see what is done.");
        }
        showStatus(openShot(own, frameAt(time), false, deadline), own, deadline);
    } catch (const Reentered&) {
    } catch (const std::exception& error) {
        parameters_.setStatus(error.what());
    }
}

void EffectInstance::valueChanged(const std::string& name, double time) {
    const bool isStep = name == param::evenStep || name == param::oddStep || name == param::undoState;
    if (name == param::undoState) takeStep(node_->step + (parameters_.isRedo() ? 1 : -1));
    if (isStep && name != param::undoState) takeStep(parameters_.step());
    const bool counts = isStep || std::any_of(std::begin(shotValues), std::end(shotValues), [&name](const char* one) { return name == one; });
    if (counts) refreshStatus(time, false);
}

void EffectInstance::inputChanged(const std::string& clip) const {
    {
        const std::lock_guard<std::mutex> guard(node_->geometryMutex);
        node_->geometry.reset();
    }
    // A mask that an artist connects is soon a key.
    const ClipView& mask = maskSource();
    if (clip == mask.name() && mask.connected()) Connection::startAhead(Deadline(startLimit, nullptr));
}

// ---- the shot

// The host's range; if it has none, the effect's duration from 0 on; else the known frames.
Range EffectInstance::frameRange(Frame frame, const std::set<Frame>& keys, bool& guessed) const {
    const auto range = source_.frameRange();
    guessed = false;
    if (range && range->second - range->first < static_cast<double>(longestRange) && std::fabs(range->first) < frameLimit &&
        std::fabs(range->second) < frameLimit) {
        return {static_cast<Frame>(std::ceil(range->first)), static_cast<Frame>(std::floor(range->second))};
    }
    guessed = true;
    Range found{frame, frame};
    if (!keys.empty()) found = {std::min(frame, *keys.begin()), std::max(frame, *keys.rbegin())};
    const auto duration = propertiesOf(host_, effect_).number(ofx::prop::effectDuration);
    if (duration && *duration >= 1.0 && *duration < static_cast<double>(longestRange)) {
        found = {std::min<Frame>(0, found.first), std::max(static_cast<Frame>(std::floor(*duration)) - 1, found.second)};
    }
    return found;
}

// `anew`: reads the regions of the whole range; else the last ones are used while they fit.
PlateGeometry EffectInstance::geometry(Frame frame, const std::set<Frame>& keys, bool anew) const {
    PlateGeometry found;
    found.pixelAspect = source_.pixelAspect();
    found.frames = frameRange(frame, keys, found.guessedFrames);
    // The format: the host's project where the plate covers it (then the rest is overscan), else the plate itself.
    // Natron's instances for renders tell a project of no size.
    const ofx::Effect known = node_->effect;
    const Properties about = propertiesOf(host_, known != nullptr ? known : effect_);
    const auto number = [&about](const char* name, int axis) { return about.number(name, axis).value_or(0.0); };
    const double x = number(ofx::prop::projectOffset, 0);
    const double y = number(ofx::prop::projectOffset, 1);
    found.format = pixelBox({x, y, x + number(ofx::prop::projectSize, 0), y + number(ofx::prop::projectSize, 1)},
                            found.pixelAspect);
    const auto boxAt = [&](Frame at) -> std::optional<Box> {
        const auto region = source_.regionOfDefinition(static_cast<double>(at));
        if (!region) return std::nullopt;
        return pixelBox(*region, found.pixelAspect);
    };
    const std::optional<Box> here = boxAt(frame);
    const std::lock_guard<std::mutex> guard(node_->geometryMutex);
    if (!anew && node_->geometry && here) {
        const PlateGeometry& last = *node_->geometry;
        if (last.frames == found.frames && last.format == found.format && last.pixelAspect == found.pixelAspect &&
            last.canvas.contains(*here)) {
            return last;
        }
    }
    // The plate's canvas must be known before its frames are: the union of its regions over the range, sampled.
    std::set<Frame> samples;
    if (!host_.hasTemporalAccess()) {
        samples.insert(frame);
    } else {
        const Frame count = found.frames.second - found.frames.first + 1;
        const Frame step = std::max<Frame>(1, (count + regionSamples - 2) / (regionSamples - 1));
        for (Frame at = found.frames.first; at <= found.frames.second; at += step) samples.insert(at);
        samples.insert(found.frames.second);
    }
    std::optional<Box> first;
    for (const Frame at : samples) {
        const auto box = at == frame ? here : boxAt(at);
        if (!box) continue;
        found.canvas = first ? united(found.canvas, *box) : *box;
        if (!first) first = *box;
    }
    if (!first) throw UserError("The source has no picture. Connect one to the input Source.");
    found.display = !found.format.empty() && found.canvas.contains(found.format) ? found.format : *first;
    node_->geometry = found;
    return found;
}

std::string EffectInstance::chosenFolder() const {
    std::string folder = parameters_.shotStore();
    while (folder.size() > 1 && (folder.back() == '/' || folder.back() == '\\')) folder.pop_back();
    if (!folder.empty() && !isAbsolute(folder)) {
        throw UserError("The shot store must be a whole path: " + folder + ". (Where the host has shortened it in a saved project, "
                        "write it as file:///PATH.)");
    }
    return folder;
}

// The store's path; without its folder where the artist has chosen none.
std::string EffectInstance::storeName(const std::string& shotId) const {
    const std::string folder = chosenFolder();
    if (endsWith(folder, storeSuffix)) return folder;
    if (shotId.empty()) {
        throw UserError(parameters_.keyFrames().empty()
                            ? "There is no key yet. Go to a frame with a mask and press Set key, or choose a shot store."
                            : "The masks of the key frames have not been taken yet: press a Propagate button.");
    }
    return folder + "/ofx-" + shotId + storeSuffix;
}

// A store that nobody places stays where it is: where the node has saved it, or in the user's folder. One that is not there
// yet goes into the cache folder of the site's configuration, if that has one.
std::string EffectInstance::storeFolder(const NodeShot& own, const Deadline& deadline) const {
    const std::string name = storeName(own.id);
    if (!chosenFolder().empty()) return name;
    const std::string users = platform::dataFolder() + "/shots";
    for (const std::string& place : {own.place, users}) {
        if (!place.empty() && platform::exists(place + name + "/shot.json")) return place + name;
    }
    const std::string told = node_->session.site(deadline).cacheFolder;
    return (told.empty() ? users : told) + name;
}

bool EffectInstance::namesStore() const {
    std::string folder = parameters_.shotStore();
    while (!folder.empty() && (folder.back() == '/' || folder.back() == '\\')) folder.pop_back();
    return endsWith(folder, storeSuffix);
}

// Empty: the engine decides, which takes float pixels for scene-linear ones.
std::string EffectInstance::colourSpace() const {
    const std::string chosen = parameters_.colourSpace();
    if (!chosen.empty()) return chosen;
    if (const auto told = source_.colourSpace(); told && !told->empty()) return *told;
    const std::string depth = source_.pixelDepth().value_or("");
    return depth == ofx::value::depthByte || depth == ofx::value::depthShort ? displaySpace : "";
}

ShotSpec EffectInstance::describedShot(const NodeShot& own, Frame frame, bool anew, const Deadline& deadline) const {
    ShotSpec spec;
    const std::string name = storeName(own.id);
    spec.ours = own.isOurs();
    spec.copied = spec.ours && isAnothers(name, node_);
    const PlateGeometry plate = geometry(frame, own.keys, anew);
    spec.guessedFrames = plate.guessedFrames;
    spec.displayTop = plate.display.y2;
    // The node's own store has the display window that the node gave it; another's is laid over the host's format.
    const Box& format = spec.ours ? plate.display : plate.format;
    spec.formatLeft = format.x1;
    spec.formatBottom = format.y1;
    spec.plate = {{"kind", "pushed"},
                  {"frames", {plate.frames.first, plate.frames.second}},
                  {"display_window", toEngineWindow(plate.display, plate.display.y2)},
                  {"canvas", toEngineWindow(plate.canvas, plate.display.y2)},
                  {"pixel_aspect", plate.pixelAspect}};
    if (const auto rate = source_.frameRate(); rate && *rate >= 1e-3 && *rate <= 1e6) spec.plate["fps"] = *rate;
    if (const std::string space = colourSpace(); !space.empty()) spec.plate["colour_space"] = space;
    if (spec.ours && own.isNew) spec.configured = node_->session.site(deadline).configured;
    spec.settings = parameters_.settings(plate.pixelAspect, plate.display.y2, spec.configured);
    spec.folder = storeFolder(own, deadline);
    return spec;
}

Shot EffectInstance::openShot(const NodeShot& own, Frame frame, bool anew, const Deadline& deadline) const {
    if (!source_.connected()) throw UserError("The input Source is not connected.");
    ShotSpec spec = describedShot(own, frame, anew, deadline);
    if (spec.ours && !spec.copied) platform::makeFolders(parentOf(spec.folder));
    return Shot(node_->session, std::move(spec));
}

Shot EffectInstance::claimedShot(NodeShot& own, Frame frame, const Deadline& deadline) {
    const Shot shot = openShot(own, frame, true, deadline);
    const auto settled = [this, &own](const Shot& claimed) {  // what the node saves of its shot
        own.isNew = false;
        if (chosenFolder().empty()) own.place = parentOf(claimed.spec().folder);
        return claimed;
    };
    if (shot.claim(deadline)) return settled(shot);
    if (namesStore()) {
        throw UserError("Another node uses the shot store " + parameters_.shotStore() + ". Give this node another one.");
    }
    own.id = platform::randomHex(shotIdBytes);  // this node is a copy: from now on it has a separate store
    own.place.clear();
    ShotSpec spec = openShot(own, frame, true, deadline).spec();
    spec.copyOf = shot.spec().folder;  // with all that is computed: what fits this node's plate, keys and settings is used
    const Shot fresh(node_->session, std::move(spec));
    if (!fresh.claim(deadline)) throw UserError("Another node uses the shot store of this node.");
    bringKeys(fresh, own, reachable(own.keys, frame), deadline);
    return settled(fresh);
}

bool EffectInstance::isUneditedCopy(const NodeShot& own) const {
    return node_->pastedKeys && *node_->pastedKeys == own.keys;
}

std::set<Frame> EffectInstance::reachable(const std::set<Frame>& frames, Frame current) const {
    if (host_.hasTemporalAccess()) return frames;
    return frames.count(current) != 0 ? std::set<Frame>{current} : std::set<Frame>{};
}

// ---- keys and plate

std::set<Frame> EffectInstance::neighbouringKeys(double time) const {
    const std::set<Frame> keys = parameters_.keyFrames();
    std::set<Frame> found;
    if (!(std::fabs(time) <= frameLimit)) return found;
    const auto after = keys.lower_bound(static_cast<Frame>(std::ceil(time)));
    if (after != keys.end()) found.insert(*after);
    if (after != keys.begin() && (after == keys.end() || static_cast<double>(*after) > time)) found.insert(*std::prev(after));
    return found;
}

// Updates the engine's keys from the node; the masks of `compared` are read again.
void EffectInstance::bringKeys(const Shot& shot, const NodeShot& own, const std::set<Frame>& compared,
                               const Deadline& deadline) const {
    const auto known = shot.keys(deadline);
    // A copy that was not edited shows the original, also after the original gets new keys.
    const bool follows = shot.spec().copied && isUneditedCopy(own);
    for (const auto& [frame, masks] : known) {
        if (own.keys.count(frame) != 0 || follows) continue;
        if (!shot.claim(deadline)) throw CopyDiffers("keys");
        shot.removeKey(frame, deadline);
    }
    for (const Frame frame : own.keys) {
        const auto there = known.find(frame);
        const bool isThere = there != known.end();
        if ((isThere || !host_.hasTemporalAccess()) && compared.count(frame) == 0) continue;
        const auto painted = own.painted.find(frame);
        if (painted != own.painted.end()) {
            if (!follows) bringPainted(shot, frame, painted->second, isThere ? &there->second : nullptr, deadline);
            continue;
        }
        if (follows && (!isThere || there->second.digest.rfind(paintedDigest, 0) == 0)) continue;
        bringKey(shot, frame, maskSource(), isThere ? std::make_optional(there->second.digest) : std::nullopt, deadline);
    }
}

// The mask of a painted key is in the store only. After an undo it is perhaps no key there, or another one is in its place.
void EffectInstance::bringPainted(const Shot& shot, Frame frame, const KeyMasks& wanted, const KeyMasks* there,
                                  const Deadline& deadline) const {
    if (there != nullptr && (wanted.contents.empty() || wanted.contents == there->contents)) return;
    if (!shot.claim(deadline)) throw CopyDiffers("keys");
    if (shot.restoreKey(frame, wanted, deadline)) return;
    throw UserError("The key on frame " + std::to_string(frame) + " was painted, and the shot store has lost it. Go there "
                    "and press Set key from fix, Set key or Delete key.");
}

// The mask picture at `frame` and what of it counts. Nothing when the host has none there, or a proxy, which tells nothing.
std::optional<Image> EffectInstance::maskAt(const ClipView& clip, Frame frame, Box& box, const Deadline& deadline) const {
    if (!clip.connected()) return std::nullopt;
    double time = static_cast<double>(frame);
    if (const auto range = clip.frameRange()) time = std::clamp(time, range->first, range->second);
    const auto region = clip.regionOfDefinition(time);
    if (!region) return std::nullopt;
    std::optional<Image> image = clip.image(time, &*region);
    deadline.check("for the mask");
    if (!image || !isFullSize(*image)) return std::nullopt;
    box = intersection(pixelBox(*region, clip.pixelAspect()), image->view().box);
    if (box.empty()) throw UserError("The mask at frame " + std::to_string(frame) + " is empty.");
    if (isMarked(image->view(), box)) {
        throw UserError("The input " + std::string(clip.name()) + " shows an old matte at frame " + std::to_string(frame) +
                        ": its border is striped. Propagate, then look at the frame again.");
    }
    return image;
}

// Hosts fill in an alpha that is not there. A source with such an alpha would make the whole picture the key.
void EffectInstance::requireMaskInAlpha(const ClipView& clip, Frame frame, const Image& image, const Box& box,
                                        const MaskLayout& layout, const Check& check) const {
    const bool isAlpha = layout.channels.size() == 1 && layout.channels.front().channel == "A";
    if (&clip != &source_ || !isAlpha) return;
    if (!layout.isLuminance && !isOpaque(image.view(), box, check)) return;
    throw UserError("The source has no mask in its alpha at frame " + std::to_string(frame) +
                    ": it is opaque everywhere, or the host has dropped it.");
}

// Pushes the mask of `clip` at `frame` if its digest differs from `known`, the engine's. False when the host has no
// mask there.
bool EffectInstance::bringKey(const Shot& shot, Frame frame, const ClipView& clip, const std::optional<std::string>& known,
                              const Deadline& deadline) const {
    Box box;
    const std::optional<Image> image = maskAt(clip, frame, box, deadline);
    if (!image) return false;
    const MaskLayout layout = parameters_.maskLayout(image->view().components, clip.hasAlpha());
    std::string about = layout.isLuminance ? "mask luminance" : "mask";
    for (const MaskChannel& one : layout.channels) about += " " + one.object + "=" + one.channel;
    for (const int side : {box.x1, box.y1, box.x2, box.y2}) about += " " + std::to_string(side);
    const Check check = deadline.checkFor("for the mask");
    const std::string digest = (&clip == &fix_ ? paintedDigest : "") +
                               digestOf(image->view(), box, about + engineFormat(image->view().depth), check);
    if (known == digest) return true;
    requireMaskInAlpha(clip, frame, *image, box, layout, check);
    if (!shot.claim(deadline)) throw CopyDiffers("mask on frame " + std::to_string(frame));
    const Matte luminance = layout.isLuminance ? luminanceOf(image->view(), box, check) : Matte{};
    const PixelView view = layout.isLuminance ? viewOf(luminance) : image->view();
    shot.pushKey(frame, {view, box, false, digest}, layout.channels, deadline);
    return true;
}

std::string EffectInstance::noMaskText(const ClipView& clip, Frame frame) {
    const std::string name(clip.name());
    if (!clip.connected() && name == fixClip) {
        return "There is nothing at the input " + name + ": connect a paint node to it, and under that the matte, which a copy of "
               "this node puts out.";
    }
    if (!clip.connected()) {
        return "There is no mask at frame " + std::to_string(frame) + ": connect one to the input " + name +
               ", or choose where masks come from.";
    }
    return "The input " + name + " is connected, but gives no picture at frame " + std::to_string(frame) +
           ". Look at what is connected there on this frame: its frame range, its channels, and whether it is switched off.";
}

void EffectInstance::pushIfNeeded(const Shot& shot, Frame frame, const Image& image, bool mustBeThere,
                                  const Deadline& deadline) {
    const auto region = source_.regionOfDefinition(static_cast<double>(frame));
    const Box whole = region ? pixelBox(*region, source_.pixelAspect()) : image.view().box;
    if (!isFullSize(image) || !image.view().box.contains(whole) || image.view().components == 1) {
        if (shot.plateNeeded({frame, frame}, {}, deadline).empty()) return;
        throw UserError("Frame " + std::to_string(frame) +
                        " can be given to the engine only whole, in colour and at full size: switch the proxy mode off.");
    }
    std::string about = image.premultiplied() ? "plate premultiplied" : "plate";
    for (const int side : {whole.x1, whole.y1, whole.x2, whole.y2}) about += " " + std::to_string(side);
    const std::string digest = digestOf(image.view(), whole, about + engineFormat(image.view().depth),
                                        deadline.checkFor("for the plate"));
    if (shot.plateNeeded({frame, frame}, {{frame, digest}}, deadline).empty()) return;
    if (!shot.claim(deadline)) {
        // The plate of a store that is another node's, or another program's, is not this node's to change.
        const bool isOther = shot.plateNeeded({frame, frame}, {}, deadline).empty();
        if (mustBeThere || isOther) throw CopyDiffers("picture on frame " + std::to_string(frame));
        return;  // nobody has given it yet
    }
    const PushedImage pushed{image.view(), whole, image.premultiplied(), digest};
    if (shot.pushPlate(frame, pushed, source_.pixelAspect(), deadline)) node_->plateMayHaveChanged = true;
}

// Fetches the source at `frame` and gives it to the engine if that lacks it. False when the host has no image there.
bool EffectInstance::pushFrom(const Shot& shot, Frame frame, const Deadline& deadline) {
    const auto time = static_cast<double>(frame);
    const auto region = source_.regionOfDefinition(time);
    const std::optional<Image> image = source_.image(time, region ? &*region : nullptr);
    deadline.check("for the plate");
    if (!image) return false;
    pushIfNeeded(shot, frame, *image, true, deadline);
    return true;
}

}  // namespace stm
