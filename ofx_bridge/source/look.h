// Long work looks up now and then, so that a host's wish to stop is heard at once.
#pragma once

#include <cstddef>
#include <functional>

namespace stm {

// Looks whether the work is still wanted; throws if not.
using Look = std::function<void()>;

// Calls `look` each time that about `bytesBetweenLooks` have been worked on: some milliseconds.
class Looking {
  public:
    explicit Looking(const Look& look) : look_(look) {}
    void worked(std::size_t bytes) {
        done_ += bytes;
        if (done_ < bytesBetweenLooks) return;
        done_ = 0;
        look_();
    }

  private:
    static constexpr std::size_t bytesBetweenLooks = std::size_t{4} << 20;

    const Look& look_;
    std::size_t done_ = 0;
};

}  // namespace stm
