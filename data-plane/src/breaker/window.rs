//! How many of the recent calls failed: a sliding window of a few buckets, each one atomic word.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Buckets of a window. The oldest one is dropped as a whole, so a window is exact to a fifth.
const BUCKETS: usize = 5;
/// A bucket holds, from the top: which one it is (20 bits), calls, failures (22 bits each).
const COUNT: u32 = 22;
const MOST: u64 = (1 << COUNT) - 1;

/// The calls of the last while, whose length is told each time: when another is set, what was counted by the former
/// one is forgotten. Counting costs one atomic addition.
#[derive(Debug, Default)]
pub(crate) struct Window {
    buckets: [AtomicU64; BUCKETS],
}

impl Window {
    /// Counts a call. Past four million in a bucket it counts no more: their share is known well enough.
    pub(crate) fn count(&self, length: Duration, now: u64, well: bool) {
        let (cell, number) = self.at(now / bucket(length));
        let call = 1 << COUNT | u64::from(!well);
        let word = cell.load(Relaxed);
        if word >> (2 * COUNT) == number {
            if calls(word) < MOST {
                cell.fetch_add(call, Relaxed);
            }
        } else {
            // Of those who begin the bucket together one wins, and the others' calls are not missed.
            let _ = cell.compare_exchange(word, number << (2 * COUNT) | call, Relaxed, Relaxed);
        }
    }

    /// Calls, and failures among them.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn sum(&self, length: Duration, now: u64) -> (u32, u32) {
        let newest = now / bucket(length);
        let counted = (0..BUCKETS as u64).filter_map(|back| {
            let (cell, number) = self.at(newest.checked_sub(back)?);
            let word = cell.load(Relaxed);
            (word >> (2 * COUNT) == number).then_some((calls(word) as u32, (word & MOST) as u32))
        });
        counted.fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1))
    }

    pub(super) fn clear(&self) {
        self.buckets.iter().for_each(|bucket| bucket.store(0, Relaxed));
    }

    /// Where a bucket's count is, and its number there. Numbers come again after a million buckets.
    fn at(&self, bucket: u64) -> (&AtomicU64, u64) {
        let index = usize::try_from(bucket % BUCKETS as u64).expect("below five");
        (&self.buckets[index], bucket & 0xf_ffff)
    }
}

/// Milliseconds of one bucket.
fn bucket(length: Duration) -> u64 {
    (super::whole_millis(length) / BUCKETS as u64).max(1)
}

fn calls(word: u64) -> u64 {
    word >> COUNT & MOST
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(10);

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let window = Window::default();
        assert_eq!(window.sum(LENGTH, 0), (0, 0));
        for second in 0..10 {
            window.count(LENGTH, second * 1000, second % 2 == 0);
        }
        assert_eq!(window.sum(LENGTH, 9_999), (10, 5));
        assert_eq!(window.sum(LENGTH, 10_000), (8, 4), "the first two seconds have gone");
        assert_eq!(window.sum(LENGTH, 17_999), (2, 1));
        assert_eq!(window.sum(LENGTH, 18_000), (0, 0));
        window.count(LENGTH, 3_600_000, false);
        assert_eq!(window.sum(LENGTH, 3_600_000), (1, 1));
        window.clear();
        assert_eq!(window.sum(LENGTH, 3_600_000), (0, 0));
    }

    #[test]
    fn a_full_bucket_overflows_into_nothing() {
        let window = Window::default();
        window.count(LENGTH, 0, false);
        window.buckets[0].fetch_or(MOST << COUNT, Relaxed);
        window.count(LENGTH, 0, false);
        assert_eq!(window.sum(LENGTH, 0), (u32::try_from(MOST).unwrap(), 1));
    }

    #[test]
    fn cores_count_together() {
        let window = Window::default();
        window.count(LENGTH, 0, true);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|n| window.count(LENGTH, 1, n % 4 != 0)));
            }
        });
        assert_eq!(window.sum(LENGTH, 1), (40_001, 10_000));
    }
}
