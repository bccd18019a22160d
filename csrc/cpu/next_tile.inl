// Included in a namespace, under the target pragma of its kernels.

// How many pixels the next register tile takes: `widest` while that many remain twice, then two halves, because a tile
// of one or two pixels waits for the latency of its own sums.
inline int next_tile(int remaining, int widest) {
    if (remaining <= widest) return remaining;
    return remaining < 2 * widest ? (remaining + 1) / 2 : widest;
}
