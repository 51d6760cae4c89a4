// The effect's parameters: their names, how they are described, and their values as C++.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "host.h"
#include "protocol.h"
#include "shot_session.h"

namespace stm {

inline constexpr const char* maskClip = "Mask";
inline constexpr const char* fixClip = "Fix";

namespace param {
inline constexpr const char* setKey = "setKey";
inline constexpr const char* deleteKey = "deleteKey";
inline constexpr const char* setKeyFromFix = "setKeyFromFix";
inline constexpr const char* keyFrames = "keyFrames";
inline constexpr const char* propagateBackward = "propagateBackward";
inline constexpr const char* propagateForward = "propagateForward";
inline constexpr const char* propagateBoth = "propagateBoth";
inline constexpr const char* stop = "stop";
inline constexpr const char* updateStatus = "updateStatus";
inline constexpr const char* status = "status";
inline constexpr const char* output = "output";
inline constexpr const char* outputObject = "outputObject";
inline constexpr const char* missingFrames = "missingFrames";
inline constexpr const char* missingInWindow = "missingInWindow";
inline constexpr const char* maskGroup = "maskGroup";
inline constexpr const char* maskFrom = "maskFrom";
inline constexpr const char* maskChannel = "maskChannel";
inline constexpr const char* objects = "objects";
inline constexpr const char* shotGroup = "shotGroup";
inline constexpr const char* shotStore = "shotStore";
inline constexpr const char* memoryRule = "memoryRule";
inline constexpr const char* memoryEvery = "memoryEvery";
inline constexpr const char* workingSize = "workingSize";
inline constexpr const char* colourSpace = "colourSpace";
inline constexpr const char* useRegion = "useRegion";
inline constexpr const char* regionCorner = "regionCorner";
inline constexpr const char* regionSize = "regionSize";
inline constexpr const char* edges = "edges";
inline constexpr const char* edgeWidth = "edgeWidth";
inline constexpr const char* savedGroup = "savedGroup";
inline constexpr const char* state = "state";
inline constexpr const char* revision = "revision";
inline constexpr const char* evenStep = "evenStep";
inline constexpr const char* oddStep = "oddStep";
inline constexpr const char* undoText = "NatronOfxParamUndoRedoText";    // names of Natron's: its undo of what an effect does
inline constexpr const char* undoState = "NatronOfxParamUndoRedoState";
}  // namespace param

// New entries come last: saved scripts keep numbers.
enum class Output { rgbaWithMatte = 0, matteOnly = 1, overlay = 2, premultiplied = 3, confidence = 4, foreground = 5 };
enum class MaskFrom { maskClip = 0, sourceAlpha = 1 };
enum class MissingFrames { fail = 0, nearestMatte = 1, oldMatte = 2, plate = 3 };

// Defines every parameter. In the filter context there is no mask clip: masks come in the source's alpha by default.
void describeParameters(const Host& host, ofx::Effect effect, bool hasMaskClip);

// How the objects' masks lie in a mask picture.
struct MaskLayout {
    std::vector<MaskChannel> channels;
    bool isLuminance = false;  // one object, in the luminance of the colours; its channel is the only one
};

// Which store is the node's and which keys it wants, read once for an action.
struct NodeShot {
    std::string id;  // of the store that the node made; empty: none
    std::set<Frame> keys;
    // Keys whose masks are not those of the mask input: they were taken from the input Fix. An undo needs their contents;
    // an older version of the effect saved none.
    std::map<Frame, KeyMasks> painted;
    std::string place;        // the folder of its store, where the artist names none; empty: not known
    bool isNew = true;        // settings that nobody chose are those of the site's configuration
    // Whether this node may change the shot. A node without keys only shows the mattes of a shot store.
    bool isOurs() const { return !id.empty() || !keys.empty(); }
};

// Reads and writes the parameters of an instance. A parameter that the host does not have reads as its default.
class Parameters {
  public:
    Parameters(const Host& host, ofx::Effect effect);

    Output output() const;
    MissingFrames missingFrames() const;    // in a render
    MissingFrames missingInWindow() const;  // for a frame in a viewer
    MaskFrom maskFrom() const;
    std::string outputObject() const;  // empty: all
    // Which channel of a mask with `components` channels belongs to which object; `hasAlpha`: its alpha is its own, and not
    // the host's filling. Throws UserError.
    MaskLayout maskLayout(int components, bool hasAlpha) const;
    NodeShot nodeShot() const;  // throws UserError when what is saved cannot be read
    std::set<Frame> keyFrames() const;  // throws UserError when the text cannot be read
    std::string shotStore() const;
    std::string colourSpace() const;
    std::string shotId() const;  // from the saved state; empty when none has been made. Throws UserError.
    // The engine's settings. The region is in canonical coordinates: it needs the plate's geometry. `configured`: by
    // setting, what a site's configuration says where nobody has chosen a value.
    Json settings(double pixelAspect, int displayTop, const Json& configured) const;

    // The same for all instances of a node, another for its copies; null when the host has none.
    const void* identity() const { return handle(param::state); }

    // What is set during its life is one step of the host's undo.
    class Edit {
      public:
        Edit(const Parameters& parameters, const char* step);
        Edit(const Edit&) = delete;
        Edit& operator=(const Edit&) = delete;
        ~Edit();

      private:
        const Parameters& parameters_;
    };
    // Counts a step of the node, in another parameter than the step before: a host does not join the two. Returns its number.
    int markStep() const;
    int step() const;  // the last one; less after an undo
    void showStep(int number) const;
    // Has a host that asks the effect to undo (Natron) make a step of it, in these words.
    void offerUndo(const char* words, int number) const;
    bool isRedo() const;  // what such a host asks for

    void setKeyFrames(const std::set<Frame>& frames) const;
    void setState(const NodeShot& shot) const;
    // Shows what the site's configuration says in the parameters that nobody has touched.
    void takeConfigured(const Json& configured) const;
    void setStatus(const std::string& text) const;
    void bumpRevision() const;  // makes the host render again what it has cached
    // Greys what the configuration of a site or a show locks, and shows the locked values. `locked` comes from the engine:
    // by setting, the value and the reason. Returns the reasons, one in a line.
    std::string showLocks(const Json& locked) const;

  private:
    Json savedState() const;  // null when there is none. Throws UserError.
    int integer(const char* name, int otherwise) const;
    std::string text(const char* name) const;
    double number(const char* name, double otherwise) const;
    std::pair<double, double> pair(const char* name) const;
    void set(const char* name, const std::string& text) const;
    void set(const char* name, int value) const;
    void set(const char* name, double value) const;
    bool isUntouched(const std::string& setting) const;  // its parameters are as the effect describes them; a region is the node's
    void show(const std::string& setting, const Json& value) const;
    void enable(const char* name, bool isEnabled) const;
    ofx::Param handle(const char* name) const;

    const Host* host_;
    ofx::ParamSet set_ = nullptr;
    mutable bool showsLocks_ = false;  // hosts tell a value's change in the middle of its setting
};

}  // namespace stm
