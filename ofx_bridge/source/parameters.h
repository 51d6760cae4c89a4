// The effect's parameters: their names, how they are described, and their values as C++.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "host.h"
#include "protocol.h"
#include "shot_session.h"

namespace stm {

inline constexpr const char* maskClip = "Mask";

namespace param {
inline constexpr const char* setKey = "setKey";
inline constexpr const char* deleteKey = "deleteKey";
inline constexpr const char* keyFrames = "keyFrames";
inline constexpr const char* propagateBackward = "propagateBackward";
inline constexpr const char* propagateForward = "propagateForward";
inline constexpr const char* propagateBoth = "propagateBoth";
inline constexpr const char* stop = "stop";
inline constexpr const char* status = "status";
inline constexpr const char* output = "output";
inline constexpr const char* outputObject = "outputObject";
inline constexpr const char* missingFrames = "missingFrames";
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
inline constexpr const char* state = "state";
inline constexpr const char* revision = "revision";
}  // namespace param

enum class Output { rgbaWithMatte = 0, matteOnly = 1, overlay = 2 };
enum class MaskFrom { maskClip = 0, sourceAlpha = 1 };
enum class MissingFrames { fail = 0, holdLast = 1 };

// Defines every parameter. In the filter context there is no mask clip: masks come in the source's alpha by default.
void describeParameters(const Host& host, ofx::Effect effect, bool hasMaskClip);

// Reads and writes the parameters of an instance. A parameter that the host does not have reads as its default.
class Parameters {
  public:
    Parameters(const Host& host, ofx::Effect effect);

    Output output() const;
    MissingFrames missingFrames() const;
    MaskFrom maskFrom() const;
    std::string outputObject() const;  // empty: all
    // Which channel of a mask with `components` channels belongs to which object. Throws UserError.
    std::vector<MaskChannel> maskChannels(int components) const;
    std::set<Frame> keyFrames() const;  // throws UserError when the text cannot be read
    std::string shotStore() const;
    std::string colourSpace() const;
    std::string shotId() const;  // from the saved state; empty when none has been made. Throws UserError.
    // The engine's settings. The region is in canonical coordinates: it needs the plate's geometry.
    Json settings(double pixelAspect, int displayTop) const;

    void setKeyFrames(const std::set<Frame>& frames) const;
    void setShotId(const std::string& id, const std::set<Frame>& keys) const;
    void setStatus(const std::string& text) const;
    void bumpRevision() const;  // makes the host render again what it has cached

  private:
    int integer(const char* name, int otherwise) const;
    std::string text(const char* name) const;
    std::pair<double, double> pair(const char* name) const;
    void set(const char* name, const std::string& text) const;
    void set(const char* name, int value) const;
    ofx::Param handle(const char* name) const;

    const Host* host_;
    ofx::ParamSet set_ = nullptr;
};

}  // namespace stm
