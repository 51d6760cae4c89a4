#include "effect.h"

#include <algorithm>
#include <cmath>

namespace stm {

namespace {

constexpr Milliseconds renderLimit{600000};
constexpr Milliseconds buttonLimit{24 * 3600 * 1000};
constexpr Milliseconds stopLimit{1000};
constexpr int recoveries = 3;
constexpr int regionSamples = 64;
constexpr Frame longestRange = 1000000;
constexpr Frame unknownLastFrame = 99999;
constexpr double frameLimit = 1e9;
constexpr double frameSlack = 1e-6;
constexpr std::size_t shotIdBytes = 8;
constexpr const char* displaySpace = "srgb_rec709_scene";
constexpr const char* storeSuffix = ".stmshot";
constexpr Rgba overlayTint{1.0F, 0.1F, 0.1F, 1.0F};
constexpr float overlayStrength = 0.5F;
constexpr double readingShare = 0.3;  // of the progress bar; the rest is the engine's

bool endsWith(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool isAbsolute(const std::string& path) {
    const bool drive = path.size() > 2 && path[1] == ':' && (path[2] == '/' || path[2] == '\\');
    return drive || path.front() == '/' || path.rfind("\\\\", 0) == 0;
}

std::string parentOf(const std::string& path) { return path.substr(0, path.find_last_of("/\\")); }

bool isFullSize(const Image& image) { return image.scaleX() == 1.0 && image.scaleY() == 1.0; }

bool isNoMatteYet(const EngineError& error) { return error.code == "matte_missing"; }

}  // namespace

Frame frameAt(double time) {
    const double whole = std::round(time);
    if (!(std::fabs(time - whole) <= frameSlack) || !(std::fabs(whole) <= frameLimit)) {
        throw UserError("There are mattes of whole frames only: set the retime below this node, not above it.");
    }
    return static_cast<Frame>(whole);
}

// The plate as the engine counts it.
struct EffectInstance::Geometry {
    Range frames;
    Box format;   // the host's; empty where it tells none
    Box display;
    Box canvas;
    double pixelAspect;
};

// The host's progress bar, where it has one, and the ways to stop that a button's action has.
class EffectInstance::Progress {
  public:
    Progress(EffectInstance& instance, const char* label)
        : instance_(instance), suite_(instance.host_.progress()) {
        instance_.stopRequested_ = false;
        shown_ = suite_ != nullptr && suite_->start(instance_.effect_, label) == ofx::status::ok;
    }
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    ~Progress() {
        if (shown_) suite_->end(instance_.effect_);
    }

    void set(double part) { part_ = std::clamp(part, part_, 1.0); }
    bool stopped() {
        if (shown_ && suite_->update(instance_.effect_, part_) == ofx::status::replyNo) instance_.stopRequested_ = true;
        return instance_.stopRequested_;
    }
    Deadline deadline() {
        return Deadline(buttonLimit, [this] { return stopped(); });
    }

