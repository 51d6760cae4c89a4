// The host as C++ values: suites, property sets, clips, images, parameters, messages. No policy here.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ofx_abi.h"
#include "pixels.h"

namespace stm {

// An error of the host or of the artist's input; the text is for people.
struct UserError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The host lacks something that the effect needs.
struct MissingFeature : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Host {
  public:
    explicit Host(const ofx::Host* host);  // fetches nothing: suites may be asked for from the load action on

    void fetchSuites();  // throws MissingFeature
    bool isSame(const ofx::Host* host) const { return host_ == host; }

    const ofx::PropertySuiteV1& properties() const { return *properties_; }
    const ofx::ImageEffectSuiteV1& effects() const { return *effects_; }
    const ofx::ParameterSuiteV1& parameters() const { return *parameters_; }
    const ofx::ProgressSuiteV1* progress() const { return progress_; }
    ofx::PropertySet propertySet() const { return host_->host; }

    std::string nameAndVersion() const;
    bool hasTemporalAccess() const;

    // An error that stays on the node where the host can do that, else a message.
    void showError(ofx::Effect effect, const std::string& text) const;
    void clearError(ofx::Effect effect) const;
    void log(ofx::Effect effect, const std::string& text) const;

  private:
    template <typename Suite>
    const Suite* fetch(const char* name, int version) const {
        return static_cast<const Suite*>(host_->fetchSuite(host_->host, name, version));
    }

    const ofx::Host* host_;
    const ofx::PropertySuiteV1* properties_ = nullptr;
    const ofx::ImageEffectSuiteV1* effects_ = nullptr;
    const ofx::ParameterSuiteV1* parameters_ = nullptr;
    const ofx::MessageSuiteV1* message_ = nullptr;
    const ofx::MessageSuiteV2* persistent_ = nullptr;
    const ofx::ProgressSuiteV1* progress_ = nullptr;
};

// A property set. Reading returns nothing for missing properties; writing returns whether the host accepted it.
class Properties {
  public:
    Properties(const Host& host, ofx::PropertySet set) : suite_(&host.properties()), set_(set) {}

    std::optional<int> integer(const char* name, int index = 0) const;
    std::optional<double> number(const char* name, int index = 0) const;
    std::optional<std::string> text(const char* name, int index = 0) const;
    void* pointer(const char* name) const;
    std::vector<std::string> texts(const char* name) const;

    bool set(const char* name, int value, int index = 0) const;
    bool set(const char* name, double value, int index = 0) const;
    bool set(const char* name, const char* value, int index = 0) const;
    bool set(const char* name, const std::string& value, int index = 0) const;
    bool setPointer(const char* name, void* value) const;
    bool set(const std::string& name, const std::vector<double>& values) const;

  private:
    const ofx::PropertySuiteV1* suite_;
    ofx::PropertySet set_;
};

Properties propertiesOf(const Host& host, ofx::Effect effect);

// An image that was fetched from a clip; given back with the object.
class Image {
  public:
    // Takes over `image`. Throws UserError when it has no pixels or an unknown format.
    Image(const Host& host, ofx::PropertySet image, const char* clip);
    Image(const Image&) = delete;
    Image& operator=(const Image&) = delete;
    Image(Image&& other) noexcept;
    Image& operator=(Image&&) = delete;
    ~Image();

    const PixelView& view() const { return view_; }
    bool premultiplied() const { return premultiplied_; }
    double scaleX() const { return scaleX_; }
    double scaleY() const { return scaleY_; }

  private:
    const Host* host_;
    ofx::PropertySet image_;
    PixelView view_;
    bool premultiplied_ = false;
    double scaleX_ = 1.0;
    double scaleY_ = 1.0;
};

// A clip of an instance. An optional clip that was not described in this context is absent.
class ClipView {
  public:
    ClipView(const Host& host, ofx::Effect effect, const char* name);

    bool exists() const { return clip_ != nullptr; }  // described in this context
    bool connected() const;
    const char* name() const { return name_; }
    double pixelAspect() const;
    std::optional<double> frameRate() const;
    std::optional<std::string> colourSpace() const;
    std::optional<std::string> pixelDepth() const;
    // False when the connected image has no alpha, even if the host adds one.
    bool hasAlpha() const;
    std::optional<std::pair<double, double>> frameRange() const;
    std::optional<ofx::RectD> regionOfDefinition(double time) const;
    // Nothing when the host has no image there.
    std::optional<Image> image(double time, const ofx::RectD* region = nullptr) const;

  private:
    std::optional<Properties> properties() const;

    const Host* host_;
    const char* name_;
    ofx::Clip clip_ = nullptr;
};

// Canonical coordinates to whole pixels at full size, outwards.
Box pixelBox(const ofx::RectD& region, double pixelAspect);

}  // namespace stm
