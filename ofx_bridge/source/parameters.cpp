#include "parameters.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdlib>

namespace stm {

namespace {

constexpr int stateVersion = 1;
constexpr int defaultEvery = 5;
constexpr int defaultWorkingSize = 480;
constexpr int maxWorkingSize = 4320;
constexpr int shownWorkingSizes[] = {240, 1080};
constexpr int shownEvery[] = {1, 20};
constexpr double narrowest = 0.25, widest = 4.0;  // of learned edges; 1 is unchanged
constexpr double shownRegion = 4096.0;
constexpr int automaticChannel = 4;
constexpr int dividerBelow = 1;  // of the property that lays parameters out
constexpr int sameLine = 2;
constexpr int lastRevision = 1 << 30;
constexpr double farAway = 1 << 20;
constexpr double defaultRegionSize = 512.0;
constexpr Frame maxFrame = 1000000000;
constexpr std::size_t maxKeys = 10000;
constexpr std::size_t maxNameLength = 64;
constexpr const char* defaultObject = "matte";
constexpr std::array<const char*, 4> channels{"A", "R", "G", "B"};       // the order of the choice
constexpr std::array<const char*, 4> channelsInOrder{"R", "G", "B", "A"};  // several objects
constexpr std::array<const char*, 3> simpleRules{"first", "previous", "first+previous"};
constexpr std::array<const char*, 3> edgeKinds{"learned", "guided", "off"};

// The parameters of each setting that a configuration can lock.
struct Lockable {
    const char* setting;
    std::vector<const char*> parameters;
};

const std::vector<Lockable>& lockables() {
    static const auto& all = *new std::vector<Lockable>{
        {"memory_rule", {param::memoryRule, param::memoryEvery}},
        {"working_size", {param::workingSize}},
        {"colour_space", {param::colourSpace}},
        {"region", {param::useRegion, param::regionCorner, param::regionSize}},
        {"finish.edges", {param::edges}},
        {"finish.width", {param::edgeWidth}},
    };
    return all;
}

// Describes parameters with the few words that each needs.
class Describer {
  public:
    Describer(const Host& host, ofx::ParamSet set) : host_(host), set_(set) {}

    Properties define(const char* type, const char* name, const char* label, const char* hint, const char* parent) const {
        ofx::PropertySet properties = nullptr;
        if (host_.parameters().define(set_, type, name, &properties) != ofx::status::ok) properties = nullptr;
        const Properties described(host_, properties);
        described.set(ofx::prop::label, label);
        if (*hint != '\0') described.set(ofx::prop::paramHint, hint);
        if (*parent != '\0') described.set(ofx::prop::paramParent, parent);
        return described;
    }

    void group(const char* name, const char* label, bool open) const {
        define(ofx::value::paramGroup, name, label, "", "").set(ofx::prop::paramGroupOpen, open ? 1 : 0);
    }

    // `layout`: how the host, if it can, continues the line after the button.
    void button(const char* name, const char* label, const char* hint, int layout) const {
        const Properties described = define(ofx::value::paramPushButton, name, label, hint, "");
        described.set(ofx::prop::paramEvaluateOnChange, 0);
        if (layout != 0) described.set(ofx::prop::paramLayoutHint, layout);
    }

    Properties text(const char* name, const char* label, const char* hint, const char* parent,
                    const char* mode = ofx::value::stringSingleLine) const {
        const Properties described = define(ofx::value::paramString, name, label, hint, parent);
        described.set(ofx::prop::paramStringMode, mode);
        described.set(ofx::prop::paramDefault, "");
        described.set(ofx::prop::paramAnimates, 0);
        return described;
    }

    void choice(const char* name, const char* label, const char* hint, const char* parent,
                const std::vector<const char*>& options, int otherwise) const {
        const Properties described = define(ofx::value::paramChoice, name, label, hint, parent);
        int index = 0;
        for (const char* option : options) described.set(ofx::prop::paramChoiceOption, option, index++);
        described.set(ofx::prop::paramDefault, otherwise);
        described.set(ofx::prop::paramAnimates, 0);
    }

