// One node in the host: what its buttons do (effect.cpp) and how it renders (rendering.cpp).
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "host.h"
#include "node.h"
#include "parameters.h"
#include "shot_session.h"

namespace stm {

// What a render action asks for, read from the host's property set.
struct RenderRequest {
    double time = 0;
    double scaleX = 1.0;
    double scaleY = 1.0;
    Box window;
    bool inOrder = false;   // the host renders every frame of a range, one after the other
    bool inWindow = false;  // shown in a viewer, not rendered as part of a sequence

    bool fullSize() const { return scaleX == 1.0 && scaleY == 1.0; }
};

class EffectInstance {
  public:
    EffectInstance(const Host& host, ofx::Effect effect);

    void buttonPressed(const std::string& name, double time);
    // The artist, or an undo, has changed a value.
    void valueChanged(const std::string& name, double time);
    void inputChanged(const std::string& clip) const;
    // Asks a running propagation to stop; may come from another thread than the one that runs it.
    void requestStop() { ++node_->stops; }
    // The host has destroyed the node, perhaps in the middle of an action of it: nothing of the host's may be touched.
    void abandon();
    ~EffectInstance();
    EffectInstance(const EffectInstance&) = delete;
    EffectInstance& operator=(const EffectInstance&) = delete;
    void render(const RenderRequest& request);
    std::optional<ofx::RectD> regionOfDefinition(double time) const { return source_.regionOfDefinition(time); }
    // The regions of the source and of the mask over all frames that a render at `time` reads.
    std::optional<ofx::RectD> sourceRegionNeeded(double time) const { return regionOver(source_, sourceFramesNeeded(time)); }
    std::optional<ofx::RectD> maskRegionNeeded(double time) const { return regionOver(mask_, maskFramesNeeded(time)); }
    // Frames of the source and of the mask that a render at `time` reads: pairs of first and last.
    std::vector<double> sourceFramesNeeded(double time) const;
    std::vector<double> maskFramesNeeded(double time) const;
    bool hasMaskClip() const { return mask_.exists(); }
    Output output() const { return parameters_.output(); }

  private:
    class Progress;

    // Buttons
    void perform(const std::string& button, double time, unsigned stopsBefore);
    void setKey(Frame frame, Progress& progress);
    void setKeyFromFix(Frame frame, Progress& progress);
    bool keepForLater(Frame frame, const NodeShot& before, Progress& progress) const;
    bool takeKey(Frame frame, const ClipView& clip, const char* step, const NodeShot& before, Progress& progress,
                 const Deadline& ready);
    void deleteKey(Frame frame, Progress& progress);
    void propagate(Frame frame, const std::string& button, Progress& progress);
    void pushForPropagation(const Shot& shot, const Range& frames, const std::string& direction, Progress& progress);
    void runJob(const Shot& shot, const Range& frames, const std::string& direction, Progress& progress);
    void renderCopiesAgain() const;
    void stopJobs();
    void forget() const;  // what the node knows of this instance
    void save(const NodeShot& before, const NodeShot& after, const char* step, const Json& configured = nullptr) const;
    void takeStep(int now) const;
    void showStatus(const Shot& shot, const NodeShot& own, const Deadline& deadline) const;
    void refreshStatus(double time, bool startEngine) const;

    // The shot
    bool isUneditedCopy(const NodeShot& own) const;  // its keys are those with which it was pasted
    ShotSpec describedShot(const NodeShot& own, Frame frame, bool anew, const Deadline& deadline) const;
    std::string colourSpace() const;
    PlateGeometry geometry(Frame frame, const std::set<Frame>& keys, bool anew) const;
    Range frameRange(Frame frame, const std::set<Frame>& keys, bool& guessed) const;
    std::string chosenFolder() const;  // what the artist wrote; throws UserError where it is no whole path
    std::string storeName(const std::string& shotId) const;  // equal for the nodes with the same store
    std::string storeFolder(const NodeShot& own, const Deadline& deadline) const;
    bool namesStore() const;  // the artist has chosen the store itself, and not a folder for it
    bool hasStore(const NodeShot& own) const { return !own.id.empty() || namesStore(); }
    Shot openShot(const NodeShot& own, Frame frame, bool anew, const Deadline& deadline) const;
    // The shot, for changes. A copied node gets a separate store, and `own` its name.
    Shot claimedShot(NodeShot& own, Frame frame, const Deadline& deadline);
    std::set<Frame> reachable(const std::set<Frame>& frames, Frame current) const;  // by a host without temporal access
    std::optional<ofx::RectD> regionOver(const ClipView& clip, const std::vector<double>& frames) const;

    // Keys and plate
    void bringKeys(const Shot& shot, const NodeShot& own, const std::set<Frame>& compared, const Deadline& deadline) const;
    void bringPainted(const Shot& shot, Frame frame, const KeyMasks& wanted, const KeyMasks* there, const Deadline& deadline) const;
    bool bringKey(const Shot& shot, Frame frame, const ClipView& clip, const std::optional<std::string>& known,
                  const Deadline& deadline) const;
    std::optional<Image> maskAt(const ClipView& clip, Frame frame, Box& box, const Deadline& deadline) const;
    void requireMaskInAlpha(const ClipView& clip, Frame frame, const Image& image, const Box& box, const MaskLayout& layout,
                            const Check& check) const;
    std::set<Frame> neighbouringKeys(double time) const;
    void pushIfNeeded(const Shot& shot, Frame frame, const Image& image, bool mustBeThere, const Deadline& deadline);
    bool pushFrom(const Shot& shot, Frame frame, const Deadline& deadline);
    static std::string noMaskText(const ClipView& clip, Frame frame);

    // Rendering
    struct Found;
    Found obtainMatte(const Shot& shot, const NodeShot& own, const RenderRequest& request, Frame frame, const Box& box,
                      const Deadline& deadline);
    MissingFrames whenMissing(const RenderRequest& request) const;
    void awaitProgress(const Shot& shot, Frame frame, std::string& seen, const Deadline& deadline) const;
    void computeForward(const Shot& shot, Frame frame, const Deadline& deadline);
    MatteChoice matteChoice() const;
    std::optional<Matte> nearestMatte(const Shot& shot, Frame frame, const Box& box, const Deadline& deadline) const;
    std::optional<Matte> oldMatte(const Shot& shot, Frame frame, const Box& box, const Deadline& deadline) const;
    void compose(const Image& output, const Image& source, const Found& found, const Box& window, const Check& check) const;

    const ClipView& maskSource() const { return parameters_.maskFrom() == MaskFrom::maskClip ? mask_ : source_; }

    const Host& host_;
    const ofx::Effect effect_;
    const Parameters parameters_;
    const ClipView source_;
    const ClipView mask_;
    const ClipView fix_;
    const ClipView output_;
    std::shared_ptr<Node> node_;
    std::atomic<bool> abandoned_{false};
    bool isFirst_ = false;  // of the node's instances: the one that the host's window knows
};

// Throws UserError for times between frames.
Frame frameAt(double time);

}  // namespace stm
