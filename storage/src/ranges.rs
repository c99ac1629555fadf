//! Sets of byte ranges. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of bytes, kept as sorted ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    // start -> end
    ranges: BTreeMap<u64, u64>,
    total: u64,
}

/// How the ranges of a set changed, for a store that mirrors them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeChange {
    /// Starts of ranges that are gone.
    pub removed: Vec<u64>,
    /// Ranges that are new.
    pub added: Vec<Range<u64>>,
}

impl RangeSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes in the set.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether there is nothing in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) -> RangeChange {
        let mut change = RangeChange::default();
        if range.is_empty() || self.contains(&range) {
            return change;
        }
        let mut merged = range;
        // Ranges that overlap or touch: all start at or before the end, and end at or after the start.
        while let Some((&start, &end)) = self.ranges.range(..=merged.end).next_back() {
            if end < merged.start {
                break;
            }
            merged = merged.start.min(start)..merged.end.max(end);
            self.take(start, &mut change);
        }
        self.put(merged, &mut change);
        change
    }

    /// Removes a range.
    pub fn remove(&mut self, range: &Range<u64>) -> RangeChange {
        let mut change = RangeChange::default();
        if range.is_empty() {
            return change;
        }
        while let Some((&start, &end)) = self.ranges.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.take(start, &mut change);
            if range.end < end {
                self.put(range.end..end, &mut change);
            }
            if start < range.start {
                self.put(start..range.start, &mut change);
                break;
            }
        }
        change
    }

    /// Whether every byte of the range is in the set; true for an empty range.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        if range.is_empty() {
            return true;
        }
        let holder = self.ranges.range(..=range.start).next_back();
        holder.is_some_and(|(_, &end)| range.end <= end)
    }

    /// How many bytes of the range are in the set.
    pub fn overlap(&self, range: &Range<u64>) -> u64 {
        self.within(range).map(|part| part.end - part.start).sum()
    }

    /// Whether any byte of the range is in this set and not in the other.
    pub fn any_missing_from(&self, other: &RangeSet, range: &Range<u64>) -> bool {
        self.within(range).any(|part| !other.contains(&part))
    }

    /// The parts of the set within the range.
    pub fn within<'a>(&'a self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + 'a {
        let Range { start, end } = range.clone();
        let before = self.ranges.range(..=start).next_back();
        let first = before.map_or(start, |(&first, _)| first);
        let last = end.max(first);
        self.ranges
            .range(first..last)
            .map(move |(&s, &e)| s.max(start)..e.min(end))
            .filter(|part| part.start < part.end)
    }

    fn take(&mut self, start: u64, change: &mut RangeChange) {
        if let Some(end) = self.ranges.remove(&start) {
            self.total -= end - start;
            change.removed.push(start);
        }
    }

    fn put(&mut self, range: Range<u64>, change: &mut RangeChange) {
        self.total += range.end - range.start;
        self.ranges.insert(range.start, range.end);
        change.added.push(range);
    }
}

impl FromIterator<Range<u64>> for RangeSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIVERSE: u64 = 64;

    fn bytes(set: &RangeSet) -> Vec<bool> {
        let mut bytes = vec![false; UNIVERSE as usize];
        for range in set.iter() {
            for byte in range {
                assert!(!bytes[byte as usize], "ranges overlap");
                bytes[byte as usize] = true;
            }
        }
        bytes
    }

    fn any_range() -> impl Strategy<Value = Range<u64>> {
        (0..UNIVERSE, 0..UNIVERSE).prop_map(|(a, b)| a.min(b)..a.max(b))
    }

    fn mirror(kept: &mut BTreeMap<u64, u64>, change: RangeChange) {
        for start in change.removed {
            kept.remove(&start);
        }
        for range in change.added {
            kept.insert(range.start, range.end);
        }
    }

    proptest! {
        #[test]
        fn a_set_of_ranges_is_a_set_of_bytes(
            steps in prop::collection::vec((any::<bool>(), any_range()), 0..40),
            probe in any_range(),
        ) {
            let mut set = RangeSet::new();
            let mut model = vec![false; UNIVERSE as usize];
            let mut kept = BTreeMap::new();
            for (insert, range) in steps {
                for byte in range.clone() {
                    model[byte as usize] = insert;
                }
                let change = if insert { set.insert(range) } else { set.remove(&range) };
                mirror(&mut kept, change);
            }
            prop_assert_eq!(bytes(&set), model.clone());
            prop_assert_eq!(&kept, &set.ranges);
            prop_assert_eq!(set.total(), model.iter().filter(|b| **b).count() as u64);
            let inside = probe.clone().filter(|b| model[*b as usize]).count() as u64;
            prop_assert_eq!(set.overlap(&probe), inside);
            prop_assert_eq!(set.contains(&probe), inside == probe.end - probe.start);
        }

        #[test]
        fn missing_is_what_one_set_has_and_the_other_lacks(
            wanted in prop::collection::vec(any_range(), 0..8),
            present in prop::collection::vec(any_range(), 0..8),
            probe in any_range(),
        ) {
            let wanted: RangeSet = wanted.into_iter().collect();
            let present: RangeSet = present.into_iter().collect();
            let (w, p) = (bytes(&wanted), bytes(&present));
            let expected = probe.clone().any(|b| w[b as usize] && !p[b as usize]);
            prop_assert_eq!(wanted.any_missing_from(&present, &probe), expected);
        }
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let set: RangeSet = [0..4, 8..12, 4..8].into_iter().collect();
        assert!(set.iter().eq(std::iter::once(0..12)));
    }
}