  private:
    EffectInstance& instance_;
    const ofx::ProgressSuiteV1* suite_;
    bool shown_ = false;
    double part_ = 0.0;
};

EffectInstance::EffectInstance(const Host& host, ofx::Effect effect)
    : host_(host),
      effect_(effect),
      parameters_(host, effect),
      source_(host, effect, ofx::value::sourceClip),
      mask_(host, effect, maskClip),
      output_(host, effect, ofx::value::outputClip),
      session_(host.nameAndVersion()) {}

// ---- buttons

void EffectInstance::buttonPressed(const std::string& name, double time) {
    if (name == param::stop) return stopJobs();
    const bool isKey = name == param::setKey || name == param::deleteKey;
    const bool isPropagation =
        name == param::propagateForward || name == param::propagateBackward || name == param::propagateBoth;
    if (!isKey && !isPropagation) return;
    // A host may let the artist press buttons while it shows our progress.
    if (pressed_.exchange(true)) throw UserError("This node is at work already: wait until that is done, or press Stop.");
    try {
        perform(name, time);
        pressed_ = false;
    } catch (...) {
        pressed_ = false;
        throw;
    }
}

void EffectInstance::perform(const std::string& name, double time) {
    const bool isKey = name == param::setKey || name == param::deleteKey;
    host_.clearError(effect_);
    Progress progress(*this, "STM");
    try {
        const Frame frame = frameAt(time);
        if (!isKey) {
            propagate(frame, name, progress);
        } else if (name == param::setKey) {
            setKey(frame, progress);
        } else {
            deleteKey(frame, progress);
        }
        finishEdit(progress.deadline());
    } catch (const Cancelled&) {
        parameters_.setStatus("Stopped. Finished frames are kept.");
        parameters_.bumpRevision();
    } catch (const std::exception& error) {
        parameters_.setStatus(error.what());
        throw;
    }
}

void EffectInstance::setKey(Frame frame, Progress& progress) {
    const Deadline deadline = progress.deadline();
    const std::set<Frame> before = parameters_.keyFrames();
    if (parameters_.shotId().empty()) nameShot();
    claimShot(frame, deadline);
    std::set<Frame> keys = before;
    if (before.empty()) {  // a store that somebody else began: its keys become this node's
        for (const auto& [known, digest] : session_.keys(deadline)) keys.insert(known);
    }
    if (!pushFrom(frame, deadline)) throw UserError("The source has no image at frame " + std::to_string(frame) + ".");
    const auto engineKeys = session_.keys(deadline);
    const auto known = engineKeys.find(frame);
    if (!bringKey(frame, known == engineKeys.end() ? std::nullopt : std::make_optional(known->second), deadline)) {
        throw UserError("There is no mask at frame " + std::to_string(frame) + ": connect one to the input " +
                        std::string(maskSource().name()) + ", or choose where masks come from.");
    }
    keys.insert(frame);
    parameters_.setKeyFrames(keys);
    parameters_.setShotId(parameters_.shotId(), keys);
}

void EffectInstance::deleteKey(Frame frame, Progress& progress) {
    const Deadline deadline = progress.deadline();
    std::set<Frame> keys = parameters_.keyFrames();
    if (keys.erase(frame) == 0) throw UserError("Frame " + std::to_string(frame) + " is no key.");
    claimShot(frame, deadline);
    if (session_.keys(deadline).count(frame) != 0) session_.removeKey(frame, deadline);
    parameters_.setKeyFrames(keys);
    parameters_.setShotId(parameters_.shotId(), keys);
}

void EffectInstance::propagate(Frame frame, const std::string& button, Progress& progress) {
    if (!host_.hasTemporalAccess()) {
        throw UserError("This host shows the effect one frame at a time: render the frames in order from a key instead.");
    }
    if (!ownsShot()) {
        const std::string store = parameters_.shotStore();
        throw UserError(store.empty() ? "There is no key yet. Go to a frame with a mask and press Set key."
                                      : "This node only shows the shot store " + store +
                                            ". Compute it where it was made, or press Set key here to make it this node's.");
    }
    const Deadline deadline = progress.deadline();
    claimShot(frame, deadline);
    const std::set<Frame> keys = parameters_.keyFrames();
    bringKeys(keys, deadline);
    Range frames = geometry(frame).frames;
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
            pushForPropagation(frames, direction, progress);
            runJob(frames, direction, progress);
            plateMayHaveChanged_ = false;
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
        }
    }
}

void EffectInstance::pushForPropagation(const Range& frames, const std::string& direction, Progress& progress) {
    const Deadline deadline = progress.deadline();
    std::set<Frame> looked;
    const auto add = [&looked](const Json& ranges) {
        for (const auto& [first, last] : rangesOf(ranges)) {
            for (Frame frame = first; frame <= last; ++frame) looked.insert(frame);
        }
    };
    const Json plan = session_.plan(frames, direction, deadline);
    add(plan.at("plate_needed"));
    add(plan.at("frames"));
    if (plateMayHaveChanged_) add(Json::array({{frames.first, frames.second}}));
    std::size_t count = 0;
    for (const Frame frame : looked) {
        progress.set(readingShare * static_cast<double>(count++) / static_cast<double>(looked.size()));
        deadline.check("for the plate");
        if (!pushFrom(frame, deadline)) {
            throw UserError("The source has no image at frame " + std::to_string(frame) + ", which is needed.");
        }
    }
}

