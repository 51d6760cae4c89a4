#include "deadline.h"

#include <algorithm>
#include <thread>

namespace stm {

void Deadline::check(const char* waitingFor) const {
    if (cancelled_ && cancelled_()) throw Cancelled();
    if (Clock::now() > end_) throw DeadlinePassed(std::string("The engine took too long: ") + waitingFor + ".");
}

void Deadline::sleep(Milliseconds duration, const char* waitingFor) const {
    const auto end = Clock::now() + duration;
    while (Clock::now() < end) {
        check(waitingFor);
        std::this_thread::sleep_for(std::min<Clock::duration>(pollInterval, end - Clock::now()));
    }
}

std::unique_lock<std::timed_mutex> Deadline::lock(std::timed_mutex& mutex, const char* waitingFor) const {
    std::unique_lock<std::timed_mutex> taken(mutex, std::defer_lock);
    while (!taken.try_lock_for(pollInterval)) check(waitingFor);
    return taken;
}

}  // namespace stm
