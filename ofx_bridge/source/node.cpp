#include "node.h"

#include <map>

namespace stm {

namespace {

struct NodeTable {
    std::mutex mutex;
    std::map<const void*, std::weak_ptr<Node>> byParameters;
    std::map<std::string, std::weak_ptr<Node>> byStore;
    std::map<std::weak_ptr<Node>, std::string, std::owner_less<std::weak_ptr<Node>>> copies;  // what each of them shows
    std::atomic<bool> propagating{false};
};

// Never destroyed: see plugin.cpp.
NodeTable& nodeTable() {
    static NodeTable& table = *new NodeTable;
    return table;
}

template <typename Key>
void dropTheDead(std::map<Key, std::weak_ptr<Node>>& nodes) {
    for (auto one = nodes.begin(); one != nodes.end();) one = one->second.expired() ? nodes.erase(one) : std::next(one);
}

}  // namespace

std::shared_ptr<Node> nodeOf(const void* parameters, const std::string& client, bool& made) {
    NodeTable& table = nodeTable();
    const std::lock_guard<std::mutex> guard(table.mutex);
    dropTheDead(table.byParameters);
    const auto found = table.byParameters.find(parameters);
    made = found == table.byParameters.end();
    if (!made) {
        if (auto node = found->second.lock()) return node;
    }
    made = true;
    auto node = std::make_shared<Node>(client);
    table.byParameters[parameters] = node;
    return node;
}

bool isAnothers(const std::string& folder, const std::shared_ptr<Node>& node) {
    NodeTable& table = nodeTable();
    const std::lock_guard<std::mutex> guard(table.mutex);
    dropTheDead(table.byStore);
    for (auto one = table.byStore.begin(); one != table.byStore.end();) {  // what the node has left is free for others
        one = one->first != folder && one->second.lock() == node ? table.byStore.erase(one) : std::next(one);
    }
    const auto [entry, isNew] = table.byStore.emplace(folder, node);
    const bool isCopy = !isNew && entry->second.lock() != node;
    if (isCopy) {
        table.copies[node] = folder;
    } else {
        table.copies.erase(node);
    }
    return isCopy;
}

std::vector<std::shared_ptr<Node>> copiesThatShow(const std::string& folder, const std::shared_ptr<Node>& node) {
    NodeTable& table = nodeTable();
    const std::lock_guard<std::mutex> guard(table.mutex);
    std::vector<std::shared_ptr<Node>> found;
    for (auto one = table.copies.begin(); one != table.copies.end();) {
        const auto copy = one->first.lock();
        if (copy && copy != node && one->second == folder) found.push_back(copy);
        one = copy ? std::next(one) : table.copies.erase(one);
    }
    return found;
}

PropagationTurn::PropagationTurn() : granted_(!nodeTable().propagating.exchange(true)) {}

PropagationTurn::~PropagationTurn() {
    if (granted_) nodeTable().propagating = false;
}

}  // namespace stm
