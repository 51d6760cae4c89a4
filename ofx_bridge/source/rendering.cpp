// Rendering of a node: the matte of a frame, and the output picture.
#include <algorithm>
#include <cmath>

#include "effect.h"

namespace stm {

namespace {

constexpr double defaultWaitSeconds = 600.0;
constexpr const char* waitVariable = "STM_OFX_WAIT_SECONDS";
constexpr Milliseconds lookAfterJob{1000};
constexpr int renderAttempts = 3;
constexpr Rgba overlayTint{1.0F, 0.1F, 0.1F, 1.0F};
constexpr float overlayStrength = 0.5F;

// How long a render waits for an engine that makes no progress.
Milliseconds renderLimit() { return secondsFrom(waitVariable, defaultWaitSeconds); }

bool isNoMatteYet(const EngineError& error) { return error.code == "matte_missing"; }

}  // namespace

// The result of a render: a matte, or nothing (then the plate is shown unchanged).
struct EffectInstance::Found {
    std::optional<Matte> matte;  // or the confidence, where that is put out
    // What an artist sees of a frame that a render would refuse. A host may keep that picture and hand it to a Write without
    // asking again, so the picture itself says that it is not the matte of its frame.
    bool isMarked = false;
    Box frame;  // the plate's display window, in the pixels of the output
};

MatteChoice EffectInstance::matteChoice() const {
    switch (parameters_.output()) {
        case Output::confidence: return {parameters_.outputObject(), MatteLayer::confidence};
        case Output::foreground: return {parameters_.outputObject(), MatteLayer::foreground};
        default: return {parameters_.outputObject(), MatteLayer::matte};
    }
}

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

std::optional<ofx::RectD> EffectInstance::regionOver(const ClipView& clip, const std::vector<double>& frames) const {
    std::optional<ofx::RectD> whole;
    for (const double time : std::set<double>(frames.begin(), frames.end())) {
        const auto region = clip.regionOfDefinition(time);
        if (!region) continue;
        if (!whole) whole = region;
        *whole = {std::min(whole->x1, region->x1), std::min(whole->y1, region->y1), std::max(whole->x2, region->x2),
                  std::max(whole->y2, region->y2)};
    }
    return whole;
}

void EffectInstance::render(const RenderRequest& request) {
    const Deadline deadline(renderLimit(), [this] { return host_.effects().abort(effect_) != 0; });
    const Frame frame = frameAt(request.time);
    const std::optional<Image> output = output_.image(request.time);
    if (!output) throw UserError("The host gives no image to render into.");
    const Box window = intersection(request.window, output->view().box);
    if (window.empty()) return;
    deadline.check("for the host");
    const NodeShot own = parameters_.nodeShot();
    if (!source_.connected()) throw UserError("The input Source is not connected.");
    std::optional<Shot> shot;
    // Without any key there is nothing to ask the engine for: the artist sees the plate.
    const bool hasNothing = !hasStore(own) || (own.isOurs() && own.keys.empty());
    if (!hasNothing || whenMissing(request) == MissingFrames::fail) shot = openShot(own, frame, false, deadline);
    if (!shot && request.inWindow) Connection::startAhead(deadline);  // Set key is what comes next
    if (shot && own.isOurs()) bringKeys(*shot, own, reachable(neighbouringKeys(request.time), frame), deadline);

    const auto region = source_.regionOfDefinition(request.time);
    const std::optional<Image> source = source_.image(request.time, region ? &*region : nullptr);
    deadline.check("for the host");
    if (!source) throw UserError("The source has no image at frame " + std::to_string(frame) + ".");
    const Check check = deadline.checkFor("for the picture");
    Found found;
    if (shot) {
        if (own.isOurs() && request.fullSize()) pushIfNeeded(*shot, frame, *source, false, deadline);
        const Box full = request.fullSize() ? window : fullSizeBox(window, request.scaleX, request.scaleY);
        found = obtainMatte(*shot, own, request, frame, full, deadline);
        // Hosts show the format only: there the mark must be, whatever overscan there is.
        found.frame = scaledBox(geometry(frame, own.keys, false).display, request.scaleX, request.scaleY);
        if (found.matte && !request.fullSize()) {
            found.matte = scaledMatte(*found.matte, window, request.scaleX, request.scaleY, check);
        }
    }
    check();
    compose(*output, *source, found, window, check);
}

MissingFrames EffectInstance::whenMissing(const RenderRequest& request) const {
    return request.inWindow ? parameters_.missingInWindow() : parameters_.missingFrames();
}

EffectInstance::Found EffectInstance::obtainMatte(const Shot& shot, const NodeShot& own, const RenderRequest& request,
                                                  Frame frame, const Box& box, const Deadline& deadline) {
    const MatteChoice wanted = matteChoice();
    const bool mayCompute = own.isOurs() && request.inOrder && request.fullSize();
    bool computed = false;
    std::string seen;
    while (true) {
        try {
            return {shot.matte(frame, box, wanted, false, deadline), false, {}};
        } catch (const EngineError& error) {
            if (error.code == "timeout") {  // it is being made
                awaitProgress(shot, frame, seen, deadline);
                continue;
            }
            if (!isNoMatteYet(error)) throw;
            const bool isKey = own.keys.count(frame) != 0;  // needs no network, only to be taken over
            if ((mayCompute || isKey) && !computed && shot.claim(deadline)) {
                computeForward(shot, frame, deadline);
                computed = true;
                continue;
            }
            const MissingFrames choice = whenMissing(request);
            const bool isMarked = choice != parameters_.missingFrames();
            if (choice == MissingFrames::nearestMatte) {
                if (auto matte = nearestMatte(shot, frame, box, deadline)) return {std::move(matte), isMarked, {}};
            }
            if (choice == MissingFrames::oldMatte) {
                if (auto matte = oldMatte(shot, frame, box, deadline)) return {std::move(matte), isMarked, {}};
            }
            // In the window a frame that has no matte yet is the plate; in a render only where that was asked for.
            if (choice == MissingFrames::plate) return {std::nullopt, isMarked, {}};
            if (request.inWindow && choice != MissingFrames::fail) return {std::nullopt, true, {}};
            throw UserError(std::string(error.what()) +
                            (own.isOurs() ? " Press Propagate on this node, or render the frames in order from a key."
                                          : " This node only shows the shot store " + parameters_.shotStore() +
                                                ": compute the frame where the store was made."));
        }
    }
}

// While the engine works on an awaited frame, the wait has no limit.
void EffectInstance::awaitProgress(const Shot& shot, Frame frame, std::string& seen, const Deadline& deadline) const {
    const Json status = shot.status(Range{frame, frame}, deadline);
    std::string now;
    for (const Json& job : status.value("jobs", Json::array())) {
        const JobState state = shot.job(job.get<std::string>(), std::nullopt, deadline);
        now += job.get<std::string>() + " " + std::to_string(state.version) + " ";
    }
    if (now != seen) deadline.restart();
    seen = now;
    deadline.sleep(std::min(lookAfterJob, 2 * pollInterval), "for the frame");
}

// Computes up to `frame` from the key before it. The engine skips stored results.
void EffectInstance::computeForward(const Shot& shot, Frame frame, const Deadline& deadline) {
    const auto keys = shot.keys(deadline);
    const auto after = keys.upper_bound(frame);
    if (after == keys.begin()) {
        throw UserError(keys.empty() ? "There is no key yet. Go to a frame with a mask and press Set key."
                                     : "Frame " + std::to_string(frame) + " is before the first key: press Propagate backward.");
    }
    const Range frames{std::prev(after)->first, frame};
    for (int attempt = 1;; ++attempt) {
        std::vector<Range> unseen;
        for (const auto& [first, last] : shot.plateNeeded(frames, {}, deadline)) {
            for (Frame at = first; at <= last; ++at) {
                if (!host_.hasTemporalAccess() ? at != frame : !pushFrom(shot, at, deadline)) unseen.emplace_back(at, at);
            }
        }
        if (!unseen.empty()) {
            throw UserError("Frames " + inWords(unseen) + " are needed for frame " + std::to_string(frame) +
                            " and have not been seen: render in order from key frame " + std::to_string(frames.first) + ".");
        }
        try {
            const std::string job = shot.propagate(frames, "forward", deadline);
            JobState state;
            try {
                while (!state.ended()) {
                    const std::int64_t seen = state.version;
                    state = shot.job(job, seen, deadline);
                    if (state.version != seen) deadline.restart();
                }
            } catch (const Cancelled&) {
                shot.cancel(job);
                throw;
            } catch (const DeadlinePassed&) {
                shot.cancel(job);
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
            if (!again || attempt == renderAttempts) throw;
        }
    }
}

// The last matte that there was of this frame.
std::optional<Matte> EffectInstance::oldMatte(const Shot& shot, Frame frame, const Box& box, const Deadline& deadline) const {
    try {
        return shot.matte(frame, box, matteChoice(), true, deadline);
    } catch (const EngineError& error) {
        if (isNoMatteYet(error) || error.code == "timeout") return std::nullopt;
        throw;
    }
}

// The old matte of this frame, else that of the nearest frame that has one: a key has one always.
std::optional<Matte> EffectInstance::nearestMatte(const Shot& shot, Frame frame, const Box& box,
                                                  const Deadline& deadline) const {
    if (auto matte = oldMatte(shot, frame, box, deadline)) return matte;
    const Json status = shot.status(std::nullopt, deadline);
    std::vector<Frame> others;
    for (const char* which : {"done", "stale"}) {
        for (const auto& [first, last] : rangesOf(status.at(which))) {
            for (Frame other = first; other <= last; ++other) others.push_back(other);
        }
    }
    const auto isNearer = [frame](Frame a, Frame b) {
        const Frame toA = a < frame ? frame - a : a - frame;
        const Frame toB = b < frame ? frame - b : b - frame;
        return toA != toB ? toA < toB : a < b;
    };
    std::sort(others.begin(), others.end(), isNearer);
    for (const Frame other : others) {
        if (other == frame) continue;
        if (auto matte = oldMatte(shot, other, box, deadline)) {
            host_.log(effect_, "Frame " + std::to_string(frame) + " has no matte; that of frame " + std::to_string(other) +
                                   " is held.");
            return matte;
        }
    }
    return std::nullopt;
}

void EffectInstance::compose(const Image& output, const Image& source, const Found& found, const Box& window,
                             const Check& check) const {
    CancelCheck cancelCheck(check);
    const Output mode = parameters_.output();
    std::vector<Rgba> row(static_cast<std::size_t>(window.width()));
    for (int y = window.y1; y < window.y2; ++y) {
        readRow(source.view(), window.x1, y, window.width(), row.data());
        // A plate in the place of a matte comes out as it came in, but for an output that is nothing but a matte.
        const bool isPremultiplied = mode == Output::premultiplied;
        if (source.premultiplied() && (found.matte || !isPremultiplied)) unpremultiply(row.data(), window.width());
        for (int x = window.x1; x < window.x2; ++x) {
            Rgba& pixel = row[static_cast<std::size_t>(x - window.x1)];
            if (!found.matte) {
                if (output.view().components == 1) pixel = {};
                continue;
            }
            const float alpha = found.matte->at(x, y);
            switch (mode) {
                case Output::rgbaWithMatte: pixel.a = alpha; break;
                case Output::premultiplied: pixel = {pixel.r * alpha, pixel.g * alpha, pixel.b * alpha, alpha}; break;
                case Output::matteOnly:
                case Output::confidence: pixel = {alpha, alpha, alpha, alpha}; break;
                case Output::foreground: {
                    const std::array<float, 3> colour = found.matte->colourAt(x, y);
                    pixel = {colour[0], colour[1], colour[2], alpha};
                    break;
                }
                case Output::overlay: {
                    const float part = overlayStrength * alpha;
                    pixel.r += part * (overlayTint.r - pixel.r);
                    pixel.g += part * (overlayTint.g - pixel.g);
                    pixel.b += part * (overlayTint.b - pixel.b);
                    break;
                }
            }
        }
        if (found.isMarked) markRow(found.frame, window.x1, y, window.width(), row.data());
        writeRow(output.view(), window.x1, y, window.width(), row.data());
        cancelCheck.worked(row.size() * sizeof(Rgba));
    }
}

}  // namespace stm
