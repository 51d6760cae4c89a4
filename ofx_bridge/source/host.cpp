#include "host.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace stm {

namespace {

constexpr double roundingSlack = 1e-4;  // of a pixel: hosts compute regions in floating point
constexpr double coordinateLimit = 1 << 20;
constexpr int imageLimit = 1 << 20;

// The formats of messages are printf's; Natron mishandles arguments, so the text itself is the format.
std::string asFormat(const std::string& text) {
    std::string format;
    for (const char letter : text) {
        format += letter;
        if (letter == '%') format += letter;
    }
    return format;
}

Depth depthOf(const std::string& name, const char* clip) {
    if (name == ofx::value::depthByte) return Depth::byte;
    if (name == ofx::value::depthShort) return Depth::shortInteger;
    if (name == ofx::value::depthHalf) return Depth::half;
    if (name == ofx::value::depthFloat) return Depth::floating;
    throw UserError(std::string("The host gives the clip ") + clip + " in a pixel depth that is not known (" + name + ").");
}

int componentsOf(const std::string& name, const char* clip) {
    if (name == ofx::value::componentRgba) return 4;
    if (name == ofx::value::componentRgb) return 3;
    if (name == ofx::value::componentAlpha) return 1;
    throw UserError(std::string("The host gives the clip ") + clip + " in components that are not known (" + name + ").");
}

}  // namespace

Host::Host(const ofx::Host* host) : host_(host) {}

void Host::fetchSuites() {
    properties_ = fetch<ofx::PropertySuiteV1>(ofx::suite::property, 1);
    effects_ = fetch<ofx::ImageEffectSuiteV1>(ofx::suite::imageEffect, 1);
    parameters_ = fetch<ofx::ParameterSuiteV1>(ofx::suite::parameter, 1);
    message_ = fetch<ofx::MessageSuiteV1>(ofx::suite::message, 1);
    persistent_ = fetch<ofx::MessageSuiteV2>(ofx::suite::message, 2);
    progress_ = fetch<ofx::ProgressSuiteV1>(ofx::suite::progress, 1);
    if (properties_ == nullptr || effects_ == nullptr || parameters_ == nullptr) {
        throw MissingFeature("The host lacks the property, image effect or parameter suite.");
    }
}

std::string Host::nameAndVersion() const {
    const Properties about(*this, host_->host);
    const std::string name = about.text(ofx::prop::name).value_or("OpenFX host");
    return name + " " + about.text(ofx::prop::versionLabel).value_or("of an unknown version");
}

bool Host::hasTemporalAccess() const {
    return Properties(*this, host_->host).integer(ofx::prop::temporalClipAccess).value_or(0) != 0;
}

void Host::showError(ofx::Effect effect, const std::string& text) const {
    const std::string format = asFormat(text);
    if (persistent_ != nullptr && persistent_->setPersistentMessage(effect, ofx::value::messageError, "", format.c_str()) ==
                                      ofx::status::ok) {
        return;
    }
    if (message_ != nullptr) message_->message(effect, ofx::value::messageError, "", format.c_str());
}

void Host::clearError(ofx::Effect effect) const {
    if (persistent_ != nullptr) persistent_->clearPersistentMessage(effect);
}

void Host::log(ofx::Effect effect, const std::string& text) const {
    if (message_ != nullptr) message_->message(effect, ofx::value::messageLog, "", asFormat(text).c_str());
}

std::optional<int> Properties::integer(const char* name, int index) const {
    int value = 0;
    if (set_ == nullptr || suite_->getInt(set_, name, index, &value) != ofx::status::ok) return std::nullopt;
    return value;
}

std::optional<double> Properties::number(const char* name, int index) const {
    double value = 0;
    if (set_ == nullptr || suite_->getDouble(set_, name, index, &value) != ofx::status::ok) return std::nullopt;
    return value;
}

