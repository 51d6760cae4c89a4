// The part of the OpenFX C interface (1.4) that this effect uses, declared here from the published reference.
// Names of ours; layouts, strings and numbers of the standard. Checked at compile time where the layout matters.
#pragma once

#include <cstddef>

namespace ofx {

using Status = int;
using Time = double;

struct RectI { int x1, y1, x2, y2; };
struct RectD { double x1, y1, x2, y2; };

// Opaque handles. Distinct types, so that the compiler distinguishes them; across the interface all are pointers.
using PropertySet = struct PropertySetTag*;
using Effect = struct EffectTag*;
using Clip = struct ClipTag*;
using ParamSet = struct ParamSetTag*;
using Param = struct ParamTag*;
using Memory = struct MemoryTag*;

extern "C" {

struct Host {
    PropertySet host;
    const void* (*fetchSuite)(PropertySet host, const char* name, int version);
};

struct Plugin {
    const char* api;
    int apiVersion;
    const char* identifier;
    unsigned majorVersion;
    unsigned minorVersion;
    void (*setHost)(Host*);
    Status (*mainEntry)(const char* action, const void* handle, PropertySet in, PropertySet out);
};

struct PropertySuiteV1 {
    Status (*setPointer)(PropertySet, const char*, int, void*);
    Status (*setString)(PropertySet, const char*, int, const char*);
    Status (*setDouble)(PropertySet, const char*, int, double);
    Status (*setInt)(PropertySet, const char*, int, int);
    Status (*setPointerN)(PropertySet, const char*, int, void* const*);
    Status (*setStringN)(PropertySet, const char*, int, const char* const*);
    Status (*setDoubleN)(PropertySet, const char*, int, const double*);
    Status (*setIntN)(PropertySet, const char*, int, const int*);
    Status (*getPointer)(PropertySet, const char*, int, void**);
    Status (*getString)(PropertySet, const char*, int, char**);
    Status (*getDouble)(PropertySet, const char*, int, double*);
    Status (*getInt)(PropertySet, const char*, int, int*);
    Status (*getPointerN)(PropertySet, const char*, int, void**);
    Status (*getStringN)(PropertySet, const char*, int, char**);
    Status (*getDoubleN)(PropertySet, const char*, int, double*);
    Status (*getIntN)(PropertySet, const char*, int, int*);
    Status (*reset)(PropertySet, const char*);
    Status (*getDimension)(PropertySet, const char*, int*);
};

struct ImageEffectSuiteV1 {
    Status (*getPropertySet)(Effect, PropertySet*);
    Status (*getParamSet)(Effect, ParamSet*);
    Status (*clipDefine)(Effect, const char*, PropertySet*);
    Status (*clipGetHandle)(Effect, const char*, Clip*, PropertySet*);
    Status (*clipGetPropertySet)(Clip, PropertySet*);
    Status (*clipGetImage)(Clip, Time, const RectD*, PropertySet*);
    Status (*clipReleaseImage)(PropertySet);
    Status (*clipGetRegionOfDefinition)(Clip, Time, RectD*);
    int (*abort)(Effect);
    Status (*imageMemoryAlloc)(Effect, std::size_t, Memory*);
    Status (*imageMemoryFree)(Memory);
    Status (*imageMemoryLock)(Memory, void**);
    Status (*imageMemoryUnlock)(Memory);
};

struct ParameterSuiteV1 {
    Status (*define)(ParamSet, const char* type, const char* name, PropertySet*);
    Status (*getHandle)(ParamSet, const char*, Param*, PropertySet*);
    Status (*setGetPropertySet)(ParamSet, PropertySet*);
    Status (*getPropertySet)(Param, PropertySet*);
    Status (*getValue)(Param, ...);
    Status (*getValueAtTime)(Param, Time, ...);
    Status (*getDerivative)(Param, Time, ...);
    Status (*getIntegral)(Param, Time, Time, ...);
    Status (*setValue)(Param, ...);
    Status (*setValueAtTime)(Param, Time, ...);
    Status (*getNumKeys)(Param, unsigned*);
    Status (*getKeyTime)(Param, unsigned, Time*);
    Status (*getKeyIndex)(Param, Time, int, int*);
    Status (*deleteKey)(Param, Time);
    Status (*deleteAllKeys)(Param);
    Status (*copy)(Param, Param, Time, const void*);
    Status (*editBegin)(ParamSet, const char*);
    Status (*editEnd)(ParamSet);
};

struct MessageSuiteV1 {
    Status (*message)(void*, const char* type, const char* id, const char* format, ...);
};

struct MessageSuiteV2 {
    Status (*message)(void*, const char* type, const char* id, const char* format, ...);
    Status (*setPersistentMessage)(void*, const char* type, const char* id, const char* format, ...);
    Status (*clearPersistentMessage)(void*);
};

struct ProgressSuiteV1 {
    Status (*start)(void*, const char* label);
    Status (*update)(void*, double);
    Status (*end)(void*);
};

}  // extern "C"

static_assert(sizeof(void*) != 8 || offsetof(Plugin, mainEntry) == 40, "the plug-in struct has the standard's layout");
static_assert(sizeof(PropertySuiteV1) == 18 * sizeof(void*));
static_assert(sizeof(ImageEffectSuiteV1) == 13 * sizeof(void*));
static_assert(sizeof(ParameterSuiteV1) == 18 * sizeof(void*));

namespace status {
inline constexpr Status ok = 0;
inline constexpr Status failed = 1;
inline constexpr Status missingHostFeature = 4;
inline constexpr Status outOfMemory = 8;
inline constexpr Status replyYes = 12;
inline constexpr Status replyNo = 13;
inline constexpr Status replyDefault = 14;
}  // namespace status

namespace suite {
inline constexpr const char* property = "OfxPropertySuite";
inline constexpr const char* imageEffect = "OfxImageEffectSuite";
inline constexpr const char* parameter = "OfxParameterSuite";
inline constexpr const char* message = "OfxMessageSuite";
inline constexpr const char* progress = "OfxProgressSuite";
}  // namespace suite

namespace action {
inline constexpr const char* load = "OfxActionLoad";
inline constexpr const char* unload = "OfxActionUnload";
inline constexpr const char* describe = "OfxActionDescribe";
inline constexpr const char* describeInContext = "OfxImageEffectActionDescribeInContext";
inline constexpr const char* createInstance = "OfxActionCreateInstance";
inline constexpr const char* destroyInstance = "OfxActionDestroyInstance";
inline constexpr const char* instanceChanged = "OfxActionInstanceChanged";
inline constexpr const char* getClipPreferences = "OfxImageEffectActionGetClipPreferences";
inline constexpr const char* getRegionOfDefinition = "OfxImageEffectActionGetRegionOfDefinition";
inline constexpr const char* getRegionsOfInterest = "OfxImageEffectActionGetRegionsOfInterest";
inline constexpr const char* getFramesNeeded = "OfxImageEffectActionGetFramesNeeded";
inline constexpr const char* beginSequenceRender = "OfxImageEffectActionBeginSequenceRender";
inline constexpr const char* endSequenceRender = "OfxImageEffectActionEndSequenceRender";
inline constexpr const char* render = "OfxImageEffectActionRender";
}  // namespace action

namespace prop {
inline constexpr const char* name = "OfxPropName";
inline constexpr const char* type = "OfxPropType";
inline constexpr const char* label = "OfxPropLabel";
inline constexpr const char* version = "OfxPropVersion";
inline constexpr const char* versionLabel = "OfxPropVersionLabel";
inline constexpr const char* description = "OfxPropPluginDescription";
inline constexpr const char* time = "OfxPropTime";
inline constexpr const char* changeReason = "OfxPropChangeReason";
inline constexpr const char* instanceData = "OfxPropInstanceData";
inline constexpr const char* context = "OfxImageEffectPropContext";
inline constexpr const char* supportedContexts = "OfxImageEffectPropSupportedContexts";
inline constexpr const char* supportedPixelDepths = "OfxImageEffectPropSupportedPixelDepths";
inline constexpr const char* supportedComponents = "OfxImageEffectPropSupportedComponents";
inline constexpr const char* grouping = "OfxImageEffectPluginPropGrouping";
inline constexpr const char* renderThreadSafety = "OfxImageEffectPluginRenderThreadSafety";
inline constexpr const char* hostFrameThreading = "OfxImageEffectPluginPropHostFrameThreading";
inline constexpr const char* supportsMultiResolution = "OfxImageEffectPropSupportsMultiResolution";
inline constexpr const char* supportsTiles = "OfxImageEffectPropSupportsTiles";
inline constexpr const char* temporalClipAccess = "OfxImageEffectPropTemporalClipAccess";
inline constexpr const char* multipleClipDepths = "OfxImageEffectPropMultipleClipDepths";
inline constexpr const char* multipleClipPars = "OfxImageEffectPropSupportsMultipleClipPARs";
inline constexpr const char* clipPreferencesSlaveParam = "OfxImageEffectPropClipPreferencesSlaveParam";
inline constexpr const char* sequentialRender = "OfxImageEffectInstancePropSequentialRender";
inline constexpr const char* sequentialRenderStatus = "OfxImageEffectPropSequentialRenderStatus";
inline constexpr const char* projectSize = "OfxImageEffectPropProjectSize";
inline constexpr const char* projectOffset = "OfxImageEffectPropProjectOffset";
inline constexpr const char* frameRate = "OfxImageEffectPropFrameRate";
inline constexpr const char* effectDuration = "OfxImageEffectInstancePropEffectDuration";
inline constexpr const char* interactiveRenderStatus = "OfxImageEffectPropInteractiveRenderStatus";
inline constexpr const char* frameRange = "OfxImageEffectPropFrameRange";
inline constexpr const char* frameVarying = "OfxImageEffectFrameVarying";
inline constexpr const char* renderScale = "OfxImageEffectPropRenderScale";
inline constexpr const char* renderWindow = "OfxImageEffectPropRenderWindow";
inline constexpr const char* regionOfDefinition = "OfxImageEffectPropRegionOfDefinition";
inline constexpr const char* pixelDepth = "OfxImageEffectPropPixelDepth";
inline constexpr const char* components = "OfxImageEffectPropComponents";
inline constexpr const char* preMultiplication = "OfxImageEffectPropPreMultiplication";
inline constexpr const char* clipOptional = "OfxImageClipPropOptional";
inline constexpr const char* clipIsMask = "OfxImageClipPropIsMask";
inline constexpr const char* clipConnected = "OfxImageClipPropConnected";
inline constexpr const char* clipUnmappedComponents = "OfxImageClipPropUnmappedComponents";
inline constexpr const char* clipColourspace = "OfxImageClipPropColourspace";
inline constexpr const char* imageData = "OfxImagePropData";
inline constexpr const char* imageBounds = "OfxImagePropBounds";
inline constexpr const char* imageRowBytes = "OfxImagePropRowBytes";
inline constexpr const char* imagePixelAspect = "OfxImagePropPixelAspectRatio";
// These four are followed by the name of a clip.
inline constexpr const char* clipRegionOfInterest = "OfxImageClipPropRoI_";
inline constexpr const char* clipFrameRange = "OfxImageClipPropFrameRange_";
inline constexpr const char* clipComponents = "OfxImageClipPropComponents_";
inline constexpr const char* clipDepth = "OfxImageClipPropDepth_";
// Parameters.
inline constexpr const char* paramAnimates = "OfxParamPropAnimates";
inline constexpr const char* paramChoiceOption = "OfxParamPropChoiceOption";
inline constexpr const char* paramDefault = "OfxParamPropDefault";
inline constexpr const char* paramDisplayMax = "OfxParamPropDisplayMax";
inline constexpr const char* paramDisplayMin = "OfxParamPropDisplayMin";
inline constexpr const char* paramDoubleType = "OfxParamPropDoubleType";
inline constexpr const char* paramEnabled = "OfxParamPropEnabled";
inline constexpr const char* paramEvaluateOnChange = "OfxParamPropEvaluateOnChange";
inline constexpr const char* paramGroupOpen = "OfxParamPropGroupOpen";
inline constexpr const char* paramHint = "OfxParamPropHint";
inline constexpr const char* paramLayoutHint = "OfxParamPropLayoutHint";  // 0 new line, 1 divider, 2 same line
inline constexpr const char* paramMax = "OfxParamPropMax";
inline constexpr const char* paramMin = "OfxParamPropMin";
inline constexpr const char* paramParent = "OfxParamPropParent";
inline constexpr const char* paramPersistent = "OfxParamPropPersistant";
inline constexpr const char* paramSecret = "OfxParamPropSecret";
inline constexpr const char* paramStringMode = "OfxParamPropStringMode";
inline constexpr const char* paramStringFileExists = "OfxParamPropStringFilePathExists";
}  // namespace prop

namespace value {
inline constexpr const char* imageEffectApi = "OfxImageEffectPluginAPI";
inline constexpr const char* contextFilter = "OfxImageEffectContextFilter";
inline constexpr const char* contextGeneral = "OfxImageEffectContextGeneral";
inline constexpr const char* renderUnsafe = "OfxImageEffectRenderUnsafe";
inline constexpr const char* renderInstanceSafe = "OfxImageEffectRenderInstanceSafe";
inline constexpr const char* depthByte = "OfxBitDepthByte";
inline constexpr const char* depthShort = "OfxBitDepthShort";
inline constexpr const char* depthHalf = "OfxBitDepthHalf";
inline constexpr const char* depthFloat = "OfxBitDepthFloat";
inline constexpr const char* componentRgba = "OfxImageComponentRGBA";
inline constexpr const char* componentRgb = "OfxImageComponentRGB";
inline constexpr const char* componentAlpha = "OfxImageComponentAlpha";
inline constexpr const char* preMultiplied = "OfxImageAlphaPremultiplied";
inline constexpr const char* unPreMultiplied = "OfxImageAlphaUnPremultiplied";
inline constexpr const char* changeUserEdited = "OfxChangeUserEdited";
inline constexpr const char* changePluginEdited = "OfxChangePluginEdited";
inline constexpr const char* typeClip = "OfxTypeClip";
inline constexpr const char* typeParameter = "OfxTypeParameter";
inline constexpr const char* messageError = "OfxMessageError";
inline constexpr const char* messageLog = "OfxMessageLog";
inline constexpr const char* outputClip = "Output";
inline constexpr const char* sourceClip = "Source";
inline constexpr const char* paramInteger = "OfxParamTypeInteger";
inline constexpr const char* paramBoolean = "OfxParamTypeBoolean";
inline constexpr const char* paramChoice = "OfxParamTypeChoice";
inline constexpr const char* paramDouble = "OfxParamTypeDouble";
inline constexpr const char* paramDouble2D = "OfxParamTypeDouble2D";
inline constexpr const char* paramString = "OfxParamTypeString";
inline constexpr const char* paramGroup = "OfxParamTypeGroup";
inline constexpr const char* paramPushButton = "OfxParamTypePushButton";
inline constexpr const char* doubleTypePlain = "OfxParamDoubleTypePlain";
inline constexpr const char* stringSingleLine = "OfxParamStringIsSingleLine";
inline constexpr const char* stringMultiLine = "OfxParamStringIsMultiLine";
inline constexpr const char* stringDirectory = "OfxParamStringIsDirectoryPath";
}  // namespace value

}  // namespace ofx