void EffectInstance::runJob(const Range& frames, const std::string& direction, Progress& progress) {
    const Deadline deadline = progress.deadline();
    const std::string job = session_.propagate(frames, direction, deadline);
    JobState state;
    try {
        while (!state.ended()) {
            // Waiting here and not at the engine lets renders of this node through.
            deadline.sleep(pollInterval, "to compute");
            state = session_.job(job, std::nullopt, deadline);
            const double part = static_cast<double>(state.done) / static_cast<double>(std::max<std::int64_t>(1, state.total));
            progress.set(readingShare + (1.0 - readingShare) * part);
        }
    } catch (const Cancelled&) {
        session_.cancel(job);
        throw;
    }
    if (state.state == "failed") throw UserError(state.error);
    if (state.state == "cancelled") throw Cancelled();
}

void EffectInstance::stopJobs() {
    requestStop();
    if (pressed_ || !ownsShot()) return;  // the action that is under way sees the request and ends its job itself
    const Deadline deadline(stopLimit, nullptr);
    useShot(source_.frameRange() ? static_cast<Frame>(source_.frameRange()->first) : 0, deadline);
    session_.cancelAll(deadline);
}

void EffectInstance::finishEdit(const Deadline& deadline) {
    const Json status = session_.status(std::nullopt, deadline);
    parameters_.setStatus(status.value("text", ""));
    parameters_.bumpRevision();
}

// ---- the shot

EffectInstance::Geometry EffectInstance::geometry(Frame frame) const {
    Geometry found{{0, unknownLastFrame}, {}, {}, {}, source_.pixelAspect()};
    const auto range = source_.frameRange();
    if (range && range->second - range->first < static_cast<double>(longestRange) && std::fabs(range->first) < frameLimit &&
        std::fabs(range->second) < frameLimit) {
        found.frames = {static_cast<Frame>(std::ceil(range->first)), static_cast<Frame>(std::floor(range->second))};
    } else {
        found.frames = {std::min(found.frames.first, frame), std::max(found.frames.second, frame)};
    }

    // The plate's canvas must be known before its frames are: the union of its regions over the range, sampled.
    const auto boxAt = [&](Frame at) -> std::optional<Box> {
        const auto region = source_.regionOfDefinition(static_cast<double>(at));
        if (!region) return std::nullopt;
        return pixelBox(*region, found.pixelAspect);
    };
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
        const auto box = boxAt(at);
        if (!box) continue;
        if (!first) first = found.canvas = *box;
        found.canvas = {std::min(found.canvas.x1, box->x1), std::min(found.canvas.y1, box->y1),
                        std::max(found.canvas.x2, box->x2), std::max(found.canvas.y2, box->y2)};
    }
    if (!first) throw UserError("The source has no picture. Connect one to the input Source.");

    // The format: the host's project where the plate covers it (then the rest is overscan), else the plate itself.
    const Properties about = propertiesOf(host_, effect_);
    const auto number = [&about](const char* name, int axis) { return about.number(name, axis).value_or(0.0); };
    const double x = number(ofx::prop::projectOffset, 0);
    const double y = number(ofx::prop::projectOffset, 1);
    found.format = pixelBox({x, y, x + number(ofx::prop::projectSize, 0), y + number(ofx::prop::projectSize, 1)},
                            found.pixelAspect);
    found.display = !found.format.empty() && found.canvas.contains(found.format) ? found.format : *first;
    return found;
}

