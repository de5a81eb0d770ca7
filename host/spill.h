/* Spill: a scratch file that tensors go to and come back from in the background. The file has no name, so nothing is left behind,
 * and bypasses the page cache where the file system can (O_DIRECT), so that it is not charged as memory.
 * One thread does the input and output; all calls come from one other. */
#ifndef ONN_SPILL_H
#define ONN_SPILL_H

#include "tensor.h"

typedef struct Spill Spill;
typedef struct Ticket Ticket; /* one tensor in the file */

typedef struct SpillStats {
    uint64_t written, read; /* bytes, as tensors count them */
    uint64_t held;          /* bytes of memory that writes under way hold */
    uint64_t file;          /* end of the last place in use; the file itself is never cut, and may be longer */
    double waited;          /* seconds that calls have waited for the disk */
    int direct;             /* whether the page cache is bypassed */
} SpillStats;

/* spill_open() : makes the file in `directory`. While writes under way hold `limit` bytes, spill_write() waits. */
Status spill_open(const char *directory, size_t limit, Spill **out);

/* spill_close() : ends what is running and drops all else, written or not. Tickets that are left take spill_forget() only. */
void spill_close(Spill *s);

/* spill_write() : begins to write `t`, contiguous; its contents may not change until that is done. The storage is held till then.
 * A write that failed in the background is told of by the next spill_write(), spill_read() or spill_wait(), once: that call has
 * then done nothing. Its tensor stays in memory, readable as if it had been written. */
Status spill_write(Spill *s, const Tensor *t, Ticket **out);

/* spill_prefetch() : begins to read back. @return : 0 where memory is refused, or there is nothing to read. */
int spill_prefetch(Ticket *k);

/* spill_read() : waits for the tensor, and gives it to `t`; read again, it is another copy. While its write is under way (or has
 * failed) it is the very storage that was written. ERR_MEMORY over budget. */
Status spill_read(Ticket *k, Tensor *t);

/* spill_forget() : ends the ticket; at any time. */
void spill_forget(Ticket *k);

/* spill_wait() : until nothing is under way. */
Status spill_wait(Spill *s);
SpillStats spill_stats(Spill *s);

#endif
