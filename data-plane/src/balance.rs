//! Whom to ask: the power of two choices.
//!
//! Of two candidates drawn at random the one with fewer calls in flight (Mitzenmacher 2001; Envoy's
//! `LEAST_REQUEST` with two choices). It needs no order among agents and no state of its own, and one that
//! hangs fills up and is avoided.

/// Picks among those that are admitted, which need not be all.
pub(crate) fn pick<T>(
    candidates: &[T],
    admits: impl Fn(&T) -> bool,
    load: impl Fn(&T) -> usize,
    random: u64,
) -> Option<&T> {
    if let [only] = candidates {
        return admits(only).then_some(only);
    }
    let (first, second) = two(candidates.len(), random)?;
    let pair = (&candidates[first], &candidates[second]);
    if admits(pair.0) && admits(pair.1) {
        return Some(lighter(pair, load));
    }
    // Some are ejected: rare enough to look at each.
    let admitted: Vec<&T> = candidates.iter().filter(|candidate| admits(candidate)).collect();
    match admitted[..] {
        [] => None,
        [only] => Some(only),
        _ => {
            let (first, second) = two(admitted.len(), random)?;
            Some(lighter((admitted[first], admitted[second]), load))
        }
    }
}

fn lighter<'a, T>((a, b): (&'a T, &'a T), load: impl Fn(&T) -> usize) -> &'a T {
    if load(b) < load(a) { b } else { a }
}

/// Two different indexes below `n`, each pair equally likely; `None` below two.
#[allow(clippy::cast_possible_truncation)]
fn two(n: usize, random: u64) -> Option<(usize, usize)> {
    if n < 2 {
        return None;
    }
    // Multiply and shift: maps 32 random bits to a range without a division.
    let below = |bits: u64, n: usize| (((bits & 0xffff_ffff) * n as u64) >> 32) as usize;
    let first = below(random, n);
    let second = below(random >> 32, n - 1);
    Some((first, if second >= first { second + 1 } else { second }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws that cover both halves of the random word.
    fn draws() -> impl Iterator<Item = u64> {
        (0..1000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn share(candidates: &[(bool, usize)]) -> Vec<usize> {
        let mut hits = vec![0; candidates.len()];
        for random in draws() {
            if let Some(picked) = pick(candidates, |c| c.0, |c| c.1, random) {
                hits[candidates.iter().position(|c| std::ptr::eq(c, picked)).unwrap()] += 1;
            }
        }
        hits
    }

    #[test]
    fn equals_share_and_the_busiest_is_never_asked() {
        let hits = share(&[(true, 1), (true, 1), (true, 1)]);
        assert!(hits.iter().all(|n| (250..420).contains(n)), "{hits:?}");
        let hits = share(&[(true, 0), (true, 9), (true, 1)]);
        assert_eq!(hits[1], 0, "it loses against either of the others");
        assert!(hits[0] > hits[2]);
    }

    #[test]
    fn the_ejected_are_not_asked_and_the_last_one_standing_is() {
        let hits = share(&[(false, 0), (true, 5), (true, 5), (false, 0)]);
        assert_eq!((hits[0], hits[3]), (0, 0));
        assert!(hits[1] > 0 && hits[2] > 0);
        assert_eq!(share(&[(false, 0), (true, 99)]), [0, 1000]);
        assert_eq!(share(&[(true, 3)]), [1000]);
        assert_eq!(share(&[(false, 0), (false, 0)]), [0, 0]);
        assert_eq!(share(&[]), [0; 0]);
    }
}