std::string EffectInstance::storeFolder(const std::string& shotId) const {
    std::string folder = parameters_.shotStore();
    while (folder.size() > 1 && (folder.back() == '/' || folder.back() == '\\')) folder.pop_back();
    if (!folder.empty() && !isAbsolute(folder)) throw UserError("The shot store must be a whole path: " + folder);
    if (endsWith(folder, storeSuffix)) return folder;
    if (shotId.empty()) {
        throw UserError("There is no key yet. Go to a frame with a mask and press Set key, or choose a shot store.");
    }
    if (folder.empty()) folder = platform::dataFolder() + "/shots";
    return folder + "/ofx-" + shotId + storeSuffix;
}

// Empty: the engine decides, which takes float pixels for scene-linear ones.
std::string EffectInstance::colourSpace() const {
    const std::string chosen = parameters_.colourSpace();
    if (!chosen.empty()) return chosen;
    if (const auto told = source_.colourSpace(); told && !told->empty()) return *told;
    const std::string depth = source_.pixelDepth().value_or("");
    return depth == ofx::value::depthByte || depth == ofx::value::depthShort ? displaySpace : "";
}

ShotSpec EffectInstance::describedShot(Frame frame) const {
    const std::string id = parameters_.shotId();
    ShotSpec spec;
    spec.folder = storeFolder(id);
    spec.ours = ownsShot();
    const Geometry plate = geometry(frame);
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
    spec.settings = parameters_.settings(plate.pixelAspect, plate.display.y2);
    return spec;
}

bool EffectInstance::ownsShot() const { return !parameters_.shotId().empty() || !parameters_.keyFrames().empty(); }

void EffectInstance::useShot(Frame frame, const Deadline& deadline) {
    if (!source_.connected()) throw UserError("The input Source is not connected.");
    const ShotSpec spec = describedShot(frame);
    if (spec.ours) platform::makeFolders(parentOf(spec.folder));
    session_.use(spec, deadline);
}

void EffectInstance::claimShot(Frame frame, const Deadline& deadline) {
    useShot(frame, deadline);
    if (session_.claim(deadline)) return;
    if (endsWith(parameters_.shotStore(), storeSuffix)) {
        throw UserError("Another node uses the shot store " + parameters_.shotStore() + ". Give this node one of its own.");
    }
    nameShot();  // this node is a copy: from now on it has a store of its own
    useShot(frame, deadline);
    if (!session_.claim(deadline)) throw UserError("Another node uses the shot store of this node.");
    bringKeys(reachable(parameters_.keyFrames(), frame), deadline);
}

std::set<Frame> EffectInstance::reachable(const std::set<Frame>& frames, Frame current) const {
    if (host_.hasTemporalAccess()) return frames;
    return frames.count(current) != 0 ? std::set<Frame>{current} : std::set<Frame>{};
}

void EffectInstance::nameShot() { parameters_.setShotId(platform::randomHex(shotIdBytes), parameters_.keyFrames()); }

// ---- keys and plate

std::set<Frame> EffectInstance::neighbouringKeys(double time) const {
    const std::set<Frame> keys = parameters_.keyFrames();
    std::set<Frame> found;
    const auto after = keys.lower_bound(static_cast<Frame>(std::ceil(time)));
    if (after != keys.end()) found.insert(*after);
    if (after != keys.begin() && (after == keys.end() || static_cast<double>(*after) > time)) found.insert(*std::prev(after));
    return found;
}

// Makes the engine's keys those of the node; the masks of `compared` are looked at again.
void EffectInstance::bringKeys(const std::set<Frame>& compared, const Deadline& deadline) {
    const std::set<Frame> wanted = parameters_.keyFrames();
    if (wanted.empty()) return;  // the store's own keys count
    const auto known = session_.keys(deadline);
    for (const auto& [frame, digest] : known) {
        if (wanted.count(frame) != 0) continue;
        if (!session_.claim(deadline)) {
            throw UserError("This node's keys are not those of its shot store, which another node uses. Press Set key or a "
                            "Propagate button to give this node a store of its own.");
        }
        session_.removeKey(frame, deadline);
    }
    for (const Frame frame : wanted) {
        const auto there = known.find(frame);
        const bool maySkip = there != known.end() || !host_.hasTemporalAccess();
        if (maySkip && compared.count(frame) == 0) continue;
        bringKey(frame, there == known.end() ? std::nullopt : std::make_optional(there->second), deadline);
    }
}