std::optional<std::string> Properties::text(const char* name, int index) const {
    char* value = nullptr;
    if (set_ == nullptr || suite_->getString(set_, name, index, &value) != ofx::status::ok || value == nullptr) {
        return std::nullopt;
    }
    return std::string(value);
}

void* Properties::pointer(const char* name) const {
    void* value = nullptr;
    if (set_ == nullptr || suite_->getPointer(set_, name, 0, &value) != ofx::status::ok) return nullptr;
    return value;
}

std::vector<std::string> Properties::texts(const char* name) const {
    int count = 0;
    std::vector<std::string> found;
    if (set_ == nullptr || suite_->getDimension(set_, name, &count) != ofx::status::ok) return found;
    for (int index = 0; index < count; ++index) {
        if (auto value = text(name, index)) found.push_back(std::move(*value));
    }
    return found;
}

bool Properties::set(const char* name, int value, int index) const {
    return set_ != nullptr && suite_->setInt(set_, name, index, value) == ofx::status::ok;
}

bool Properties::set(const char* name, double value, int index) const {
    return set_ != nullptr && suite_->setDouble(set_, name, index, value) == ofx::status::ok;
}

bool Properties::set(const char* name, const char* value, int index) const {
    return set_ != nullptr && suite_->setString(set_, name, index, value) == ofx::status::ok;
}

bool Properties::set(const char* name, const std::string& value, int index) const {
    return set(name, value.c_str(), index);
}

bool Properties::setPointer(const char* name, void* value) const {
    return set_ != nullptr && suite_->setPointer(set_, name, 0, value) == ofx::status::ok;
}

bool Properties::set(const std::string& name, const std::vector<double>& values) const {
    return set_ != nullptr &&
           suite_->setDoubleN(set_, name.c_str(), static_cast<int>(values.size()), values.data()) == ofx::status::ok;
}

Properties propertiesOf(const Host& host, ofx::Effect effect) {
    ofx::PropertySet set = nullptr;
    if (host.effects().getPropertySet(effect, &set) != ofx::status::ok || set == nullptr) {
        throw MissingFeature("The host gives no properties of the effect.");
    }
    return {host, set};
}

Image::Image(const Host& host, ofx::PropertySet image, const char* clip) : host_(&host), image_(image) {
    try {
        const Properties about(host, image);
        view_.data = static_cast<std::uint8_t*>(about.pointer(ofx::prop::imageData));
        if (view_.data == nullptr) throw UserError(std::string("The host gives no pixels for the clip ") + clip + ".");
        view_.depth = depthOf(about.text(ofx::prop::pixelDepth).value_or(""), clip);
        view_.components = componentsOf(about.text(ofx::prop::components).value_or(""), clip);
        const auto bound = [&about](int index) { return about.integer(ofx::prop::imageBounds, index).value_or(0); };
        view_.box = {bound(0), bound(1), bound(2), bound(3)};
        const auto isFar = [](int side) { return side < -imageLimit || side > imageLimit; };
        const Box& box = view_.box;
        if (isFar(box.x1) || isFar(box.y1) || isFar(box.x2) || isFar(box.y2) || box.x2 < box.x1 || box.y2 < box.y1) {
            throw UserError(std::string("The host gives impossible bounds for the clip ") + clip + ".");
        }
        view_.rowBytes = about.integer(ofx::prop::imageRowBytes).value_or(0);
        const auto row = static_cast<std::ptrdiff_t>(view_.pixelBytes()) * view_.box.width();
        if (view_.box.height() > 1 && std::abs(view_.rowBytes) < row) {
            throw UserError(std::string("The host gives impossible row bytes for the clip ") + clip + ".");
        }
        premultiplied_ = view_.components == 4 && about.text(ofx::prop::preMultiplication) == ofx::value::preMultiplied;
        scaleX_ = about.number(ofx::prop::renderScale, 0).value_or(1.0);
        scaleY_ = about.number(ofx::prop::renderScale, 1).value_or(scaleX_);
    } catch (...) {
        host_->effects().clipReleaseImage(image_);
        throw;
    }
}