    // `shown`: the ends of a slider; any value from `low` to `high` may be typed.
    Properties integer(const char* name, const char* label, const char* hint, const char* parent, int otherwise, int low,
                       int high, const int (&shown)[2]) const {
        const Properties described = define(ofx::value::paramInteger, name, label, hint, parent);
        described.set(ofx::prop::paramDefault, otherwise);
        described.set(ofx::prop::paramMin, low);
        described.set(ofx::prop::paramMax, high);
        described.set(ofx::prop::paramDisplayMin, shown[0]);
        described.set(ofx::prop::paramDisplayMax, shown[1]);
        described.set(ofx::prop::paramAnimates, 0);
        return described;
    }

    void real(const char* name, const char* label, const char* hint, const char* parent, double otherwise, double low,
              double high) const {
        const Properties described = define(ofx::value::paramDouble, name, label, hint, parent);
        described.set(ofx::prop::paramDoubleType, ofx::value::doubleTypePlain);
        described.set(ofx::prop::paramDefault, otherwise);
        for (const char* least : {ofx::prop::paramMin, ofx::prop::paramDisplayMin}) described.set(least, low);
        for (const char* most : {ofx::prop::paramMax, ofx::prop::paramDisplayMax}) described.set(most, high);
        described.set(ofx::prop::paramAnimates, 0);
    }

    Properties toggle(const char* name, const char* label, const char* hint, const char* parent) const {
        const Properties described = define(ofx::value::paramBoolean, name, label, hint, parent);
        described.set(ofx::prop::paramDefault, 0);
        described.set(ofx::prop::paramAnimates, 0);
        return described;
    }

    void point(const char* name, const char* label, const char* hint, const char* parent, double otherwise,
               double low) const {
        const Properties described = define(ofx::value::paramDouble2D, name, label, hint, parent);
        described.set(ofx::prop::paramDoubleType, ofx::value::doubleTypePlain);
        for (int axis = 0; axis < 2; ++axis) {
            described.set(ofx::prop::paramDefault, otherwise, axis);
            described.set(ofx::prop::paramMin, low, axis);
            described.set(ofx::prop::paramMax, farAway, axis);
            described.set(ofx::prop::paramDisplayMin, std::max(low, 0.0), axis);
            described.set(ofx::prop::paramDisplayMax, shownRegion, axis);
        }
        described.set(ofx::prop::paramAnimates, 0);
    }

