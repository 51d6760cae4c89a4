#include "pixels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace stm {

namespace {

constexpr float byteMax = 255.0F;
constexpr float shortMax = 65535.0F;
constexpr float redWeight = 0.2126F;  // Rec.709
constexpr float greenWeight = 0.7152F;
constexpr float blueWeight = 0.0722F;
constexpr int narrowestBorder = 3;  // pixels
constexpr int borderPart = 48;      // of the picture's shorter side
constexpr Rgba stripeColour{1.0F, 0.6F, 0.0F, 1.0F};
constexpr float markSlack = 0.01F;  // integer depths round
constexpr std::size_t fewestStripes = 8;

int borderOf(const Box& frame) { return std::max(narrowestBorder, std::min(frame.width(), frame.height()) / borderPart); }

bool isInStripe(const Box& frame, int x, int y) {
    const int width = borderOf(frame);
    const int along = (x - frame.x1) + (y - frame.y1);
    const int stripe = along >= 0 ? along / width : (along - width + 1) / width;
    return stripe % 2 == 0;
}

template <typename Value>
Value load(const std::uint8_t* from) {
    Value value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <typename Value>
void store(std::uint8_t* into, Value value) {
    std::memcpy(into, &value, sizeof value);
}

float loadAs(Depth depth, const std::uint8_t* from) {
    switch (depth) {
        case Depth::byte: return static_cast<float>(*from) / byteMax;
        case Depth::shortInteger: return static_cast<float>(load<std::uint16_t>(from)) / shortMax;
        case Depth::half: return halfToFloat(load<std::uint16_t>(from));
        case Depth::floating: break;
    }
    return load<float>(from);
}

// NaN becomes 0: integer pictures have no NaN.
float quantised(float value, float highest) {
    if (!(value > 0.0F)) return 0.0F;
    return std::floor(std::min(value, 1.0F) * highest + 0.5F);
}

void storeAs(Depth depth, std::uint8_t* into, float value) {
    switch (depth) {
        case Depth::byte: *into = static_cast<std::uint8_t>(quantised(value, byteMax)); return;
        case Depth::shortInteger: store(into, static_cast<std::uint16_t>(quantised(value, shortMax))); return;
        case Depth::half: store(into, floatToHalf(value)); return;
        case Depth::floating: break;
    }
    store(into, value);
}

// Four independent lanes of multiply and rotate: fast, and every input bit reaches the result.
class Hash {
  public:
    void add(const std::uint8_t* bytes, std::size_t count) {
        total_ += count;
        while (count > 0) {
            const std::size_t taken = std::min(count, block_.size() - filled_);
            std::memcpy(block_.data() + filled_, bytes, taken);
            filled_ += taken;
            bytes += taken;
            count -= taken;
            if (filled_ == block_.size()) {
                mixBlock();
                filled_ = 0;
            }
        }
    }

    std::string hex() {
        std::fill(block_.begin() + static_cast<std::ptrdiff_t>(filled_), block_.end(), std::uint8_t{0});
        mixBlock();
        std::uint64_t high = total_ ^ lanes_[0] ^ rotated(lanes_[1], 21);
        std::uint64_t low = (total_ * odd) ^ lanes_[2] ^ rotated(lanes_[3], 43);
        high = finished(high + low * odd);
        low = finished(low + high);
        std::array<char, 33> text{};
        std::snprintf(text.data(), text.size(), "%016llx%016llx", static_cast<unsigned long long>(high),
                      static_cast<unsigned long long>(low));
        return text.data();
    }

  private:
    static constexpr std::uint64_t odd = 0x9E3779B97F4A7C15ULL;
    static constexpr std::uint64_t other = 0xC2B2AE3D27D4EB4FULL;

    static std::uint64_t rotated(std::uint64_t value, int by) { return (value << by) | (value >> (64 - by)); }

    static std::uint64_t finished(std::uint64_t value) {
        value ^= value >> 33;
        value *= other;
        value ^= value >> 29;
        value *= odd;
        return value ^ (value >> 32);
    }

    void mixBlock() {
        for (std::size_t lane = 0; lane < lanes_.size(); ++lane) {
            const auto word = load<std::uint64_t>(block_.data() + lane * sizeof(std::uint64_t));
            lanes_[lane] = rotated(lanes_[lane] + word * other, 31) * odd;
        }
    }

    std::array<std::uint64_t, 4> lanes_{1, 2, 3, 4};
    std::array<std::uint8_t, 32> block_{};
    std::size_t filled_ = 0;
    std::uint64_t total_ = 0;
};

// How much of the full-size pixels from `first` on each output pixel covers, along one axis.
struct Span {
    int first;
    std::vector<double> weights;  // they sum to 1
};

Span spanOf(int pixel, double scale) {
    const double from = pixel / scale;
    const double to = (pixel + 1) / scale;
    const int first = static_cast<int>(std::floor(from));
    const int last = std::max(first + 1, static_cast<int>(std::ceil(to)));
    Span span{first, {}};
    for (int full = first; full < last; ++full) {
        const double covered = std::min<double>(to, full + 1.0) - std::max<double>(from, full);
        span.weights.push_back(std::max(0.0, covered) / (to - from));
    }
    return span;
}

}  // namespace

Box intersection(const Box& a, const Box& b) {
    return {std::max(a.x1, b.x1), std::max(a.y1, b.y1), std::min(a.x2, b.x2), std::min(a.y2, b.y2)};
}

EngineWindow toEngineWindow(const Box& box, int displayTop) {
    return {box.x1, std::int64_t{displayTop} - box.y2, std::int64_t{box.x2} - box.x1, std::int64_t{box.y2} - box.y1};
}

std::size_t bytesOf(Depth depth) {
    switch (depth) {
        case Depth::byte: return 1;
        case Depth::half:
        case Depth::shortInteger: return 2;
        case Depth::floating: break;
    }
    return 4;
}

const char* engineFormat(Depth depth) {
    switch (depth) {
        case Depth::byte: return "byte";
        case Depth::shortInteger: return "short";
        case Depth::half: return "half";
        case Depth::floating: break;
    }
    return "float";
}

std::uint8_t* PixelView::at(int x, int y) const {
    const auto columns = static_cast<std::ptrdiff_t>(x) - box.x1;
    const auto rows = static_cast<std::ptrdiff_t>(y) - box.y1;
    return data + rows * rowBytes + columns * static_cast<std::ptrdiff_t>(pixelBytes());
}

float halfToFloat(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
    const std::uint32_t exponent = (half >> 10) & 0x1FU;
    const std::uint32_t fraction = half & 0x3FFU;
    if (exponent == 0) {  // zero and the subnormal numbers
        const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
        return sign != 0 ? -magnitude : magnitude;
    }
    const std::uint32_t bits =
        exponent == 31 ? (sign | 0x7F800000U | (fraction << 13)) : (sign | ((exponent + 112) << 23) | (fraction << 13));
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

std::uint16_t floatToHalf(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude >= 0x7F800000U) {  // infinity; NaN keeps being one
        return static_cast<std::uint16_t>(sign | 0x7C00U | (magnitude > 0x7F800000U ? 0x200U : 0U));
    }
    if (magnitude >= 0x477FF000U) return static_cast<std::uint16_t>(sign | 0x7C00U);  // rounds beyond 65504
    if (magnitude < 0x38800000U) {  // a subnormal half: a whole number of 2^-24, ties to even
        const float scaled = std::ldexp(std::fabs(value), 24);
        return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(scaled)));
    }
    const std::uint32_t rebased = magnitude - (112U << 23);
    const std::uint32_t rounded = rebased + 0xFFFU + ((rebased >> 13) & 1U);
    return static_cast<std::uint16_t>(sign | (rounded >> 13));
}

