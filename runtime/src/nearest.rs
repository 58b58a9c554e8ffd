//! "Did you mean": the known names nearest to one that is not known.

/// How many letters must be added, dropped, changed or swapped to turn `a` into `b` (optimal string alignment).
#[must_use]
pub fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j - 1] + same).min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Up to three names from `known` that could have been meant, nearest first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let bound = name.chars().count() / 3 + 1;
    let name = name.to_lowercase();
    let mut near: Vec<_> = known
        .into_iter()
        .map(|known| {
            let lower = known.to_lowercase();
            let partial = name.len() >= 3 && (lower.contains(&name) || name.contains(&lower));
            let far = distance(&name, &lower);
            (if partial { far.min(bound) } else { far }, known)
        })
        .filter(|(distance, _)| *distance <= bound)
        .collect();
    near.sort();
    near.into_iter().map(|(_, known)| known).take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_names_come_first_and_far_ones_not_at_all() {
        let known = ["consensus-builder", "confidence-cascade", "voting"];
        assert_eq!(nearest("consensus-bilder", known), ["consensus-builder"]);
        assert_eq!(nearest("consensus", known), ["consensus-builder"]);
        assert_eq!(nearest("votin", ["multi-model-voting", "voting"]), ["voting", "multi-model-voting"]);
        assert!(nearest("zzzzzz", known).is_empty());
    }
}