// Pushes the mask at `frame` when it is not the one that the engine knows by the digest `known`. Gives the mask's digest, or
// nothing when the host has no mask there.
std::optional<std::string> EffectInstance::bringKey(Frame frame, const std::optional<std::string>& known,
                                                    const Deadline& deadline) {
    const ClipView& clip = maskSource();
    if (!clip.connected()) return std::nullopt;
    double time = static_cast<double>(frame);
    if (const auto range = clip.frameRange()) time = std::clamp(time, range->first, range->second);
    const auto region = clip.regionOfDefinition(time);
    if (!region) return std::nullopt;
    const std::optional<Image> image = clip.image(time, &*region);
    deadline.check("for the mask");
    if (!image) return std::nullopt;
    if (!isFullSize(*image)) return std::nullopt;  // a proxy of the mask tells nothing
    const std::vector<MaskChannel> channels = parameters_.maskChannels(image->view().components);
    const Box box = intersection(pixelBox(*region, clip.pixelAspect()), image->view().box);
    if (box.empty()) throw UserError("The mask at frame " + std::to_string(frame) + " is empty.");
    std::string about = "mask";
    for (const MaskChannel& one : channels) about += " " + one.object + "=" + one.channel;
    for (const int side : {box.x1, box.y1, box.x2, box.y2}) about += " " + std::to_string(side);
    const std::string digest = digestOf(image->view(), box, about + engineFormat(image->view().depth),
                                        deadline.checkFor("for the mask"));
    if (known == digest) return digest;
    if (!session_.claim(deadline)) {
        throw UserError("The mask at key frame " + std::to_string(frame) +
                        " has changed, but another node uses this shot store. Press Set key there.");
    }
    session_.pushKey(frame, {image->view(), box, false, digest}, channels, deadline);
    return digest;
}

void EffectInstance::pushIfNeeded(Frame frame, const Image& image, const Deadline& deadline) {
    const auto region = source_.regionOfDefinition(static_cast<double>(frame));
    const Box whole = region ? pixelBox(*region, source_.pixelAspect()) : image.view().box;
    if (!isFullSize(image) || !image.view().box.contains(whole) || image.view().components == 1) {
        if (session_.plateNeeded({frame, frame}, {}, deadline).empty()) return;
        throw UserError("Frame " + std::to_string(frame) +
                        " can be given to the engine only whole, in colour and at full size: switch the proxy mode off.");
    }
    std::string about = image.premultiplied() ? "plate premultiplied" : "plate";
    for (const int side : {whole.x1, whole.y1, whole.x2, whole.y2}) about += " " + std::to_string(side);
    const std::string digest = digestOf(image.view(), whole, about + engineFormat(image.view().depth),
                                        deadline.checkFor("for the plate"));
    if (session_.plateNeeded({frame, frame}, {{frame, digest}}, deadline).empty()) return;
    const PushedImage pushed{image.view(), whole, image.premultiplied(), digest};
    if (session_.pushPlate(frame, pushed, source_.pixelAspect(), deadline)) plateMayHaveChanged_ = true;
}

// Fetches the source at `frame` and gives it to the engine if that lacks it. False when the host has no image there.
bool EffectInstance::pushFrom(Frame frame, const Deadline& deadline) {
    const auto time = static_cast<double>(frame);
    const auto region = source_.regionOfDefinition(time);
    const std::optional<Image> image = source_.image(time, region ? &*region : nullptr);
    deadline.check("for the plate");
    if (!image) return false;
    pushIfNeeded(frame, *image, deadline);
    return true;
}

// ---- rendering

