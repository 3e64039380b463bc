// Answers the posts of a mailbox on a pool.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "krasis_mailbox.h"
#include "team.h"

// See krasis_mailbox.h.
struct krasis_server {
public:
    // Of valid layers and a valid mailbox. Throws std::system_error where the system refuses a thread.
    krasis_server(krasis_pool &team, std::vector<krasis_experts> layers, const krasis_mailbox &mailbox);
    ~krasis_server();
    krasis_server(const krasis_server &) = delete;

    void wake();
    void freeze(bool frozen) { frozen_ = frozen; }
    void counts(int64_t *counts) const { counts[0] = posts_, counts[1] = pairs_, counts[2] = busy_, counts[3] = bytes_; }

private:
    void serve();
    bool posted() const;
    bool spin();
    void sleep();
    void rouse();
    void answer();
    krasis_status compute(const krasis_slot &slot);

    krasis_pool &team_;
    const std::vector<krasis_experts> layers_;
    const krasis_mailbox mailbox_;
    uint32_t answered_; // number of the last post that was
    std::vector<int64_t> ids_;
    std::mutex mutex_; // of the condition
    std::condition_variable called_on_;
    std::atomic<int64_t> posts_{0}, pairs_{0}, busy_{0}, bytes_{0};
    std::atomic<bool> called_{true}, frozen_{false}, ending_{false};
    std::thread thread_;
};