  private:
    const Host& host_;
    ofx::ParamSet set_;
};

std::string trimmed(const std::string& text) {
    const auto isSpace = [](char letter) { return std::isspace(static_cast<unsigned char>(letter)) != 0; };
    const auto first = std::find_if_not(text.begin(), text.end(), isSpace);
    const auto last = std::find_if_not(text.rbegin(), std::make_reverse_iterator(first), isSpace).base();
    return {first, last};
}

std::vector<std::string> listed(const std::string& text) {
    std::vector<std::string> parts;
    std::string part;
    for (const char letter : text + ",") {
        if (letter != ',' && letter != ';') {
            part += letter;
            continue;
        }
        part = trimmed(part);
        if (!part.empty()) parts.push_back(part);
        part.clear();
    }
    return parts;
}

// A path may be written as file:///PATH: hosts that shorten paths in their projects (MLT's xml) leave that alone.
std::string pathOf(const std::string& given) {
    constexpr const char* scheme = "file://";
    if (given.rfind(scheme, 0) != 0) return given;
    std::string path;
    const std::string rest = given.substr(std::char_traits<char>::length(scheme));
    for (std::size_t at = 0; at < rest.size(); ++at) {
        const auto isHex = [&rest](std::size_t where) {
            return where < rest.size() && std::isxdigit(static_cast<unsigned char>(rest[where])) != 0;
        };
        if (rest[at] == '%' && isHex(at + 1) && isHex(at + 2)) {
            path += static_cast<char>(std::stoi(rest.substr(at + 1, 2), nullptr, 16));
            at += 2;
        } else {
            path += rest[at];
        }
    }
    const bool hasDrive = path.size() > 2 && path[0] == '/' && path[2] == ':';  // file:///C:/PATH
    return hasDrive ? path.substr(1) : path;
}

bool isObjectName(const std::string& name) {
    const auto isLetter = [](char letter) {
        return (letter >= 'A' && letter <= 'Z') || (letter >= 'a' && letter <= 'z') || letter == '_';
    };
    const auto isRest = [&isLetter](char letter) {
        return isLetter(letter) || (letter >= '0' && letter <= '9') || letter == '-';
    };
    return !name.empty() && name.size() <= maxNameLength && isLetter(name.front()) &&
           std::all_of(name.begin(), name.end(), isRest);
}

KeyMasks savedMasks(const Json& saved) {
    KeyMasks masks;
    if (!saved.is_object()) return masks;
    const Json digest = saved.value("digest", Json());
    if (digest.is_string()) masks.digest = digest.get<std::string>();
    const Json contents = saved.value("objects", Json::object());
    for (const auto& [name, content] : contents.items()) {
        if (content.is_string()) masks.contents[name] = content.get<std::string>();
    }
    return masks;
}

Frame frameNamed(const std::string& text) {
    std::size_t used = 0;
    Frame frame = 0;
    try {
        frame = std::stoll(text, &used);
    } catch (const std::exception&) {
        used = 0;
    }
    if (used != text.size() || frame > maxFrame || frame < -maxFrame) {
        throw UserError("The key frames cannot be read at \"" + text + "\": give frame numbers with commas between them.");
    }
    return frame;
}

}  // namespace

void describeParameters(const Host& host, ofx::Effect effect, bool hasMaskClip) {
    ofx::ParamSet set = nullptr;
    if (host.effects().getParamSet(effect, &set) != ofx::status::ok) throw MissingFeature("The host has no parameters.");
    const Describer add(host, set);

    add.button(param::setKey, "Set key",
               "Take the mask at this frame as a key: there the matte is exactly your mask. "
               "A new key adds two passes to those of the other keys, and the frames around it are fused again.",
               sameLine);
    add.button(param::deleteKey, "Delete key", "Remove the key at this frame.", hasMaskClip ? sameLine : 0);
    if (hasMaskClip) {
        add.button(param::setKeyFromFix, "Set key from fix",
                   "Take what the input Fix shows at this frame as a key. Connect a paint node to Fix, and under that the matte: "
                   "a copy of this node that puts out the matte only.",
                   0);
    }
    add.text(param::keyFrames, "Key frames",
             "The frames whose mask is a key, with commas between them. Set key and Delete key write it. Frames that you "
             "type are taken, and frames that you clear are removed, by the next Propagate.",
             "");
    add.button(param::propagateBackward, "Propagate backward", "Compute from this frame to the first one.", sameLine);
    add.button(param::propagateForward, "Propagate forward", "Compute from this frame to the last one.", 0);
    add.button(param::propagateBoth, "Propagate both", "Compute the whole range from all keys, both ways.", sameLine);
    add.button(param::stop, "Stop", "Stop what the engine computes for this shot. Finished frames are kept.", 0);
    const Properties status = add.text(param::status, "Status", "What is done, stale and missing.", "",
                                       ofx::value::stringMultiLine);
    status.set(ofx::prop::paramEnabled, 0);
    status.set(ofx::prop::paramEvaluateOnChange, 0);
    status.set(ofx::prop::paramPersistent, 0);
    add.button(param::updateStatus, "Update status", "Ask the engine what is done. It is started if need be.", dividerBelow);

    add.choice(param::output, "Output",
               "RGBA: the source with the matte as alpha, not premultiplied or premultiplied. Matte only: the matte in every "
               "channel (alpha alone where the host allows it). Overlay: the source tinted where the matte is. Confidence: "
               "how sure the network is of each pixel, from 0 to 1; 1 on a key. Foreground: the source's colours without the "
               "background where the matte is soft, with the matte as alpha, not premultiplied.",
               "", {"RGBA with matte as alpha", "Matte only", "Overlay", "RGBA premultiplied by the matte", "Confidence",
                    "Foreground with matte as alpha"}, 0);
    add.text(param::outputObject, "Object shown", "The object whose matte is put out; empty: all together.", "");
    add.choice(param::missingFrames, "Missing frames",
               "What a render does on a frame without a fresh matte that cannot be computed at once: fail and say why, take "
               "the matte of the nearest frame, take the frame's own old matte, or put out the plate.",
               "", {"Fail", "Nearest matte", "Old matte", "Plate"}, 0);
    add.choice(param::missingInWindow, "In the window",
               "The same for a frame that you look at in the window. Where there is no old matte either, you see the plate. "
               "What a render would not put out has a striped border, and the status lists the frames.",
               "", {"Fail", "Nearest matte", "Old matte", "Plate"}, static_cast<int>(MissingFrames::oldMatte));
    add.choice(param::edges, "Edges",
               "Learned: soft where the plate is soft. Guided: they follow the plate's colours. Off: enlarged only.", "",
               {"Learned", "Guided", "Off"}, 0);
    add.real(param::edgeWidth, "Narrower - wider", "Of learned edges: 1 is unchanged.", "", 1.0, narrowest, widest);

    add.group(param::maskGroup, "Masks", true);
    add.choice(param::maskFrom, "Masks from", "Where the keys' masks are taken.", param::maskGroup,
               {"Mask input", "Source alpha"}, hasMaskClip ? 0 : 1);
    add.choice(param::maskChannel, "Mask channel",
               "The channel of the mask, when there is one object. Automatic: its alpha if it has one, else its luminance.",
               param::maskGroup, {"Alpha", "Red", "Green", "Blue", "Automatic"}, automaticChannel);
    add.text(param::objects, "Objects",
             "The objects in the mask, with commas between them. One: in the mask channel. Several, up to four: in red, "
             "green, blue and alpha, in this order.",
             param::maskGroup)
        .set(ofx::prop::paramDefault, defaultObject);

    add.group(param::shotGroup, "Shot", false);
    add.text(param::shotStore, "Shot store",
             "The folder in which this node keeps its shot. A path that ends with .stmshot is the store itself, for "
             "instance one that the command line made. Empty: a folder of yours.",
             param::shotGroup, ofx::value::stringDirectory)
        .set(ofx::prop::paramStringFileExists, 0);
    add.choice(param::memoryRule, "Memory", "Which earlier frames the network remembers.", param::shotGroup,
               {"First frame", "Previous frame", "First and previous", "First, previous and every Nth"}, 3);
    add.integer(param::memoryEvery, "Every", "N, when every Nth frame is remembered.", param::shotGroup, defaultEvery, 1,
                1000, shownEvery);
    add.integer(param::workingSize, "Working size", "The short side of the picture that the network sees, in pixels.",
                param::shotGroup, defaultWorkingSize, 16, maxWorkingSize, shownWorkingSizes);
    add.text(param::colourSpace, "Colour space",
             "The source's colour space by its OpenColorIO name. Empty: what the host says; else scene-linear for float "
             "and half, sRGB for integers.",
             param::shotGroup);
    add.toggle(param::useRegion, "Use region", "Check only at a part of the picture: more detail for a small object.",
               param::shotGroup);
    add.point(param::regionCorner, "Region corner", "The region's lower left corner.", param::shotGroup, 0.0, -farAway);
    add.point(param::regionSize, "Region size", "The region's width and height.", param::shotGroup, defaultRegionSize, 1.0);

    // Not secret: hosts undo, and hand back from a project, what is shown.
    add.group(param::savedGroup, "Saved by the effect", false);
    const Properties state = add.text(param::state, "State", "Which store belongs to this node. The buttons write it.",
                                      param::savedGroup);
    state.set(ofx::prop::paramEnabled, 0);
    state.set(ofx::prop::paramEvaluateOnChange, 0);
    constexpr int shownRevisions[] = {0, lastRevision};
    for (const char* step : {param::evenStep, param::oddStep}) {
        const Properties mark = add.integer(step, step == param::evenStep ? "Even step" : "Odd step",
                                            "Keeps the host's undo steps separate.", param::savedGroup, 0, 0, lastRevision,
                                            shownRevisions);
        mark.set(ofx::prop::paramEnabled, 0);
        mark.set(ofx::prop::paramEvaluateOnChange, 0);
    }
    // Natron makes an undo step when the text is set, and changes the state when the step is undone (false) or redone (true).
    for (const Properties& one : {add.text(param::undoText, "Undo text", "", ""), add.toggle(param::undoState, "Undo state", "", "")}) {
        one.set(ofx::prop::paramSecret, 1);
        one.set(ofx::prop::paramPersistent, 0);
        one.set(ofx::prop::paramEvaluateOnChange, 0);
    }
    add.integer(param::revision, "Revision", "", "", 0, 0, lastRevision, shownRevisions).set(ofx::prop::paramSecret, 1);
}

Parameters::Parameters(const Host& host, ofx::Effect effect) : host_(&host) {
    if (host.effects().getParamSet(effect, &set_) != ofx::status::ok) set_ = nullptr;
}

Output Parameters::output() const { return static_cast<Output>(std::clamp(integer(param::output, 0), 0, 5)); }

MissingFrames Parameters::missingFrames() const {
    return static_cast<MissingFrames>(std::clamp(integer(param::missingFrames, 0), 0, 3));
}

MissingFrames Parameters::missingInWindow() const {
    return static_cast<MissingFrames>(std::clamp(integer(param::missingInWindow, 2), 0, 3));
}

MaskFrom Parameters::maskFrom() const {
    return integer(param::maskFrom, 1) == 0 ? MaskFrom::maskClip : MaskFrom::sourceAlpha;
}

std::string Parameters::outputObject() const { return trimmed(text(param::outputObject)); }

MaskLayout Parameters::maskLayout(int components, bool hasAlpha) const {
    std::vector<std::string> names = listed(text(param::objects));
    if (names.empty()) names.emplace_back(defaultObject);
    for (const std::string& name : names) {
        if (!isObjectName(name)) {
            throw UserError("\"" + name + "\" cannot name an object: use letters, digits, _ and -, a letter first.");
        }
    }
    if (names.size() == 1) {
        const int chosen = std::clamp(integer(param::maskChannel, automaticChannel), 0, automaticChannel);
        if (components == 1) return {{{names.front(), "A"}}};
        const bool lacksAlpha = components == 3 || !hasAlpha;
        if (chosen == automaticChannel) return {{{names.front(), "A"}}, lacksAlpha};
        if (lacksAlpha && chosen == 0) throw UserError("The mask has no alpha channel: choose red, green, blue or automatic.");
        return {{{names.front(), channels[static_cast<std::size_t>(chosen)]}}};
    }
    if (names.size() > static_cast<std::size_t>(components)) {
        throw UserError("The mask has " + std::to_string(components) + " channels for " + std::to_string(names.size()) +
                        " objects: one node takes at most one object for each of red, green, blue and alpha.");
    }
    MaskLayout layout;
    for (std::size_t i = 0; i < names.size(); ++i) layout.channels.push_back({names[i], channelsInOrder[i]});
    return layout;
}

std::set<Frame> Parameters::keyFrames() const {
    std::set<Frame> frames;
    for (const std::string& part : listed(text(param::keyFrames))) frames.insert(frameNamed(part));
    if (frames.size() > maxKeys) throw UserError("There are more than " + std::to_string(maxKeys) + " key frames.");
    return frames;
}

std::string Parameters::shotStore() const { return pathOf(trimmed(text(param::shotStore))); }

std::string Parameters::colourSpace() const { return trimmed(text(param::colourSpace)); }

Json Parameters::savedState() const {
    const std::string saved = text(param::state);
    if (saved.empty()) return nullptr;
    try {
        const Json state = parseHeader(saved.data(), saved.size());
        if (wholeNumber(state.at("version")) > stateVersion) {
            throw UserError("This node was saved by a newer version of the effect. Update the plug-in.");
        }
        const std::string id = state.at("shot").get<std::string>();
        const bool isId = !id.empty() && id.size() <= maxNameLength && std::all_of(id.begin(), id.end(), [](char letter) {
            return std::isalnum(static_cast<unsigned char>(letter)) != 0;
        });
        if (isId) return state;
    } catch (const FramingError&) {
    } catch (const Json::exception&) {
    }
    throw UserError("The saved state of this node cannot be read. Delete the node and make a new one.");
}

std::string Parameters::shotId() const {
    const Json state = savedState();
    return state.is_null() ? std::string() : state["shot"].get<std::string>();
}

NodeShot Parameters::nodeShot() const {
    NodeShot found;
    found.keys = keyFrames();
    const Json state = savedState();
    if (state.is_null()) return found;
    found.id = state["shot"].get<std::string>();
    found.isNew = state.contains("new") && state["new"] == true;
    if (state.contains("place") && state["place"].is_string()) found.place = state["place"].get<std::string>();
    if (!state.contains("painted") || !state["painted"].is_array()) return found;
    const Json masks = state.value("masks", Json::object());
    for (const Json& frame : state["painted"]) {
        if (!frame.is_number_integer()) continue;
        const auto saved = masks.find(std::to_string(frame.get<Frame>()));
        found.painted[frame.get<Frame>()] = saved == masks.end() ? KeyMasks{} : savedMasks(*saved);
    }
    return found;
}

bool Parameters::isUntouched(const std::string& setting) const {
    if (setting == "memory_rule") return integer(param::memoryRule, 3) == 3 && integer(param::memoryEvery, defaultEvery) == defaultEvery;
    if (setting == "working_size") return integer(param::workingSize, defaultWorkingSize) == defaultWorkingSize;
    if (setting == "finish.edges") return integer(param::edges, 0) == 0;
    if (setting == "finish.width") return number(param::edgeWidth, 1.0) == 1.0;
    return false;
}

void Parameters::takeConfigured(const Json& configured) const {
    for (const auto& [setting, names] : lockables()) {
        const auto found = configured.find(setting);
        if (found != configured.end() && isUntouched(setting)) show(setting, *found);
    }
}

Json Parameters::settings(double pixelAspect, int displayTop, const Json& configured) const {
    const int rule = std::clamp(integer(param::memoryRule, 3), 0, 3);
    Json settings{{"working_size", integer(param::workingSize, defaultWorkingSize)}};
    settings["memory_rule"] = rule < 3 ? std::string(simpleRules[static_cast<std::size_t>(rule)])
                                       : "every:" + std::to_string(integer(param::memoryEvery, defaultEvery));
    settings["finish.edges"] = edgeKinds[static_cast<std::size_t>(std::clamp(integer(param::edges, 0), 0, 2))];
    const double width = number(param::edgeWidth, 1.0);
    settings["finish.width"] = width == width ? std::clamp(width, narrowest, widest) : 1.0;
    settings["region"] = nullptr;
    if (integer(param::useRegion, 0) != 0) {
        const auto [x, y] = pair(param::regionCorner);
        const auto [regionWidth, regionHeight] = pair(param::regionSize);
        const Box box = pixelBox({x, y, x + regionWidth, y + regionHeight}, pixelAspect);
        if (box.empty()) throw UserError("The region is empty: give it a size.");
        settings["region"] = toEngineWindow(box, displayTop);
    }
    for (const auto& [setting, value] : configured.items()) {
        if (settings.contains(setting) && isUntouched(setting)) settings[setting] = value;
    }
    if (settings["finish.edges"] != edgeKinds.front()) settings["finish.width"] = 1.0;  // it is the width of learned edges
    return settings;
}

void Parameters::setKeyFrames(const std::set<Frame>& frames) const {
    std::string text;
    for (const Frame frame : frames) text += (text.empty() ? "" : ", ") + std::to_string(frame);
    set(param::keyFrames, text);
}

void Parameters::setState(const NodeShot& shot) const {
    if (shot.id.empty()) return set(param::state, std::string());
    Json state{{"version", stateVersion}, {"shot", shot.id}, {"keys", shot.keys}};
    for (const auto& [frame, masks] : shot.painted) {
        state["painted"].push_back(frame);
        if (masks.contents.empty()) continue;
        state["masks"][std::to_string(frame)] = {{"digest", masks.digest}, {"objects", masks.contents}};
    }
    if (!shot.place.empty()) state["place"] = shot.place;
    if (shot.isNew) state["new"] = true;
    set(param::state, state.dump());
}

void Parameters::setStatus(const std::string& text) const { set(param::status, text); }

void Parameters::bumpRevision() const { set(param::revision, (integer(param::revision, 0) + 1) % lastRevision); }

std::string Parameters::showLocks(const Json& locked) const {
    std::string reasons;
    if (showsLocks_) return reasons;
    showsLocks_ = true;
    for (const auto& [setting, names] : lockables()) {
        const auto found = locked.is_object() ? locked.find(setting) : locked.end();
        const bool isLocked = found != locked.end() && found->is_object();
        for (const char* name : names) enable(name, !isLocked);
        if (!isLocked) continue;
        show(setting, found->value("value", Json()));
        const Json text = found->value("text", Json());
        if (text.is_string()) reasons += "\n" + text.get<std::string>();
    }
    showsLocks_ = false;
    return reasons;
}

void Parameters::show(const std::string& setting, const Json& value) const {
    const auto choose = [this](const char* name, int index) {
        if (integer(name, index) != index) set(name, index);
    };
    const auto indexIn = [&value](const std::array<const char*, 3>& words) {
        return static_cast<int>(std::find(words.begin(), words.end(), value) - words.begin());
    };
    if (setting == "region") return choose(param::useRegion, value.is_null() ? 0 : 1);
    if (setting == "working_size" && value.is_number_integer()) return choose(param::workingSize, static_cast<int>(std::clamp<std::int64_t>(wholeNumber(value), 16, maxWorkingSize)));
    if (setting == "finish.width" && value.is_number()) {
        const double width = std::clamp(value.get<double>(), narrowest, widest);
        if (number(param::edgeWidth, 1.0) != width) set(param::edgeWidth, width);
    }
    if (!value.is_string()) return;
    const std::string word = value.get<std::string>();
    if (setting == "colour_space" && text(param::colourSpace) != word) return set(param::colourSpace, word);
    if (setting == "finish.edges") {
        if (const int index = indexIn(edgeKinds); index < 3) choose(param::edges, index);
    }
    if (setting != "memory_rule") return;
    const int rule = indexIn(simpleRules);
    choose(param::memoryRule, rule);
    constexpr const char* nth = "every:";
    const std::size_t start = std::char_traits<char>::length(nth);
    if (rule == 3 && word.rfind(nth, 0) == 0 && word.size() > start && word.size() < start + 5) {
        choose(param::memoryEvery, std::clamp(static_cast<int>(std::strtol(word.c_str() + start, nullptr, 10)), 1, 1000));
    }
}

Parameters::Edit::Edit(const Parameters& parameters, const char* step) : parameters_(parameters) {
    if (parameters_.set_ != nullptr) parameters_.host_->parameters().editBegin(parameters_.set_, step);
}

Parameters::Edit::~Edit() {
    if (parameters_.set_ != nullptr) parameters_.host_->parameters().editEnd(parameters_.set_);
}

int Parameters::markStep() const {
    const int number = step() + 1;
    set(number % 2 == 0 ? param::evenStep : param::oddStep, number);
    return number;
}

void Parameters::showStep(int number) const {
    set(param::evenStep, number - number % 2);
    set(param::oddStep, std::max(0, number % 2 == 0 ? number - 1 : number));
}

void Parameters::offerUndo(const char* words, int number) const {
    set(param::undoText, std::string(words) + " (" + std::to_string(number) + ")");
}

bool Parameters::isRedo() const { return integer(param::undoState, 0) != 0; }

int Parameters::step() const { return std::max(integer(param::evenStep, 0), integer(param::oddStep, 0)); }

ofx::Param Parameters::handle(const char* name) const {
    ofx::Param found = nullptr;
    if (set_ == nullptr || host_->parameters().getHandle(set_, name, &found, nullptr) != ofx::status::ok) return nullptr;
    return found;
}

int Parameters::integer(const char* name, int otherwise) const {
    const ofx::Param found = handle(name);
    int value = otherwise;
    if (found == nullptr || host_->parameters().getValue(found, &value) != ofx::status::ok) return otherwise;
    return value;
}

double Parameters::number(const char* name, double otherwise) const {
    const ofx::Param found = handle(name);
    double value = otherwise;
    if (found == nullptr || host_->parameters().getValue(found, &value) != ofx::status::ok) return otherwise;
    return value;
}

std::string Parameters::text(const char* name) const {
    const ofx::Param found = handle(name);
    char* value = nullptr;
    if (found == nullptr || host_->parameters().getValue(found, &value) != ofx::status::ok || value == nullptr) return {};
    return value;
}

std::pair<double, double> Parameters::pair(const char* name) const {
    const ofx::Param found = handle(name);
    double x = 0;
    double y = 0;
    if (found == nullptr || host_->parameters().getValue(found, &x, &y) != ofx::status::ok) return {0.0, 0.0};
    return {x, y};
}

void Parameters::set(const char* name, const std::string& text) const {
    const ofx::Param found = handle(name);
    if (found != nullptr) host_->parameters().setValue(found, text.c_str());
}

void Parameters::set(const char* name, int value) const {
    const ofx::Param found = handle(name);
    if (found != nullptr) host_->parameters().setValue(found, value);
}

void Parameters::set(const char* name, double value) const {
    const ofx::Param found = handle(name);
    if (found != nullptr) host_->parameters().setValue(found, value);
}

void Parameters::enable(const char* name, bool isEnabled) const {
    ofx::Param found = nullptr;
    ofx::PropertySet about = nullptr;
    if (set_ == nullptr || host_->parameters().getHandle(set_, name, &found, &about) != ofx::status::ok || about == nullptr) return;
    const Properties properties(*host_, about);
    const int now = isEnabled ? 1 : 0;
    if (properties.integer(ofx::prop::paramEnabled).value_or(1) != now) properties.set(ofx::prop::paramEnabled, now);
}

}  // namespace stm