void readRow(const PixelView& view, int x, int y, int count, Rgba* into) {
    std::fill(into, into + count, Rgba{});
    if (y < view.box.y1 || y >= view.box.y2) return;
    const int first = std::max(x, view.box.x1);
    const int last = std::min(x + count, view.box.x2);
    const std::size_t size = bytesOf(view.depth);
    for (int column = first; column < last; ++column) {
        const std::uint8_t* from = view.at(column, y);
        Rgba& pixel = into[column - x];
        if (view.components == 1) {
            pixel.a = loadAs(view.depth, from);
            continue;
        }
        pixel.r = loadAs(view.depth, from);
        pixel.g = loadAs(view.depth, from + size);
        pixel.b = loadAs(view.depth, from + 2 * size);
        pixel.a = view.components == 4 ? loadAs(view.depth, from + 3 * size) : 1.0F;
    }
}

void writeRow(const PixelView& view, int x, int y, int count, const Rgba* from) {
    const std::size_t size = bytesOf(view.depth);
    for (int column = 0; column < count; ++column) {
        std::uint8_t* into = view.at(x + column, y);
        const Rgba& pixel = from[column];
        if (view.components == 1) {
            storeAs(view.depth, into, pixel.a);
            continue;
        }
        storeAs(view.depth, into, pixel.r);
        storeAs(view.depth, into + size, pixel.g);
        storeAs(view.depth, into + 2 * size, pixel.b);
        if (view.components == 4) storeAs(view.depth, into + 3 * size, pixel.a);
    }
}

