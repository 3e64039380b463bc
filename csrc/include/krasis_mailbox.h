/* A mailbox in the host's memory: a GPU posts tokens and their cold experts, a server on the CPU answers with the sum.
 *
 * The memory is zeroed, cached by the CPU (not write-combined), mapped for the device, and aligned to 128 bytes. What
 * either side polls has a line of its own:
 *
 *     krasis_trouble                        one line
 *     slot 0, slot 1                        post n uses slot n % 2; the first post is 1
 *
 * and a slot, each part rounded up to whole lines:
 *
 *     krasis_post                           one line
 *     krasis_reply                          one line
 *     x        float32 [tokens][hidden]
 *     ids      int32   [tokens][chosen]     -1: not for the CPU
 *     weights  float32 [tokens][chosen]
 *     y        float32 [tokens][hidden]
 *
 * Whoever posts fills x, ids, weights, layer, tokens and inner, and then stores `number` with release. The server answers posts
 * in order: it fills y, and then stores the reply with release. At most two posts are unanswered. */
#ifndef KRASIS_MAILBOX_H
#define KRASIS_MAILBOX_H

#include "krasis.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KRASIS_MAILBOX_LINE 128
#define KRASIS_MAILBOX_SLOTS 2
#define KRASIS_MOST_POSTED_TOKENS 8
#define KRASIS_MOST_POSTED_CHOSEN 64
#define KRASIS_MOST_POSTED_HIDDEN 8192

/* `tokens` is the most of a post, `chosen` the experts of each, `hidden` a multiple of 4. `memory` is the address for
 * whoever is given this. */
typedef struct krasis_mailbox {
    void *memory;
    int32_t tokens, chosen, hidden;
} krasis_mailbox;

typedef struct krasis_post {
    uint32_t number;
    int32_t layer, tokens;
    int32_t inner; /* only the first so many features between w13 and w2 are the CPU's; all, where there are not as many */
    uint8_t unused[KRASIS_MAILBOX_LINE - 16];
} krasis_post;

typedef struct krasis_reply {
    uint64_t word; /* number | krasis_status << 32, stored at once; y holds only where the status is KRASIS_OK */
    uint8_t unused[KRASIS_MAILBOX_LINE - 8];
} krasis_reply;

/* Of whoever waits: the krasis_status of a post that failed, KRASIS_ERROR_TIMEOUT where no reply came. */
typedef struct krasis_trouble {
    uint32_t status;
    uint8_t unused[KRASIS_MAILBOX_LINE - 4];
} krasis_trouble;

typedef struct krasis_slot {
    krasis_post *post;
    krasis_reply *reply;
    float *x;
    int32_t *ids;
    float *weights;
    float *y;
} krasis_slot;

static inline int64_t krasis_mailbox_lines(int64_t bytes) {
    return (bytes + KRASIS_MAILBOX_LINE - 1) / KRASIS_MAILBOX_LINE * KRASIS_MAILBOX_LINE;
}

static inline int64_t krasis_slot_bytes(const krasis_mailbox *box) {
    const int64_t rows = krasis_mailbox_lines((int64_t)4 * box->tokens * box->hidden);
    const int64_t pairs = krasis_mailbox_lines((int64_t)4 * box->tokens * box->chosen);
    return 2 * KRASIS_MAILBOX_LINE + 2 * rows + 2 * pairs;
}

static inline int64_t krasis_mailbox_bytes(const krasis_mailbox *box) {
    return KRASIS_MAILBOX_LINE + KRASIS_MAILBOX_SLOTS * krasis_slot_bytes(box);
}

/* That of a post's number. */
static inline krasis_slot krasis_slot_of(const krasis_mailbox *box, uint32_t number) {
    const int64_t rows = krasis_mailbox_lines((int64_t)4 * box->tokens * box->hidden);
    const int64_t pairs = krasis_mailbox_lines((int64_t)4 * box->tokens * box->chosen);
    char *at = (char *)box->memory + KRASIS_MAILBOX_LINE + number % KRASIS_MAILBOX_SLOTS * krasis_slot_bytes(box);
    krasis_slot slot;
    slot.post = (krasis_post *)at;
    slot.reply = (krasis_reply *)(at += KRASIS_MAILBOX_LINE);
    slot.x = (float *)(at += KRASIS_MAILBOX_LINE);
    slot.ids = (int32_t *)(at += rows);
    slot.weights = (float *)(at += pairs);
    slot.y = (float *)(at + pairs);
    return slot;
}

/* KRASIS_OK, or what is wrong with the sizes or the address. */
static inline krasis_status krasis_mailbox_check(const krasis_mailbox *box) {
    if (!box || !box->memory)
        return KRASIS_ERROR_NULL;
    if ((uintptr_t)box->memory % KRASIS_MAILBOX_LINE)
        return KRASIS_ERROR_ALIGNMENT;
    const int fits = box->tokens >= 1 && box->tokens <= KRASIS_MOST_POSTED_TOKENS && box->chosen >= 1 &&
                     box->chosen <= KRASIS_MOST_POSTED_CHOSEN && box->hidden >= 4 &&
                     box->hidden <= KRASIS_MOST_POSTED_HIDDEN && box->hidden % 4 == 0;
    return fits ? KRASIS_OK : KRASIS_ERROR_SHAPE;
}

/* A thread that answers posts of `count` layers on a pool, as krasis_moe does: a token's result is bit for bit that of its
 * pairs without those of id -1, zeros where none is left, by experts whose `size` is the post's `inner`. A post of a layer,
 * number of tokens or id that there is not, or with inner < 1, is answered with KRASIS_ERROR_SHAPE. The pool and what the layers point to outlive the server; a pool has one server.
 *
 * The server and the pool's threads spin, so that a post is taken at once. After 50 ms without one they sleep, and the
 * server looks every 100 us. `status`, if not null, receives the reason for a null result. */
typedef struct krasis_server krasis_server;

KRASIS_API krasis_server *krasis_server_create(krasis_pool *pool, const krasis_experts *layers, int64_t count,
                                               const krasis_mailbox *mailbox, int *status);
/* Ends once the post at hand is answered; others stay unanswered. */
KRASIS_API void krasis_server_destroy(krasis_server *server);
/* Posts will come soon: spin from now on. */
KRASIS_API void krasis_server_wake(krasis_server *server);
/* counts[4]: posts answered so far, their (token, expert) pairs, nanoseconds spent on them, and bytes of records that are
 * the share of the features computed of each pair. */
KRASIS_API void krasis_server_counts(const krasis_server *server, int64_t *counts);
/* While `frozen` is not 0, posts are not taken: for tests of those who wait. */
KRASIS_API void krasis_server_freeze(krasis_server *server, int frozen);

#ifdef __cplusplus
}
#endif

#endif
