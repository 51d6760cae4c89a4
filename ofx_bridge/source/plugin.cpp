// The plug-in as the host sees it: what it exports, how it is described, and which action goes where.
#include <cstring>
#include <memory>
#include <new>

#include "effect.h"
#include "version.h"

namespace stm {
namespace {

constexpr double mostScale = 1024.0;  // of a render, and the reciprocal of the least one

// Never destroyed: nothing of ours may be left to run when the process exits, perhaps after the host has closed us.
Host* theHost = nullptr;

Host& host() {
    if (theHost == nullptr) throw MissingFeature("The host has not introduced itself.");
    return *theHost;
}

void describe(ofx::Effect effect) {
    const Properties about = propertiesOf(host(), effect);
    about.set(ofx::prop::label, "STM");
    about.set(ofx::prop::grouping, "Keyer/STM");
    about.set(ofx::prop::versionLabel, versionLabel);
    about.set(ofx::prop::version, majorVersion, 0);
    about.set(ofx::prop::version, minorVersion, 1);
    about.set(ofx::prop::description,
              "From one roto mask to a matte for the whole shot. Set a key on a frame with a mask, propagate, correct where it "
              "is wrong, propagate again. The computing is done by the STM engine beside the host.");
    about.set(ofx::prop::supportedContexts, ofx::value::contextGeneral, 0);
    about.set(ofx::prop::supportedContexts, ofx::value::contextFilter, 1);
    int index = 0;
    for (const char* depth : {ofx::value::depthFloat, ofx::value::depthHalf, ofx::value::depthShort, ofx::value::depthByte}) {
        about.set(ofx::prop::supportedPixelDepths, depth, index++);
    }
    // A host that shows one frame at a time would make an instance, and so a connection, for every frame.
    about.set(ofx::prop::renderThreadSafety,
              host().hasTemporalAccess() ? ofx::value::renderInstanceSafe : ofx::value::renderUnsafe);
    about.set(ofx::prop::hostFrameThreading, 0);
    about.set(ofx::prop::supportsMultiResolution, 1);
    about.set(ofx::prop::supportsTiles, 0);
    about.set(ofx::prop::temporalClipAccess, 1);
    about.set(ofx::prop::multipleClipDepths, 0);
    about.set(ofx::prop::multipleClipPars, 0);
    about.set(ofx::prop::clipPreferencesSlaveParam, param::output);
    constexpr int preferred = 2;
    if (!about.set(ofx::prop::sequentialRender, preferred)) about.set(ofx::prop::sequentialRender, 1);
}

Properties defineClip(ofx::Effect effect, const char* name, std::initializer_list<const char*> components) {
    ofx::PropertySet set = nullptr;
    if (host().effects().clipDefine(effect, name, &set) != ofx::status::ok) {
        throw MissingFeature(std::string("The host does not take the clip ") + name + ".");
    }
    const Properties clip(host(), set);
    int index = 0;
    for (const char* component : components) clip.set(ofx::prop::supportedComponents, component, index++);
    clip.set(ofx::prop::supportsTiles, 0);
    return clip;
}

void describeInContext(ofx::Effect effect, const std::string& context) {
    using namespace ofx::value;
    const bool general = context == contextGeneral;
    defineClip(effect, sourceClip, {componentRgba, componentRgb}).set(ofx::prop::temporalClipAccess, 1);
    if (general) {
        // Not declared a mask: hosts pass one channel of a mask, and choose it themselves. Several objects need several
        // channels, and the choice of one is the effect's.
        const Properties mask = defineClip(effect, maskClip, {componentRgba, componentRgb, componentAlpha});
        mask.set(ofx::prop::temporalClipAccess, 1);
        mask.set(ofx::prop::clipOptional, 1);
        const Properties fix = defineClip(effect, fixClip, {componentRgba, componentRgb, componentAlpha});
        fix.set(ofx::prop::temporalClipAccess, 1);
        fix.set(ofx::prop::clipOptional, 1);
        defineClip(effect, outputClip, {componentRgba, componentRgb, componentAlpha});
    } else {
        defineClip(effect, outputClip, {componentRgba, componentRgb});
    }
    describeParameters(host(), effect, general);
}

// Shared: a host that destroys a node in the middle of one of its actions, while it shows progress, must not take the object
// away from under it.
using InstancePointer = std::shared_ptr<EffectInstance>;

InstancePointer instanceOf(ofx::Effect effect) {
    const auto* instance = static_cast<InstancePointer*>(propertiesOf(host(), effect).pointer(ofx::prop::instanceData));
    if (instance == nullptr) throw UserError("The host has lost the node's data. Make the node anew.");
    return *instance;
}

void createInstance(ofx::Effect effect) {
    auto instance = std::make_unique<InstancePointer>(std::make_shared<EffectInstance>(host(), effect));
    if (!propertiesOf(host(), effect).setPointer(ofx::prop::instanceData, instance.get())) {
        throw MissingFeature("The host keeps no data for a node.");
    }
    (void)instance.release();  // the host's property owns it until destroyInstance
}

void destroyInstance(ofx::Effect effect) {
    const Properties about = propertiesOf(host(), effect);
    const std::unique_ptr<InstancePointer> instance(static_cast<InstancePointer*>(about.pointer(ofx::prop::instanceData)));
    about.setPointer(ofx::prop::instanceData, nullptr);
    if (instance != nullptr) (*instance)->abandon();
}

ofx::Status instanceChanged(ofx::Effect effect, const Properties& in) {
    const std::string type = in.text(ofx::prop::type).value_or("");
    const InstancePointer instance = instanceOf(effect);
    if (type == ofx::value::typeClip) {
        instance->inputChanged(in.text(ofx::prop::name).value_or(""));
        return ofx::status::ok;
    }
    if (type != ofx::value::typeParameter) return ofx::status::replyDefault;
    const std::string name = in.text(ofx::prop::name).value_or("");
    const double time = in.number(ofx::prop::time).value_or(0.0);
    const auto reason = in.text(ofx::prop::changeReason);
    if (reason == ofx::value::changeUserEdited) instance->buttonPressed(name, time);
    // An undo of what the effect itself has set comes as the effect's own change.
    if (reason == ofx::value::changeUserEdited || reason == ofx::value::changePluginEdited) instance->valueChanged(name, time);
    return ofx::status::ok;
}

ofx::Status clipPreferences(ofx::Effect effect, const Properties& out) {
    const Output output = instanceOf(effect)->output();
    // A matte or a confidence in every channel is white, premultiplied.
    const bool isPremultiplied =
        output == Output::matteOnly || output == Output::confidence || output == Output::premultiplied;
    const bool isGeneral = propertiesOf(host(), effect).text(ofx::prop::context) == ofx::value::contextGeneral;
    out.set(ofx::prop::frameVarying, 1);
    out.set(ofx::prop::preMultiplication, isPremultiplied ? ofx::value::preMultiplied : ofx::value::unPreMultiplied);
    // A source without alpha gets one: that is where the matte goes.
    const std::string components = std::string(ofx::prop::clipComponents) + ofx::value::outputClip;
    out.set(components.c_str(),
            isGeneral && output == Output::matteOnly ? ofx::value::componentAlpha : ofx::value::componentRgba);
    return ofx::status::ok;
}

std::vector<double> corners(const ofx::RectD& region) { return {region.x1, region.y1, region.x2, region.y2}; }

ofx::Status regionOfDefinition(ofx::Effect effect, const Properties& in, const Properties& out) {
    const auto region = instanceOf(effect)->regionOfDefinition(in.number(ofx::prop::time).value_or(0.0));
    if (!region) return ofx::status::replyDefault;
    out.set(std::string(ofx::prop::regionOfDefinition), corners(*region));
    return ofx::status::ok;
}

// The engine needs whole frames, whatever part of the matte is rendered.
ofx::Status regionsOfInterest(ofx::Effect effect, const Properties& in, const Properties& out) {
    const double time = in.number(ofx::prop::time).value_or(0.0);
    const InstancePointer instance = instanceOf(effect);
    const std::string prefix = ofx::prop::clipRegionOfInterest;
    if (const auto source = instance->sourceRegionNeeded(time)) out.set(prefix + ofx::value::sourceClip, corners(*source));
    // The mask is read at the keys, whose regions may differ from that of the frame.
    if (const auto mask = instance->maskRegionNeeded(time)) out.set(prefix + maskClip, corners(*mask));
    return ofx::status::ok;
}

ofx::Status framesNeeded(ofx::Effect effect, const Properties& in, const Properties& out) {
    const double time = in.number(ofx::prop::time).value_or(0.0);
    const InstancePointer instance = instanceOf(effect);
    const std::string prefix = ofx::prop::clipFrameRange;
    out.set(prefix + ofx::value::sourceClip, instance->sourceFramesNeeded(time));
    if (instance->hasMaskClip()) out.set(prefix + maskClip, instance->maskFramesNeeded(time));
    return ofx::status::ok;
}

void render(ofx::Effect effect, const Properties& in) {
    RenderRequest request;
    request.time = in.number(ofx::prop::time).value_or(0.0);
    request.scaleX = in.number(ofx::prop::renderScale, 0).value_or(1.0);
    request.scaleY = in.number(ofx::prop::renderScale, 1).value_or(request.scaleX);
    const auto side = [&in](int index) { return in.integer(ofx::prop::renderWindow, index).value_or(0); };
    request.window = {side(0), side(1), side(2), side(3)};
    request.inOrder = in.integer(ofx::prop::sequentialRenderStatus).value_or(0) != 0 || !host().hasTemporalAccess();
    request.inWindow = in.integer(ofx::prop::interactiveRenderStatus).value_or(0) != 0 && host().hasTemporalAccess();
    const auto isPossible = [](double scale) { return scale >= 1.0 / mostScale && scale <= mostScale; };
    if (!isPossible(request.scaleX) || !isPossible(request.scaleY)) {
        throw UserError("The host asks for a render at an impossible scale.");
    }
    host().clearError(effect);
    instanceOf(effect)->render(request);
}

ofx::Status perform(const char* action, ofx::Effect effect, ofx::PropertySet inSet, ofx::PropertySet outSet) {
    const auto is = [action](const char* name) { return std::strcmp(action, name) == 0; };
    if (is(ofx::action::load)) {
        host().fetchSuites();
        return ofx::status::ok;
    }
    if (is(ofx::action::unload)) return ofx::status::ok;
    const Properties in(host(), inSet);
    const Properties out(host(), outSet);
    if (is(ofx::action::describe)) {
        describe(effect);
    } else if (is(ofx::action::describeInContext)) {
        describeInContext(effect, in.text(ofx::prop::context).value_or(""));
    } else if (is(ofx::action::createInstance)) {
        createInstance(effect);
    } else if (is(ofx::action::destroyInstance)) {
        destroyInstance(effect);
    } else if (is(ofx::action::render)) {
        render(effect, in);
    } else if (is(ofx::action::instanceChanged)) {
        return instanceChanged(effect, in);
    } else if (is(ofx::action::getClipPreferences)) {
        return clipPreferences(effect, out);
    } else if (is(ofx::action::getRegionOfDefinition)) {
        return regionOfDefinition(effect, in, out);
    } else if (is(ofx::action::getRegionsOfInterest)) {
        return regionsOfInterest(effect, in, out);
    } else if (is(ofx::action::getFramesNeeded)) {
        return framesNeeded(effect, in, out);
    } else if (is(ofx::action::beginSequenceRender)) {
        host().clearError(effect);  // some hosts do not call render while an error stands
    } else {
        return ofx::status::replyDefault;
    }
    return ofx::status::ok;
}

ofx::Status performSaying(const char* action, ofx::Effect effect, ofx::PropertySet in, ofx::PropertySet out) {
    std::string text;
    try {
        return perform(action, effect, in, out);
    } catch (const std::bad_alloc&) {
        return ofx::status::outOfMemory;
    } catch (const MissingFeature&) {
        return ofx::status::missingHostFeature;
    } catch (const Cancelled&) {
        return ofx::status::failed;  // the host wanted it; an unfinished picture must not be taken for a good one
    } catch (const Json::exception&) {
        text = "The engine's answer has an unexpected form: the plug-in and the engine are of different versions.";
    } catch (const std::exception& error) {
        text = error.what();
    }
    const bool hasNode = std::strcmp(action, ofx::action::render) == 0 || std::strcmp(action, ofx::action::instanceChanged) == 0;
    if (hasNode && theHost != nullptr) theHost->showError(effect, text);
    return ofx::status::failed;
}

// No exception may reach the host's stack, not even one while reporting another.
ofx::Status mainEntry(const char* action, const void* handle, ofx::PropertySet in, ofx::PropertySet out) noexcept {
    try {
        return performSaying(action, static_cast<ofx::Effect>(const_cast<void*>(handle)), in, out);
    } catch (const std::bad_alloc&) {
        return ofx::status::outOfMemory;
    } catch (...) {
        return ofx::status::failed;
    }
}

void setHost(ofx::Host* given) noexcept {
    if (given == nullptr || (theHost != nullptr && theHost->isSame(given))) return;
    // Nodes refer to the host that they were made with: an earlier one stays. Without memory the host finds no effect.
    if (auto* fresh = new (std::nothrow) Host(given)) theHost = fresh;
}

ofx::Plugin plugin{ofx::value::imageEffectApi, 1, identifier, majorVersion, minorVersion, setHost, mainEntry};

}  // namespace
}  // namespace stm

#if defined(_WIN32)
#define STM_EXPORT extern "C" __declspec(dllexport)
#else
#define STM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

STM_EXPORT int OfxGetNumberOfPlugins() { return 1; }

STM_EXPORT ofx::Plugin* OfxGetPlugin(int index) { return index == 0 ? &stm::plugin : nullptr; }

STM_EXPORT ofx::Status OfxSetHost(const ofx::Host*) { return ofx::status::ok; }
