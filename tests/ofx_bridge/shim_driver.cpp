// Drives the effect's pure parts from a test: `shim_driver vectors|fuzz SEED SECONDS|to-half|from-half`.
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <random>
#include <string>

#include "pixels.h"
#include "protocol.h"

namespace {

using stm::Bytes;

struct Vector {
    std::string name;
    Bytes bytes;
};

std::vector<Vector> readVectors() {
    std::vector<Vector> vectors;
    std::string name;
    std::string hex;
    while (std::cin >> name >> hex) {
        Vector one{name, {}};
        for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
            one.bytes.push_back(static_cast<std::uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
        }
        vectors.push_back(std::move(one));
    }
    return vectors;
}

int tellVectors() {
    for (const Vector& one : readVectors()) {
        try {
            stm::MessageReader reader;
            reader.feed(one.bytes.data(), one.bytes.size());
            const auto message = reader.next();
            if (!message) {
                std::cout << one.name << " incomplete\n";
                continue;
            }
            std::cout << one.name << " ok " << static_cast<int>(message->kind) << ' ' << message->id << ' '
                      << message->payload.size() << ' ' << message->header.dump() << '\n';
        } catch (const stm::FramingError& error) {
            std::cout << one.name << " framing " << error.what() << '\n';
        }
    }
    return 0;
}

class Fuzz {
  public:
    Fuzz(std::vector<Vector> seeds, unsigned seed) : seeds_(std::move(seeds)), random_(seed) {}

    void once() {
        Bytes bytes = seeds_[below(seeds_.size())].bytes;
        if (below(4) == 0) {  // two messages in one stream
            const Bytes& more = seeds_[below(seeds_.size())].bytes;
            bytes.insert(bytes.end(), more.begin(), more.end());
        }
        const std::size_t changes = below(6);
        for (std::size_t i = 0; i < changes; ++i) mutate(bytes);
        read(bytes);
        if (below(8) == 0) pixels();
    }

    std::size_t messages = 0;
    std::size_t refused = 0;

  private:
    std::size_t below(std::size_t limit) { return std::uniform_int_distribution<std::size_t>(0, limit - 1)(random_); }

    void mutate(Bytes& bytes) {
        if (bytes.empty()) return;
        const std::size_t at = below(bytes.size());
        const auto place = bytes.begin() + static_cast<std::ptrdiff_t>(at);
        switch (below(6)) {
            case 0: bytes[at] = static_cast<std::uint8_t>(below(256)); break;
            case 1: bytes[at] = static_cast<std::uint8_t>(bytes[at] ^ (1U << below(8))); break;
            case 2: bytes.erase(place); break;
            case 3: bytes.insert(place, static_cast<std::uint8_t>("{}[]\",:0e-.\\"[below(12)])); break;
            case 4: bytes.resize(at); break;
            default: bytes.insert(place, below(40), bytes[at]); break;
        }
    }

    void read(const Bytes& bytes) {
        stm::MessageReader reader;
        if (below(2) == 0) reader.setPayloadLimit(below(64));
        try {
            for (std::size_t at = 0; at < bytes.size();) {
                const std::size_t count = std::min(bytes.size() - at, 1 + below(std::min<std::size_t>(reader.wanted(), 64)));
                reader.feed(bytes.data() + at, count);
                at += count;
                while (const auto message = reader.next()) {
                    ++messages;
                    // What was accepted can be said again and is then understood the same.
                    const Bytes again = stm::encoded(message->kind, message->id, message->header, 0);
                    stm::MessageReader second;
                    second.feed(again.data(), again.size());
                    if (const auto repeated = second.next(); !repeated || repeated->header != message->header) std::abort();
                }
            }
        } catch (const stm::FramingError&) {
            ++refused;
        }
    }

    // Every geometry that a host may have, in memory that is exactly as large as it must be.
    void pixels() {
        const stm::Depth depth = static_cast<stm::Depth>(below(4));
        const int components = std::array<int, 3>{1, 3, 4}[below(3)];
        const int x = static_cast<int>(below(40)) - 20;
        const int y = static_cast<int>(below(40)) - 20;
        const stm::Box box{x, y, x + 1 + static_cast<int>(below(12)), y + 1 + static_cast<int>(below(12))};
        stm::PixelView view{nullptr, 0, box, depth, components};
        const std::size_t row = view.pixelBytes() * static_cast<std::size_t>(box.width()) + below(8);
        std::vector<std::uint8_t> memory(row * static_cast<std::size_t>(box.height()));
        for (std::uint8_t& byte : memory) byte = static_cast<std::uint8_t>(below(256));
        const bool down = below(2) == 0;
        view.data = memory.data() + (down ? row * static_cast<std::size_t>(box.height() - 1) : 0);
        view.rowBytes = down ? -static_cast<std::ptrdiff_t>(row) : static_cast<std::ptrdiff_t>(row);
        std::vector<stm::Rgba> line(static_cast<std::size_t>(box.width()) + 8);
        for (int at = box.y1 - 2; at < box.y2 + 2; ++at) {
            stm::readRow(view, box.x1 - 4, at, box.width() + 8, line.data());
            stm::unpremultiply(line.data(), box.width() + 8);
            if (at >= box.y1 && at < box.y2) stm::writeRow(view, box.x1, at, box.width(), line.data() + 4);
        }
        std::vector<std::uint8_t> packed(view.pixelBytes() * static_cast<std::size_t>(box.width() * box.height()));
        const stm::Check noCheck = [] {};
        stm::packRows(view, box, packed.data(), noCheck);
        if (stm::digestOf(view, box, "a", noCheck) == stm::digestOf(view, box, "b", noCheck)) std::abort();
        stm::Matte matte{box, std::vector<float>(static_cast<std::size_t>(box.width() * box.height()), 0.5F)};
        const double scale = std::array<double, 4>{0.5, 0.25, 1.0 / 3.0, 0.7}[below(4)];
        const stm::Box small{box.x1 / 2 - 1, box.y1 / 2 - 1, box.x2 / 2 + 1, box.y2 / 2 + 1};
        for (const float value : stm::scaledMatte(matte, small, scale, scale, noCheck).values) {
            if (!(value >= 0.0F && value <= 0.5001F)) std::abort();
        }
    }

    std::vector<Vector> seeds_;
    std::mt19937 random_;
};

int fuzz(unsigned seed, double seconds) {
    Fuzz fuzz(readVectors(), seed);
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    std::size_t rounds = 0;
    while (std::chrono::steady_clock::now() < end) {
        for (int i = 0; i < 100; ++i, ++rounds) fuzz.once();
    }
    std::cout << rounds << " rounds, " << fuzz.messages << " messages, " << fuzz.refused << " refused\n";
    return 0;
}

template <typename From, typename To, typename Convert>
int convert(const Convert& one) {
    From value;
    while (std::fread(&value, sizeof value, 1, stdin) == 1) {
        const To result = one(value);
        std::fwrite(&result, sizeof result, 1, stdout);
    }
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    const std::string mode = count > 1 ? arguments[1] : "";
    if (mode == "vectors") return tellVectors();
    if (mode == "fuzz" && count == 4) return fuzz(static_cast<unsigned>(std::stoul(arguments[2])), std::stod(arguments[3]));
    if (mode == "to-half") return convert<float, std::uint16_t>(stm::floatToHalf);
    if (mode == "from-half") return convert<std::uint16_t, float>(stm::halfToFloat);
    std::cerr << "unknown mode\n";
    return 2;
}
