#include "server.h"

#include <algorithm>
#include <chrono>

#include "check.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPatience = std::chrono::milliseconds(50); // many times what a layer takes, far less than a pause in talk
constexpr auto kNap = std::chrono::microseconds(100);
constexpr int kPolls = 32;

uint32_t number_of(const krasis_reply &reply) {
    return static_cast<uint32_t>(__atomic_load_n(&reply.word, __ATOMIC_ACQUIRE));
}

// Numbers wrap round.
uint32_t later(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) > 0 ? a : b; }

uint32_t last_answered(const krasis_mailbox &mailbox) {
    return later(number_of(*krasis_slot_of(&mailbox, 0).reply), number_of(*krasis_slot_of(&mailbox, 1).reply));
}

} // namespace

krasis_server::krasis_server(krasis_pool &team, std::vector<krasis_experts> layers, const krasis_mailbox &mailbox)
    : team_(team), layers_(std::move(layers)), mailbox_(mailbox), answered_(last_answered(mailbox)),
      ids_(mailbox.tokens * mailbox.chosen), thread_(&krasis_server::serve, this) {}

krasis_server::~krasis_server() {
    ending_ = true;
    wake();
    thread_.join();
    team_.pool.stay_awake(false);
}

void krasis_server::wake() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        called_ = true;
    }
    called_on_.notify_one();
}

void krasis_server::serve() {
    rouse();
    while (!ending_) {
        if (spin())
            answer();
        else if (!ending_) {
            sleep();
            rouse();
        }
    }
}

bool krasis_server::posted() const {
    const uint32_t next = answered_ + 1;
    return __atomic_load_n(&krasis_slot_of(&mailbox_, next).post->number, __ATOMIC_ACQUIRE) == next && !frozen_;
}

// True once there is a post; false where patience ends, or the server.
bool krasis_server::spin() {
    auto since = Clock::now(), now = since;
    do {
        for (int i = 0; i < kPolls; i++) {
            if (posted())
                return true;
            krasis::pause();
        }
        if (called_.exchange(false))
            since = Clock::now();
        now = Clock::now();
        if (now - since > krasis::kEager)
            std::this_thread::yield();
    } while (now - since < kPatience && !ending_);
    return false;
}

// Returns once there is a post, or a call.
void krasis_server::sleep() {
    team_.pool.stay_awake(false);
    std::unique_lock<std::mutex> lock(mutex_);
    // A GPU that posts can't call.
    while (!called_ && !posted())
        called_on_.wait_for(lock, kNap);
}

// Wakes the pool's threads, and keeps them so.
void krasis_server::rouse() {
    team_.pool.stay_awake(true);
    krasis::alone(team_, [&] {
        team_.pool.run([](void *, int) {}, nullptr);
        return KRASIS_OK;
    });
}

void krasis_server::answer() {
    const auto since = Clock::now();
    const krasis_slot slot = krasis_slot_of(&mailbox_, ++answered_);
    const uint64_t status = compute(slot);
    posts_++;
    busy_ += std::chrono::nanoseconds(Clock::now() - since).count();
    __atomic_store_n(&slot.reply->word, answered_ | status << 32, __ATOMIC_RELEASE);
}

krasis_status krasis_server::compute(const krasis_slot &slot) {
    const int64_t layer = slot.post->layer, tokens = slot.post->tokens, chosen = mailbox_.chosen;
    const bool in_range = layer >= 0 && layer < static_cast<int64_t>(layers_.size()) && tokens >= 1 &&
                          tokens <= mailbox_.tokens;
    if (!in_range)
        return KRASIS_ERROR_SHAPE;
    krasis_experts experts = layers_[layer];
    std::copy_n(slot.ids, tokens * chosen, ids_.begin());
    const auto no_expert = [&](int64_t id) { return id < -1 || id >= experts.count; };
    if (slot.post->inner < 1 || std::any_of(ids_.begin(), ids_.begin() + tokens * chosen, no_expert))
        return KRASIS_ERROR_SHAPE;
    const int32_t size = experts.size;
    experts.size = std::min(slot.post->inner, size);
    const int64_t pairs =
        std::count_if(ids_.begin(), ids_.begin() + tokens * chosen, [](int64_t id) { return id >= 0; });
    pairs_ += pairs;
    bytes_ += pairs * (experts.stride * experts.size / size);
    const int64_t hidden = mailbox_.hidden;
    return krasis::alone(team_, [&] {
        team_.moe.run({experts, slot.x, tokens, hidden, ids_.data(), slot.weights, chosen, slot.y, hidden});
        return KRASIS_OK;
    });
}

namespace {

krasis_status check(const krasis_pool *pool, const krasis_experts *layers, int64_t count, const krasis_mailbox *mailbox) {
    if (!pool || !layers)
        return KRASIS_ERROR_NULL;
    if (const krasis_status status = krasis_mailbox_check(mailbox))
        return status;
    if (count < 1 || count > krasis::kMost)
        return KRASIS_ERROR_SHAPE;
    for (int64_t i = 0; i < count; i++) {
        if (const krasis_status status = krasis::check(layers[i]))
            return status;
        if (layers[i].hidden != mailbox->hidden)
            return KRASIS_ERROR_SHAPE;
    }
    return KRASIS_OK;
}

krasis_status create(krasis_pool *pool, const krasis_experts *layers, int64_t count, const krasis_mailbox *mailbox,
                     krasis_server **server) noexcept {
    if (const krasis_status status = check(pool, layers, count, mailbox))
        return status;
    return krasis::made(server, [&] { return new krasis_server(*pool, {layers, layers + count}, *mailbox); });
}

} // namespace

krasis_server *krasis_server_create(krasis_pool *pool, const krasis_experts *layers, int64_t count,
                                    const krasis_mailbox *mailbox, int *status) {
    krasis_server *server = nullptr;
    const krasis_status result = create(pool, layers, count, mailbox, &server);
    if (status)
        *status = result;
    return server;
}

void krasis_server_destroy(krasis_server *server) { delete server; }

void krasis_server_wake(krasis_server *server) {
    if (server)
        server->wake();
}

void krasis_server_counts(const krasis_server *server, int64_t *counts) {
    if (server && counts)
        server->counts(counts);
}

void krasis_server_freeze(krasis_server *server, int frozen) {
    if (server)
        server->freeze(frozen != 0);
}