std::vector<double> EffectInstance::sourceFramesNeeded(double time) const {
    std::vector<double> frames{time, time};
    if (parameters_.maskFrom() == MaskFrom::sourceAlpha) {
        for (const Frame key : neighbouringKeys(time)) frames.insert(frames.end(), 2, static_cast<double>(key));
    }
    const auto range = source_.frameRange();
    if (range) std::for_each(frames.begin(), frames.end(), [&](double& at) { at = std::clamp(at, range->first, range->second); });
    return frames;
}

std::vector<double> EffectInstance::maskFramesNeeded(double time) const {
    std::vector<double> frames;
    for (const Frame key : neighbouringKeys(time)) frames.insert(frames.end(), 2, static_cast<double>(key));
    if (frames.empty()) frames = {time, time};
    const auto range = mask_.frameRange();
    if (range) std::for_each(frames.begin(), frames.end(), [&](double& at) { at = std::clamp(at, range->first, range->second); });
    return frames;
}

void EffectInstance::render(const RenderRequest& request) {
    const Deadline deadline(renderLimit, [this] { return host_.effects().abort(effect_) != 0; });
    const Frame frame = frameAt(request.time);
    const std::optional<Image> output = output_.image(request.time);
    if (!output) throw UserError("The host gives no image to render into.");
    const Box window = intersection(request.window, output->view().box);
    if (window.empty()) return;
    deadline.check("for the host");
    useShot(frame, deadline);
    const bool owns = ownsShot();
    if (owns) bringKeys(reachable(neighbouringKeys(request.time), frame), deadline);

    const auto region = source_.regionOfDefinition(request.time);
    const std::optional<Image> source = source_.image(request.time, region ? &*region : nullptr);
    deadline.check("for the host");
    if (!source) throw UserError("The source has no image at frame " + std::to_string(frame) + ".");
    const bool fullSize = request.scaleX == 1.0 && request.scaleY == 1.0;
    if (owns && fullSize) pushIfNeeded(frame, *source, deadline);

    const Box full = fullSize ? window : fullSizeBox(window, request.scaleX, request.scaleY);
    Matte matte = obtainMatte(request, frame, full, deadline);
    const Check check = deadline.checkFor("for the picture");
    if (!fullSize) matte = scaledMatte(matte, window, request.scaleX, request.scaleY, check);
    check();
    compose(*output, *source, matte, window, check);
}

Matte EffectInstance::obtainMatte(const RenderRequest& request, Frame frame, const Box& box, const Deadline& deadline) {
    const std::string object = parameters_.outputObject();
    const bool owns = ownsShot();
    const bool mayCompute = owns && request.inOrder && request.scaleX == 1.0 && request.scaleY == 1.0;
    bool computed = false;
    while (true) {
        try {
            return session_.matte(frame, box, object, false, deadline);
        } catch (const EngineError& error) {
            if (error.code == "timeout") continue;  // it is being made
            if (!isNoMatteYet(error)) throw;
            const bool isKey = parameters_.keyFrames().count(frame) != 0;  // needs no network, only to be taken over
            if ((mayCompute || isKey) && !computed) {
                computeForward(frame, deadline);
                computed = true;
                continue;
            }
            if (parameters_.missingFrames() == MissingFrames::holdLast) {
                if (auto matte = lastMatte(frame, box, deadline)) return std::move(*matte);
            }
            throw UserError(std::string(error.what()) +
                            (owns ? " Press Propagate on this node, or render the frames in order from a key."
                                  : " This node only shows the shot store " + parameters_.shotStore() +
                                        ": compute the frame where the store was made."));
        }
    }
}

