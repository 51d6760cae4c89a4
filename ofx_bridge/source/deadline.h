// Waits that end: at a point in time, or when the host asks to stop.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cancellation.h"

namespace stm {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// The longest wait without a check whether the host wants us to stop. Every wait of the effect is made of waits like
// this one, and every long piece of work checks in between (cancellation.h): nothing of ours blocks longer.
inline constexpr Milliseconds pollInterval{50};

// Thrown when the host asks to stop. It needs no message.
struct Cancelled : std::exception {
    const char* what() const noexcept override { return "The host asked to stop."; }
};

struct DeadlinePassed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// When a caller stops waiting, and how it is asked whether it still wants to.
class Deadline {
  public:
    Deadline(Milliseconds atMost, std::function<bool()> cancelled)
        : atMost_(atMost), end_(Clock::now() + atMost), cancelled_(std::move(cancelled)) {}
    // Throws Cancelled or DeadlinePassed.
    void check(const char* waitingFor) const;
    // The awaited work makes progress: restart the time.
    void restart() const { end_ = Clock::now() + atMost_; }
    void sleep(Milliseconds duration, const char* waitingFor) const;
    std::unique_lock<std::timed_mutex> lock(std::timed_mutex& mutex, const char* waitingFor) const;
    // `check` for code without deadlines. Must not outlive this.
    Check checkFor(const char* waitingFor) const {
        return [this, waitingFor] { check(waitingFor); };
    }

  private:
    Milliseconds atMost_;
    mutable Clock::time_point end_;
    std::function<bool()> cancelled_;
};

}  // namespace stm
