// Pixels: formats, windows and the arithmetic between them. Pure; independent of OpenFX and the engine.
// Rows are counted upwards (y up), as hosts of OpenFX do, until `toEngineWindow` turns them round. What goes through
// a whole picture takes a `check`, which may end it by throwing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cancellation.h"

namespace stm {

// Half-open rectangle of whole pixels, y up.
struct Box {
    int x1 = 0, y1 = 0, x2 = 0, y2 = 0;
    int width() const { return x2 - x1; }
    int height() const { return y2 - y1; }
    bool empty() const { return x2 <= x1 || y2 <= y1; }
    bool contains(const Box& other) const {
        return x1 <= other.x1 && y1 <= other.y1 && x2 >= other.x2 && y2 >= other.y2;
    }
    bool operator==(const Box& other) const {
        return x1 == other.x1 && y1 == other.y1 && x2 == other.x2 && y2 == other.y2;
    }
    bool operator!=(const Box& other) const { return !(*this == other); }
};

Box intersection(const Box& a, const Box& b);

// The engine's windows: x, y, width, height, y DOWN from the top of the display window.
using EngineWindow = std::array<std::int64_t, 4>;
EngineWindow toEngineWindow(const Box& box, int displayTop);

enum class Depth { byte, half, shortInteger, floating };
std::size_t bytesOf(Depth depth);
const char* engineFormat(Depth depth);  // "byte", "short", "half" or "float"

// Pixels in memory of another owner. `data` is the pixel at (box.x1, box.y1), the bottom left one;
// `rowBytes` leads one row up and may be negative. Components: 1 (alpha), 3 (RGB) or 4 (RGBA), interleaved.
struct PixelView {
    std::uint8_t* data = nullptr;
    std::ptrdiff_t rowBytes = 0;
    Box box;
    Depth depth = Depth::floating;
    int components = 4;

    std::size_t pixelBytes() const { return bytesOf(depth) * static_cast<std::size_t>(components); }
    std::uint8_t* at(int x, int y) const;
};

float halfToFloat(std::uint16_t half);
std::uint16_t floatToHalf(float value);  // round to nearest, ties to even

struct Rgba { float r = 0, g = 0, b = 0, a = 0; };

// Reads `count` pixels of row y from x on. Missing colour is 0, missing alpha is 1; one component is alpha.
// Outside the view's box a pixel is all zero.
void readRow(const PixelView& view, int x, int y, int count, Rgba* into);
// Writes what the view has components for; a view of one component takes alpha. Integer depths are clamped and rounded.
void writeRow(const PixelView& view, int x, int y, int count, const Rgba* from);

void unpremultiply(Rgba* pixels, int count);  // where alpha is 0, colour does not change

// A matte: one float per pixel over `box`, bottom row first.
struct Matte {
    Box box;
    std::vector<float> values;
    std::vector<float> colours{};  // red, green and blue of each pixel, not multiplied by the matte; or none
    float at(int x, int y) const;  // 0 outside
    std::array<float, 3> colourAt(int x, int y) const;  // black outside
};

// Rec.709 luminance of RGB or RGBA over `box`, and a view of such values as one channel.
Matte luminanceOf(const PixelView& view, const Box& box, const Check& check);
PixelView viewOf(const Matte& matte);

// The pixels at full size that pixel rectangle `box` of a picture rendered at `scaleX`, `scaleY` covers.
Box fullSizeBox(const Box& box, double scaleX, double scaleY);
// The other way round, outwards.
Box scaledBox(const Box& box, double scaleX, double scaleY);
// The mean of `full` over what every pixel of `box` covers at full size: a matte at the host's proxy scale.
Matte scaledMatte(const Matte& full, const Box& box, double scaleX, double scaleY, const Check& check);

// Copies `box` out of `view` to tight rows, top row first (the engine's order). `into` has room for it.
void packRows(const PixelView& view, const Box& box, std::uint8_t* into, const Check& check);

// Whether nothing in `box` is above 0 in these channels, letters of "RGBA".
bool isAllZero(const PixelView& view, const Box& box, const std::string& channels, const Check& check);

// Whether the alpha is 1 everywhere in `box`.
bool isOpaque(const PixelView& view, const Box& box, const Check& check);

// Stripes along the border of `frame` and outside of it, in all channels: the mark of a picture that is not the matte of its
// frame.
void markRow(const Box& frame, int x, int y, int count, Rgba* pixels);
// Whether the lowest and the highest row of `frame` are striped so, in their alpha.
bool isMarked(const PixelView& view, const Box& frame);

// A hash of the pixels of `box` (all components) and of `about`; 32 hex digits. Not cryptographic: it tells
// whether a host's picture has changed.
std::string digestOf(const PixelView& view, const Box& box, const std::string& about, const Check& check);

}  // namespace stm