// Computes up to `frame` from the key before it. The engine knows what of that is there.
void EffectInstance::computeForward(Frame frame, const Deadline& deadline) {
    const auto keys = session_.keys(deadline);
    const auto after = keys.upper_bound(frame);
    if (after == keys.begin()) {
        throw UserError(keys.empty() ? "There is no key yet. Go to a frame with a mask and press Set key."
                                     : "Frame " + std::to_string(frame) + " is before the first key: press Propagate backward.");
    }
    const Range frames{std::prev(after)->first, frame};
    for (int attempt = 1;; ++attempt) {
        std::vector<Range> unseen;
        for (const auto& [first, last] : session_.plateNeeded(frames, {}, deadline)) {
            for (Frame at = first; at <= last; ++at) {
                if (!host_.hasTemporalAccess() ? at != frame : !pushFrom(at, deadline)) unseen.emplace_back(at, at);
            }
        }
        if (!unseen.empty()) {
            throw UserError("Frames " + inWords(unseen) + " are needed for frame " + std::to_string(frame) +
                            " and have not been seen: render in order from key frame " + std::to_string(frames.first) + ".");
        }
        try {
            const std::string job = session_.propagate(frames, "forward", deadline);
            JobState state;
            try {
                while (!state.ended()) state = session_.job(job, state.version, deadline);
            } catch (const Cancelled&) {
                session_.cancel(job);
                throw;
            }
            if (state.state == "failed") throw UserError(state.error);
            if (state.state == "cancelled") {
                throw UserError("Frame " + std::to_string(frame) + " was stopped before it was done. Render it again to go on.");
            }
            return;
        } catch (const EngineError& error) {
            if (error.code == "busy") {
                deadline.sleep(pollInterval, "until another computation of this shot is done");
                --attempt;
                continue;
            }
            const bool again = error.code == "unknown_job" || error.code == "unknown_shot";
            if (!again || attempt == recoveries) throw;
        }
    }
}

// The stale matte of this frame, else the nearest earlier one.
std::optional<Matte> EffectInstance::lastMatte(Frame frame, const Box& box, const Deadline& deadline) {
    const std::string object = parameters_.outputObject();
    const auto take = [&](Frame from) -> std::optional<Matte> {
        try {
            return session_.matte(from, box, object, true, deadline);
        } catch (const EngineError& error) {
            if (isNoMatteYet(error) || error.code == "timeout") return std::nullopt;
            throw;
        }
    };
    if (auto matte = take(frame)) return matte;
    const Json status = session_.status(std::nullopt, deadline);
    std::optional<Frame> last;
    for (const char* which : {"done", "stale"}) {
        for (const auto& [from, to] : rangesOf(status.at(which))) {
            if (from < frame) last = std::max(last.value_or(from), std::min(to, frame - 1));
        }
    }
    if (!last) return std::nullopt;
    host_.log(effect_, "STM: frame " + std::to_string(frame) + " has no matte; that of frame " + std::to_string(*last) + " is held.");
    return take(*last);
}

void EffectInstance::compose(const Image& output, const Image& source, const Matte& matte, const Box& window,
                             const Check& check) const {
    CancelCheck cancelCheck(check);
    const Output mode = parameters_.output();
    std::vector<Rgba> row(static_cast<std::size_t>(window.width()));
    for (int y = window.y1; y < window.y2; ++y) {
        readRow(source.view(), window.x1, y, window.width(), row.data());
        if (source.premultiplied()) unpremultiply(row.data(), window.width());
        for (int x = window.x1; x < window.x2; ++x) {
            Rgba& pixel = row[static_cast<std::size_t>(x - window.x1)];
            const float alpha = matte.at(x, y);
            switch (mode) {
                case Output::rgbaWithMatte: pixel.a = alpha; break;
                case Output::matteOnly: pixel = {alpha, alpha, alpha, alpha}; break;
                case Output::overlay: {
                    const float part = overlayStrength * alpha;
                    pixel.r += part * (overlayTint.r - pixel.r);
                    pixel.g += part * (overlayTint.g - pixel.g);
                    pixel.b += part * (overlayTint.b - pixel.b);
                    break;
                }
            }
        }
        writeRow(output.view(), window.x1, y, window.width(), row.data());
        cancelCheck.worked(row.size() * sizeof(Rgba));
    }
}

}  // namespace stm
