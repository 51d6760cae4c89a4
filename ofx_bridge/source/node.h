// What all instances of one node share. A host may make several: Natron renders a node on a second thread in a second instance
// with the same parameters. A pasted copy has separate parameters, and is another node.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "parameters.h"
#include "pixels.h"
#include "shot_session.h"

namespace stm {

// The plate as the engine counts it.
struct PlateGeometry {
    Range frames;
    bool guessedFrames = false;  // the host has no range: these are the known frames
    Box format;                  // the host's; empty where it has none
    Box display;
    Box canvas;
    double pixelAspect = 1.0;
};

// What one of the node's buttons has changed. A host that undoes it takes back the number of the step, and perhaps no more.
struct Step {
    NodeShot before;
    NodeShot after;
};

struct Node {
    explicit Node(const std::string& client) : session(client, platform::randomHex(16)) {}

    ShotSession session;
    std::atomic<bool> pressed{false};  // a button's action is under way
    std::atomic<unsigned> stops{0};    // how often a stop was asked for
    std::atomic<bool> plateMayHaveChanged{false};
    std::optional<std::set<Frame>> pastedKeys;  // of a node that was made as a copy of another one; set when it is made
    std::atomic<ofx::Effect> effect{nullptr};  // the instance that the host's window knows: clones for renders know less
    std::function<void()> renderAgain;  // has the host forget what it has cached of the node; for the host's main thread
    std::map<int, Step> steps;  // by number, of this session: an undo reaches no farther. For the host's main thread
    int step = 0;               // whose values the node has
    std::mutex geometryMutex;
    std::optional<PlateGeometry> geometry;  // at the last check
};

// The nodes of this process. `parameters` is the host's handle of a parameter: equal for the instances of one node.
// `made`: whether the node is new.
std::shared_ptr<Node> nodeOf(const void* parameters, const std::string& client, bool& made);

// Whether another living node of this process was the first to have this store. Else it is the store of `node` from now on.
bool isAnothers(const std::string& folder, const std::shared_ptr<Node>& node);

// The other nodes that show the store `folder`, as far as `isAnothers` was asked of them last.
std::vector<std::shared_ptr<Node>> copiesThatShow(const std::string& folder, const std::shared_ptr<Node>& node);

// One node of the process propagates at a time: the engine computes one after the other anyway, and a host that lets the
// artist press a button inside another one's action would wait for both. False when another one is at it.
class PropagationTurn {
  public:
    PropagationTurn();
    PropagationTurn(const PropagationTurn&) = delete;
    PropagationTurn& operator=(const PropagationTurn&) = delete;
    ~PropagationTurn();
    bool granted() const { return granted_; }

  private:
    bool granted_;
};

}  // namespace stm