Image::Image(Image&& other) noexcept
    : host_(other.host_),
      image_(std::exchange(other.image_, nullptr)),
      view_(other.view_),
      premultiplied_(other.premultiplied_),
      scaleX_(other.scaleX_),
      scaleY_(other.scaleY_) {}

Image::~Image() {
    if (image_ != nullptr) host_->effects().clipReleaseImage(image_);
}

ClipView::ClipView(const Host& host, ofx::Effect effect, const char* name) : host_(&host), name_(name) {
    if (host.effects().clipGetHandle(effect, name, &clip_, nullptr) != ofx::status::ok) clip_ = nullptr;
}

std::optional<Properties> ClipView::properties() const {
    ofx::PropertySet set = nullptr;
    if (clip_ == nullptr || host_->effects().clipGetPropertySet(clip_, &set) != ofx::status::ok) return std::nullopt;
    return Properties(*host_, set);
}

bool ClipView::connected() const {
    const auto about = properties();
    return about && about->integer(ofx::prop::clipConnected).value_or(0) != 0;
}

double ClipView::pixelAspect() const {
    const auto about = properties();
    const double aspect = about ? about->number(ofx::prop::imagePixelAspect).value_or(1.0) : 1.0;
    return std::isfinite(aspect) && aspect > 0.0 ? aspect : 1.0;
}

std::optional<double> ClipView::frameRate() const {
    const auto about = properties();
    return about ? about->number(ofx::prop::frameRate) : std::nullopt;
}

std::optional<std::string> ClipView::colourSpace() const {
    const auto about = properties();
    return about ? about->text(ofx::prop::clipColourspace) : std::nullopt;
}

std::optional<std::string> ClipView::pixelDepth() const {
    const auto about = properties();
    return about ? about->text(ofx::prop::pixelDepth) : std::nullopt;
}

bool ClipView::hasAlpha() const {
    const auto about = properties();
    return !about || about->text(ofx::prop::clipUnmappedComponents) != ofx::value::componentRgb;
}

std::optional<std::pair<double, double>> ClipView::frameRange() const {
    const auto about = properties();
    if (!about) return std::nullopt;
    const auto first = about->number(ofx::prop::frameRange, 0);
    const auto last = about->number(ofx::prop::frameRange, 1);
    if (!first || !last || !(*first <= *last)) return std::nullopt;
    return std::make_pair(*first, *last);
}

std::optional<ofx::RectD> ClipView::regionOfDefinition(double time) const {
    ofx::RectD region{0, 0, 0, 0};
    if (clip_ == nullptr || host_->effects().clipGetRegionOfDefinition(clip_, time, &region) != ofx::status::ok) {
        return std::nullopt;
    }
    if (!(region.x1 < region.x2 && region.y1 < region.y2)) return std::nullopt;
    return region;
}

std::optional<Image> ClipView::image(double time, const ofx::RectD* region) const {
    ofx::PropertySet image = nullptr;
    if (clip_ == nullptr || host_->effects().clipGetImage(clip_, time, region, &image) != ofx::status::ok ||
        image == nullptr) {
        return std::nullopt;
    }
    return std::make_optional<Image>(*host_, image, name_);
}

Box pixelBox(const ofx::RectD& region, double pixelAspect) {
    const auto bounded = [](double value) {  // no number is 0
        return value == value ? std::clamp(value, -coordinateLimit, coordinateLimit) : 0.0;
    };
    const auto down = [&bounded](double value) { return static_cast<int>(std::floor(bounded(value) + roundingSlack)); };
    const auto up = [&bounded](double value) { return static_cast<int>(std::ceil(bounded(value) - roundingSlack)); };
    return {down(region.x1 / pixelAspect), down(region.y1), up(region.x2 / pixelAspect), up(region.y2)};
}

}  // namespace stm