void unpremultiply(Rgba* pixels, int count) {
    for (Rgba* pixel = pixels; pixel != pixels + count; ++pixel) {
        if (pixel->a == 0.0F) continue;
        pixel->r /= pixel->a;
        pixel->g /= pixel->a;
        pixel->b /= pixel->a;
    }
}

std::array<float, 3> Matte::colourAt(int x, int y) const {
    if (colours.empty() || x < box.x1 || x >= box.x2 || y < box.y1 || y >= box.y2) return {0.0F, 0.0F, 0.0F};
    const std::size_t row = static_cast<std::size_t>(y - box.y1) * static_cast<std::size_t>(box.width());
    const std::size_t first = 3 * (row + static_cast<std::size_t>(x - box.x1));
    return {colours[first], colours[first + 1], colours[first + 2]};
}

float Matte::at(int x, int y) const {
    if (x < box.x1 || x >= box.x2 || y < box.y1 || y >= box.y2) return 0.0F;
    const auto row = static_cast<std::size_t>(y - box.y1);
    return values[row * static_cast<std::size_t>(box.width()) + static_cast<std::size_t>(x - box.x1)];
}

Matte luminanceOf(const PixelView& view, const Box& box, const Check& check) {
    CancelCheck cancelCheck(check);
    Matte luminance{box, {}};
    luminance.values.reserve(static_cast<std::size_t>(box.width()) * static_cast<std::size_t>(box.height()));
    std::vector<Rgba> row(static_cast<std::size_t>(box.width()));
    for (int y = box.y1; y < box.y2; ++y) {
        readRow(view, box.x1, y, box.width(), row.data());
        for (const Rgba& pixel : row) {
            const bool isGrey = pixel.r == pixel.g && pixel.g == pixel.b;
            luminance.values.push_back(isGrey ? pixel.r : redWeight * pixel.r + greenWeight * pixel.g + blueWeight * pixel.b);
        }
        cancelCheck.worked(row.size() * sizeof(Rgba));
    }
    return luminance;
}

PixelView viewOf(const Matte& matte) {
    PixelView view;
    view.data = reinterpret_cast<std::uint8_t*>(const_cast<float*>(matte.values.data()));  // it is only read
    view.rowBytes = static_cast<std::ptrdiff_t>(sizeof(float)) * matte.box.width();
    view.box = matte.box;
    view.depth = Depth::floating;
    view.components = 1;
    return view;
}

Box fullSizeBox(const Box& box, double scaleX, double scaleY) {
    return {static_cast<int>(std::floor(box.x1 / scaleX)), static_cast<int>(std::floor(box.y1 / scaleY)),
            static_cast<int>(std::ceil(box.x2 / scaleX)), static_cast<int>(std::ceil(box.y2 / scaleY))};
}

Box scaledBox(const Box& box, double scaleX, double scaleY) {
    return {static_cast<int>(std::floor(box.x1 * scaleX)), static_cast<int>(std::floor(box.y1 * scaleY)),
            static_cast<int>(std::ceil(box.x2 * scaleX)), static_cast<int>(std::ceil(box.y2 * scaleY))};
}

Matte scaledMatte(const Matte& full, const Box& box, double scaleX, double scaleY, const Check& check) {
    CancelCheck cancelCheck(check);
    std::vector<Span> columns;
    for (int x = box.x1; x < box.x2; ++x) columns.push_back(spanOf(x, scaleX));
    Matte scaled{box, {}};
    scaled.values.reserve(static_cast<std::size_t>(box.width()) * static_cast<std::size_t>(box.height()));
    for (int y = box.y1; y < box.y2; ++y) {
        const Span rows = spanOf(y, scaleY);
        cancelCheck.worked(static_cast<std::size_t>(full.box.width()) * rows.weights.size() * sizeof(double));
        for (const Span& across : columns) {
            double sum = 0.0;
            for (std::size_t j = 0; j < rows.weights.size(); ++j) {
                for (std::size_t i = 0; i < across.weights.size(); ++i) {
                    const float value = full.at(across.first + static_cast<int>(i), rows.first + static_cast<int>(j));
                    sum += rows.weights[j] * across.weights[i] * static_cast<double>(value);
                }
            }
            scaled.values.push_back(static_cast<float>(sum));
        }
    }
    if (full.colours.empty()) return scaled;
    // What the matte leaves out has no part in the mean of the colours.
    scaled.colours.resize(3 * scaled.values.size());
    for (std::size_t channel = 0; channel < 3; ++channel) {
        Matte multiplied{full.box, std::vector<float>(full.values.size())};
        for (std::size_t i = 0; i < full.values.size(); ++i) multiplied.values[i] = full.colours[3 * i + channel] * full.values[i];
        const Matte mean = scaledMatte(multiplied, box, scaleX, scaleY, check);
        for (std::size_t i = 0; i < scaled.values.size(); ++i) {
            const float alpha = scaled.values[i];
            scaled.colours[3 * i + channel] = alpha > 0.0F ? mean.values[i] / alpha : 0.0F;
        }
    }
    return scaled;
}

