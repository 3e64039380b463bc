// The emulated device: fibers, their meetings, and the tensor-core instructions.
#include "device.cuh"

#include <memory>
#include <sys/mman.h>

/* Saves what the ABI of x86-64 keeps across calls on the stack, leaves the stack's pointer at `from`, and goes on with
 * `to`. */
extern "C" void krasis_switch_fiber(void **from, void *to);
asm(R"(
.text
.globl krasis_switch_fiber
.hidden krasis_switch_fiber
krasis_switch_fiber:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

namespace emulated {
namespace {

constexpr int kSaved = 6;

struct Stacks {
    char *base;
    Stacks() {
        base = static_cast<char *>(mmap(nullptr, (size_t)kMostThreads * kStack, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (base == MAP_FAILED)
            std::abort();
    }
    ~Stacks() { munmap(base, (size_t)kMostThreads * kStack); }
};

/* The next fiber that can run: of the same warp first, whose lanes meet most. Null where none can. */
Fiber *next() {
    Block &now = block();
    const int mine = now.running->number, first = mine / kLanes * kLanes;
    const int lanes = now.warps[mine / kLanes].lanes;
    for (int i = 1; i <= lanes; i++) {
        Fiber &other = now.fibers[first + (mine - first + i) % lanes];
        if (other.waits == Waits::kNothing && &other != now.running)
            return &other;
    }
    for (int i = 1; i < now.threads; i++) {
        Fiber &other = now.fibers[(mine + i) % now.threads];
        if (other.waits == Waits::kNothing)
            return &other;
    }
    return now.running->waits == Waits::kNothing ? now.running : nullptr;
}

void switch_to(Fiber *other) {
    Block &now = block();
    Fiber *from = now.running;
    if (other == from)
        return;
    now.running = other;
    krasis_switch_fiber(&from->stack_pointer, other->stack_pointer);
}

[[noreturn]] void fail(const char *what) {
    std::fprintf(stderr, "emulated device: %s\n", what);
    std::abort();
}

/* Wakes whoever waits for the block, once nobody else can run. Null where nobody is left. */
Fiber *release() {
    Block &now = block();
    Fiber *first = nullptr;
    for (int i = now.threads - 1; i >= 0; i--)
        if (now.fibers[i].waits == Waits::kBlock) {
            now.fibers[i].waits = Waits::kNothing;
            first = &now.fibers[i];
        }
    return first;
}

void begin() {
    Block &now = block();
    now.body(now.arguments);
    now.running->waits = Waits::kEver;
    if (!now.running->waited)
        fail("a thread that did not wait for the previous kernel");
    if (warp().arrived)
        fail("a lane ended while its warp was meeting");
    Fiber *other = next();
    if (!other)
        other = release();
    void *ended;
    if (!other)
        krasis_switch_fiber(&ended, now.host);
    now.running = other;
    krasis_switch_fiber(&ended, other->stack_pointer);
    __builtin_unreachable();
}

void run_block(char *stacks) {
    Block &now = block();
    for (int i = 0; i < now.threads; i++) {
        Fiber &fiber = now.fibers[i];
        const unsigned x = i % now.size.x, y = i / now.size.x % now.size.y, z = i / now.size.x / now.size.y;
        void **top = reinterpret_cast<void **>(stacks + (size_t)(i + 1) * kStack) - 2;
        *top = reinterpret_cast<void *>(begin);
        fiber.stack_pointer = top - kSaved, fiber.waits = Waits::kNothing;
        fiber.index = dim3(x, y, z), fiber.number = i, fiber.commits = 0, fiber.copies = 0, fiber.waited = false;
        if (i % kLanes == 0)
            now.warps[i / kLanes] = {now.threads - i < kLanes ? now.threads - i : kLanes, 0, 0, {}};
    }
    now.running = &now.fibers[0];
    krasis_switch_fiber(&now.host, now.fibers[0].stack_pointer);
}

} // namespace

Block &block() {
    static thread_local std::unique_ptr<Block> found(new Block);
    return *found;
}

void run(dim3 grid, dim3 size, void (*body)(void *), void *arguments) {
    static thread_local Stacks stacks;
    Block &now = block();
    now.size = size, now.grid = grid;
    now.threads = size.x * size.y * size.z;
    now.body = body, now.arguments = arguments;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                now.index = dim3(x, y, z);
                run_block(stacks.base);
            }
}

void wait_for_block() {
    self().waits = Waits::kBlock;
    Fiber *other = next();
    switch_to(other ? other : release());
}

void leave(const void *mine, size_t bytes) { std::memcpy(left(warp().meetings, lane()), mine, bytes); }

void copy(void *to, const void *from, bool valid) {
    Fiber &mine = self();
    if (!mine.waited)
        fail("an asynchronous copy before the previous kernel has ended");
    if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16))
        fail("an asynchronous copy that is not aligned to 16 bytes");
    if (mine.copies == kMostCopies)
        fail("too many asynchronous copies under way");
    mine.under_way[mine.copies++] = {to, from, valid, mine.commits};
}

void wait_for_copies(unsigned left) {
    Fiber &mine = self();
    int kept = 0;
    for (int i = 0; i < mine.copies; i++) {
        const Copy &found = mine.under_way[i];
        if (found.commit + left >= mine.commits)
            mine.under_way[kept++] = found;
        else if (found.valid)
            std::memcpy(found.to, found.from, 16);
        else
            std::memset(found.to, 0, 16);
    }
    mine.copies = kept;
}

unsigned meet(void (*last)(unsigned)) {
    Warp &mine = warp();
    const unsigned meeting = mine.meetings;
    if (++mine.arrived == mine.lanes) {
        if (last)
            last(meeting);
        mine.arrived = 0;
        mine.meetings++;
        return meeting;
    }
    while (mine.meetings == meeting) {
        Fiber *other = next();
        if (other == block().running || !other)
            fail("a warp meets without all of its lanes");
        switch_to(other);
    }
    return meeting;
}

namespace {

struct Fragments {
    float *d;
    const uint32_t *ab; // a[4], b[2]
};

struct Rows {
    uint32_t *r;
    const char *row;
};

template <class T> const T &left_by(unsigned meeting, int lane) {
    return *static_cast<const T *>(left(meeting, lane));
}

void multiply(unsigned meeting) {
    float a[16][16], b[16][8];
    // PTX ISA, fragments of mma.m16n8k16: lane 4 g + t holds rows g and g + 8, columns 2 t, 2 t + 1 and 8 further.
    for (int lane = 0; lane < kLanes; lane++) {
        const uint32_t *words = left_by<Fragments>(meeting, lane).ab;
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            a[g + i % 2 * 8][2 * t + i / 2 * 8] = low_float(words[i]);
            a[g + i % 2 * 8][2 * t + i / 2 * 8 + 1] = high_float(words[i]);
        }
        for (int i = 0; i < 2; i++) {
            b[2 * t + i * 8][g] = low_float(words[4 + i]);
            b[2 * t + i * 8 + 1][g] = high_float(words[4 + i]);
        }
    }
    for (int lane = 0; lane < kLanes; lane++) {
        float *d = left_by<Fragments>(meeting, lane).d;
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < 16; k++)
                sum += a[row][k] * b[k][column];
            d[i] += sum;
        }
    }
}

template <bool Turned> void distribute(unsigned meeting) {
    for (int lane = 0; lane < kLanes; lane++)
        for (int i = 0; i < 4; i++) {
            uint16_t two[2];
            for (int j = 0; j < 2; j++) {
                const int row = Turned ? 2 * (lane % 4) + j : lane / 4, column = Turned ? lane / 4 : 2 * (lane % 4) + j;
                std::memcpy(&two[j], left_by<Rows>(meeting, 8 * i + row).row + 2 * column, 2);
            }
            left_by<Rows>(meeting, lane).r[i] = two[0] | (uint32_t)two[1] << 16;
        }
}

} // namespace

void mma(float *d, const uint32_t *a, const uint32_t *b) {
    const uint32_t ab[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const Fragments mine{d, ab};
    leave(&mine, sizeof mine);
    meet(multiply);
}

void load_matrix(uint32_t *r, const void *row, bool turned) {
    if ((uintptr_t)row % 16)
        fail("ldmatrix of a row that is not aligned to 16 bytes");
    const Rows mine{r, static_cast<const char *>(row)};
    leave(&mine, sizeof mine);
    meet(turned ? distribute<true> : distribute<false>);
}

} // namespace emulated
