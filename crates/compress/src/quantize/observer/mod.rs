//! Observers: how the range of a value follows from what calibration saw of it.

mod entropy;
mod mse;

use serde::Deserialize;

use super::histogram::Bin;
use super::nodes::ActivationRange;
use super::statistics::Statistics;

/// A way to choose a range, in the table.
pub(crate) struct ObserverEntry {
    pub(crate) name: &'static str,
    choose: fn(&Seen) -> (f32, f32),
}

/// Every observer.
pub(crate) const OBSERVERS: &[ObserverEntry] = &[
    ObserverEntry { name: "minmax", choose: |seen| (seen.low, seen.high) },
    ObserverEntry { name: "moving-average", choose: |seen| seen.moving },
    ObserverEntry { name: "percentile", choose: percentile },
    ObserverEntry { name: "entropy", choose: entropy::range },
    ObserverEntry { name: "mse", choose: mse::range },
];

/// The setting: one of the table, or of all of them the one of least error, tensor by tensor.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Observer(pub(crate) Option<&'static ObserverEntry>);

impl TryFrom<String> for Observer {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name == "auto" {
            return Ok(Self(None));
        }
        OBSERVERS.iter().find(|entry| entry.name == name).map(|entry| Self(Some(entry))).ok_or_else(
            || {
                let known: Vec<&str> = OBSERVERS.iter().map(|entry| entry.name).collect();
                format!("no observer is called `{name}`; there are auto, {}", known.join(", "))
            },
        )
    }
}

impl Observer {
    /// The first of the table where it would be any.
    pub(crate) fn or_first(self) -> Self {
        Self(self.0.or(OBSERVERS.first()))
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.map_or("auto", |entry| entry.name))
    }
}

/// What observers look at.
pub(crate) struct Seen {
    low: f32,
    high: f32,
    moving: (f32, f32),
    bins: Vec<Bin>,
    /// Of the grid that a range is chosen for.
    level_max: u16,
}

/// A chosen range, and how it was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Chosen {
    pub(crate) range: ActivationRange,
    pub(crate) observer: &'static str,
    /// Error of what reads the value, relative to what it reads: √(Σ w·(x̂ − x)² / Σ w·x²).
    pub(crate) relative_error: f64,
}

impl Seen {
    /// What was seen, for levels from 0 to `level_max`; `None` where nothing was.
    pub(crate) fn new(statistics: &Statistics, level_max: u16) -> Option<Self> {
        let (low, high) = (statistics.lowest(), statistics.highest());
        let moving = statistics.moving?;
        let bins = statistics.histogram.occupied();
        Some(Self { low, high, moving, bins, level_max })
    }

    /// The observer's range, or of all observers' ranges that of the least error where `observer`
    /// is `None`. A tie goes to the first in the table.
    pub(crate) fn choose(&self, observer: Option<&'static ObserverEntry>) -> Chosen {
        let judged = |entry: &ObserverEntry| {
            let (low, high) = (entry.choose)(self);
            let range = self.range(low, high);
            Chosen { range, observer: entry.name, relative_error: self.relative_error(range) }
        };
        match observer {
            Some(entry) => judged(entry),
            None => OBSERVERS
                .iter()
                .map(judged)
                .min_by(|a, b| a.relative_error.total_cmp(&b.relative_error))
                .expect("the table is not empty"),
        }
    }

    /// A range that was chosen otherwise.
    pub(crate) fn judge(&self, range: ActivationRange, observer: &'static str) -> Chosen {
        Chosen { range, observer, relative_error: self.relative_error(range) }
    }

    fn range(&self, low: f32, high: f32) -> ActivationRange {
        ActivationRange::new(low, high, self.level_max)
    }

    fn relative_error(&self, range: ActivationRange) -> f64 {
        let power: f64 = self.bins.iter().map(|b| b.weight * f64::from(b.value).powi(2)).sum();
        if power == 0.0 { 0.0 } else { (mse::error(&self.bins, range).sum() / power).sqrt() }
    }
}

/// Part of the values that `percentile` leaves out at either end.
const TAIL: f64 = 1e-5;

/// The range without the outermost 1/100,000 of the values at either end.
fn percentile(seen: &Seen) -> (f32, f32) {
    let total: f64 = seen.bins.iter().map(|bin| bin.weight).sum();
    let low = behind_tail(seen.bins.iter(), TAIL * total);
    let high = behind_tail(seen.bins.iter().rev(), TAIL * total);
    (low.max(seen.low), high.min(seen.high))
}

fn behind_tail<'a>(mut bins: impl Iterator<Item = &'a Bin>, tail: f64) -> f32 {
    let mut passed = 0.0;
    let found = bins.find(|bin| {
        passed += bin.weight;
        passed > tail
    });
    found.map_or(0.0, |bin| bin.value)
}

#[cfg(test)]
mod tests {
    use attar_tensor::Tensor;

    use super::*;
    use crate::quantize::statistics::ChannelAxis;

    fn seen(values: &[f32]) -> Seen {
        let mut statistics = Statistics::new(ChannelAxis::Last, Vec::new());
        assert!(statistics.fold(&Tensor::new(&[values.len(), 1], values)));
        Seen::new(&statistics, 255).unwrap()
    }

    /// Values spread like a bell, by sums of a fixed sequence.
    fn bell(count: usize) -> Vec<f32> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 - 0.5
        };
        (0..count).map(|_| (0..12).map(|_| next()).sum()).collect()
    }

    #[test]
    fn every_observer_holds_the_bulk_and_auto_is_never_worse_than_any() {
        let mut values = bell(20_000);
        values.push(60.0);
        let seen = seen(&values);
        let auto = seen.choose(None);
        for entry in OBSERVERS {
            let chosen = seen.choose(Some(entry));
            assert!(auto.relative_error <= chosen.relative_error, "{}", entry.name);
            assert!(chosen.range.low() <= -2.5 && chosen.range.high() >= 2.5, "{}", entry.name);
        }
        assert!(auto.range.high() < 60.0, "{auto:?}");
    }

    #[test]
    fn constant_zero_and_denormal_tensors_keep_their_values() {
        for value in [0.0_f32, 5.0, -2.0, 1e-40, 3e38] {
            let seen = seen(&[value; 8]);
            for entry in OBSERVERS {
                let range = seen.choose(Some(entry)).range;
                let error = (range.rounded(value) - value).abs();
                assert!(error <= value.abs() * 0.01 + 1e-38, "{} {value}: {range:?}", entry.name);
            }
        }
    }

    #[test]
    fn a_huge_outlier_does_not_blur_the_others_where_it_weighs_nothing() {
        let mut statistics = Statistics::new(ChannelAxis::Last, vec![1.0, 0.0]);
        let rows: Vec<f32> = bell(4096).iter().flat_map(|&x| [x, 1e30]).collect();
        assert!(statistics.fold(&Tensor::new(&[4096, 2], &rows)));
        let chosen = Seen::new(&statistics, 255).unwrap().choose(None);
        assert!(chosen.relative_error < 0.01 && chosen.range.high() < 10.0, "{chosen:?}");
    }
}