bool isAllZero(const PixelView& view, const Box& box, const std::string& channels, const Check& check) {
    CancelCheck cancelCheck(check);
    const auto has = [&channels](char letter) { return channels.find(letter) != std::string::npos; };
    const bool red = has('R'), green = has('G'), blue = has('B'), alpha = has('A');
    std::vector<Rgba> row(static_cast<std::size_t>(box.width()));
    for (int y = box.y1; y < box.y2; ++y) {
        readRow(view, box.x1, y, box.width(), row.data());
        for (const Rgba& pixel : row) {
            if ((red && pixel.r > 0.0F) || (green && pixel.g > 0.0F) || (blue && pixel.b > 0.0F) || (alpha && pixel.a > 0.0F)) {
                return false;
            }
        }
        cancelCheck.worked(row.size() * sizeof(Rgba));
    }
    return true;
}

bool isOpaque(const PixelView& view, const Box& box, const Check& check) {
    CancelCheck cancelCheck(check);
    std::vector<Rgba> row(static_cast<std::size_t>(box.width()));
    for (int y = box.y1; y < box.y2; ++y) {
        readRow(view, box.x1, y, box.width(), row.data());
        if (std::any_of(row.begin(), row.end(), [](const Rgba& pixel) { return pixel.a < 1.0F; })) return false;
        cancelCheck.worked(row.size() * sizeof(Rgba));
    }
    return true;
}

void markRow(const Box& frame, int x, int y, int count, Rgba* pixels) {
    if (frame.empty()) return;
    const int width = borderOf(frame);
    const bool inBorder = y < frame.y1 + width || y >= frame.y2 - width;
    for (int i = 0; i < count; ++i) {
        const int at = x + i;
        if (!inBorder && at >= frame.x1 + width && at < frame.x2 - width) continue;
        pixels[i] = isInStripe(frame, at, y) ? stripeColour : Rgba{};
    }
}

bool isMarked(const PixelView& view, const Box& frame) {
    std::vector<Rgba> row(static_cast<std::size_t>(std::max(0, frame.width())));
    for (const int y : {frame.y1, frame.y2 - 1}) {
        readRow(view, frame.x1, y, frame.width(), row.data());
        std::vector<int> runs;
        bool before = false;
        for (const Rgba& pixel : row) {
            const bool isOne = pixel.a > 0.5F;
            if (std::fabs(pixel.a - (isOne ? 1.0F : 0.0F)) > markSlack) return false;
            if (runs.empty() || isOne != before) runs.push_back(0);
            ++runs.back();
            before = isOne;
        }
        if (runs.size() < fewestStripes) return false;
        // Stripes of one width; those at the ends may be cut.
        if (std::any_of(runs.begin() + 1, runs.end() - 1, [&runs](int run) { return run != runs[1]; })) return false;
    }
    return true;
}

void packRows(const PixelView& view, const Box& box, std::uint8_t* into, const Check& check) {
    CancelCheck cancelCheck(check);
    const std::size_t rowBytes = view.pixelBytes() * static_cast<std::size_t>(box.width());
    for (int y = box.y2 - 1; y >= box.y1; --y, into += rowBytes) {
        std::memcpy(into, view.at(box.x1, y), rowBytes);
        cancelCheck.worked(rowBytes);
    }
}

std::string digestOf(const PixelView& view, const Box& box, const std::string& about, const Check& check) {
    CancelCheck cancelCheck(check);
    Hash hash;
    hash.add(reinterpret_cast<const std::uint8_t*>(about.data()), about.size());
    const std::size_t rowBytes = view.pixelBytes() * static_cast<std::size_t>(box.width());
    for (int y = box.y1; y < box.y2; ++y) {
        hash.add(view.at(box.x1, y), rowBytes);
        cancelCheck.worked(rowBytes);
    }
    return hash.hex();
}

}  // namespace stm
