// Long work checks now and then whether it was cancelled, so that the host waits a few milliseconds at most.
#pragma once

#include <cstddef>
#include <functional>

namespace stm {

// Throws when the work is no longer wanted.
using Check = std::function<void()>;

// Calls `check` each time that about `bytesBetweenChecks` have been worked on: every few milliseconds.
class CancelCheck {
  public:
    explicit CancelCheck(const Check& check) : check_(check) {}
    void worked(std::size_t bytes) {
        done_ += bytes;
        if (done_ < bytesBetweenChecks) return;
        done_ = 0;
        check_();
    }

  private:
    static constexpr std::size_t bytesBetweenChecks = std::size_t{4} << 20;

    const Check& check_;
    std::size_t done_ = 0;
};

}  // namespace stm
