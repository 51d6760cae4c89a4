// One node in the host: what its buttons do and how it renders.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "host.h"
#include "parameters.h"
#include "shot_session.h"

namespace stm {

// What a render action asks for, read from the host's property set.
struct RenderRequest {
    double time = 0;
    double scaleX = 1.0;
    double scaleY = 1.0;
    Box window;
    bool inOrder = false;  // the host renders every frame of a range, one after the other
};

class EffectInstance {
  public:
    EffectInstance(const Host& host, ofx::Effect effect);

    void buttonPressed(const std::string& name, double time);
    // Asks a running propagation to stop; may come from another thread than the one that runs it.
    void requestStop() { stopRequested_ = true; }
    void render(const RenderRequest& request);
    std::optional<ofx::RectD> regionOfDefinition(double time) const { return source_.regionOfDefinition(time); }
    std::optional<ofx::RectD> maskRegion(double time) const { return mask_.regionOfDefinition(time); }
    // Frames of the source and of the mask that a render at `time` reads: pairs of first and last.
    std::vector<double> sourceFramesNeeded(double time) const;
    std::vector<double> maskFramesNeeded(double time) const;
    bool hasMaskClip() const { return mask_.exists(); }
    bool outputsMatteOnly() const { return parameters_.output() == Output::matteOnly; }

  private:
    struct Geometry;
    class Progress;

    // Buttons
    void setKey(Frame frame, Progress& progress);
    void deleteKey(Frame frame, Progress& progress);
    void propagate(Frame frame, const std::string& button, Progress& progress);
    void pushForPropagation(const Range& frames, const std::string& direction, Progress& progress);
    void runJob(const Range& frames, const std::string& direction, Progress& progress);
    void stopJobs();
    void perform(const std::string& button, double time);
    void finishEdit(const Deadline& deadline);

    // The shot
    ShotSpec describedShot(Frame frame) const;
    std::string colourSpace() const;
    Geometry geometry(Frame frame) const;
    std::string storeFolder(const std::string& shotId) const;
    // Whether the shot is this node's to change. Without a key of its own it only shows what a shot store has.
    bool ownsShot() const;
    void useShot(Frame frame, const Deadline& deadline);
    void claimShot(Frame frame, const Deadline& deadline);
    void nameShot();
    std::set<Frame> reachable(const std::set<Frame>& frames, Frame current) const;  // by a host without temporal access

    // Keys and plate
    void bringKeys(const std::set<Frame>& compared, const Deadline& deadline);
    std::optional<std::string> bringKey(Frame frame, const std::optional<std::string>& known, const Deadline& deadline);
    std::set<Frame> neighbouringKeys(double time) const;
    void pushIfNeeded(Frame frame, const Image& image, const Deadline& deadline);
    bool pushFrom(Frame frame, const Deadline& deadline);

    // Rendering
    Matte obtainMatte(const RenderRequest& request, Frame frame, const Box& box, const Deadline& deadline);
    void computeForward(Frame frame, const Deadline& deadline);
    std::optional<Matte> lastMatte(Frame frame, const Box& box, const Deadline& deadline);
    void compose(const Image& output, const Image& source, const Matte& matte, const Box& window, const Check& check) const;

    const ClipView& maskSource() const { return parameters_.maskFrom() == MaskFrom::maskClip ? mask_ : source_; }

    const Host& host_;
    const ofx::Effect effect_;
    const Parameters parameters_;
    const ClipView source_;
    const ClipView mask_;
    const ClipView output_;
    ShotSession session_;
    std::atomic<bool> pressed_{false};  // a button's action is under way
    std::atomic<bool> stopRequested_{false};
    std::atomic<bool> plateMayHaveChanged_{false};
};

// Throws UserError for times between frames.
Frame frameAt(double time);

}  // namespace stm
