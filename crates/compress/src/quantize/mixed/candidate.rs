//! What each format costs a weight and the outputs, and the formats that a budget allows.

use std::collections::BTreeMap;

use attar_graph::Model;

use super::super::weights::HALF_MIN;
use super::MixedQuantize;
use crate::reference::Reference;
use crate::sensitivity::{
    BitsOptions, Format, Level, Measured, Predicted, bits_sensitivity, hull, predicted_errors,
    reach_of_bits,
};
use crate::{Context, Estimate, PassError};

/// What has a weight's place on its curve.
pub(super) struct Candidate {
    pub(super) name: String,
    /// By falling bytes: the format, bytes, and the squared error of the outputs.
    points: Vec<(Format, f64, f64)>,
    /// Index of what it has.
    chosen: usize,
}

impl Candidate {
    pub(super) fn format(&self) -> Format {
        self.points[self.chosen].0
    }

    /// What it got, and what is predicted of that.
    pub(super) fn remark(&self, names_blocks: bool) -> String {
        let ((bits, block), _, error) = self.points[self.chosen];
        let of_blocks = match block {
            block if names_blocks && block > 0 => format!(", blocks of {block}"),
            _ => String::new(),
        };
        let percent = 100.0 * error.sqrt();
        format!("`{}` in {bits} bits{of_blocks}: {percent:.2} % of the outputs", self.name)
    }
}

/// By weight, bits with the relative error of the outputs where it alone has so few, in the largest
/// blocks.
type Reach = BTreeMap<String, Vec<(u32, f64)>>;

impl MixedQuantize {
    /// Every weight and table with what each format costs.
    pub(super) fn candidates(
        &self,
        model: &Model,
        context: &Context,
    ) -> Result<Vec<Candidate>, PassError> {
        let mut bits: Vec<u32> = self.bits.iter().map(|bits| bits.0).filter(|b| *b != 32).collect();
        bits.sort_unstable_by(|a, b| b.cmp(a));
        bits.dedup();
        let Some(&fewest) = bits.last() else { return Ok(Vec::new()) };
        let blocks = self.blocks();
        let block = blocks.iter().copied().max().unwrap_or(0);
        let options = BitsOptions { bits: bits.clone(), measured: Vec::new(), block, seed: 0 };
        let reach = match reach_of_bits(model, context, &options) {
            // No gradient flows through some operator of it.
            Err(PassError::Train(_) | PassError::NotFinite { .. }) => {
                let measured = if fewest == 2 && self.has(4) { vec![4, 2] } else { vec![fewest] };
                measured_reach(model, context, &BitsOptions { measured, ..options })?
            }
            reach => reach?.into_iter().map(|(name, reach)| (name, vec![reach])).collect(),
        };
        let all = predicted_errors(model, context, &bits, &blocks)?;
        Ok(all.iter().map(|one| self.candidate(one, block, reach.get(&one.name))).collect())
    }

    /// `reach` is of blocks of `block`.
    fn candidate(
        &self,
        predicted: &Predicted,
        block: usize,
        reach: Option<&Vec<(u32, f64)>>,
    ) -> Candidate {
        let reach = reach.map_or(&[][..], Vec::as_slice);
        // How much of the error of a product reaches the outputs, as it was found for these bits, or
        // for the fewest.
        let share = |bits: u32| {
            let same = reach.iter().find(|(known, _)| *known == bits);
            let &(bits, reached) = same.or(reach.last())?;
            let of_bits = predicted.errors.iter().filter(|((own, _), _)| *own == bits);
            // Blocks of its own, where a weight has not as many inputs.
            let usual = if predicted.is_table && bits == 8 { 0 } else { block };
            let (_, error) = of_bits.max_by_key(|((_, own), _)| match own {
                own if *own == usual => usize::MAX,
                0 => usize::MAX - 1,
                own => *own,
            })?;
            (*error > 0.0).then(|| reached / error)
        };
        let count = predicted.element_count as f64;
        let mut points: Vec<(Format, f64, f64)> = Vec::new();
        if self.has(32) {
            points.push(((32, 0), 4.0 * count, 0.0));
        }
        let left = if predicted.is_table { TABLE_LEFT } else { WEIGHT_LEFT };
        for &(format, error) in &predicted.errors {
            let error = left * share(format.0).unwrap_or(1.0) * error;
            points.push((format, bytes_of(predicted, format), error.powi(2)));
        }
        points.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.2.total_cmp(&b.2)));
        // On the hull alone: bytes saved against error.
        let first = points.first().map_or(0.0, |point| point.1);
        let line: Vec<(f64, f64)> =
            points.iter().map(|(_, bytes, error)| (first - bytes, *error)).collect();
        let on_hull = hull(&line);
        points.retain(|(_, bytes, error)| on_hull.contains(&(first - bytes, *error)));
        Candidate { name: predicted.name.clone(), points, chosen: 0 }
    }

    /// Takes the steps that cost least for the bytes that they save, until the budget is met.
    pub(super) fn choose(
        &self,
        candidates: &mut [Candidate],
        fixed_bytes: f64,
        bytes_before: f64,
    ) -> bool {
        let bytes_max = match (self.size_ratio, self.error_max) {
            (Some(ratio), _) => ratio.get() * bytes_before,
            (None, Some(_)) => 0.0,
            (None, None) => 0.25 * bytes_before,
        };
        let error_max = self.error_max.map_or(f64::INFINITY, |error| error * error);
        loop {
            let bytes: f64 =
                candidates.iter().map(|c| c.points[c.chosen].1).sum::<f64>() + fixed_bytes;
            let error: f64 = candidates.iter().map(|c| c.points[c.chosen].2).sum();
            if bytes <= bytes_max {
                give_back(candidates, bytes_max - bytes);
                return true;
            }
            let price = |c: &Candidate| {
                let (now, next) = (c.points[c.chosen], c.points.get(c.chosen + 1)?);
                let cost = next.2 - now.2;
                (error + cost <= error_max).then_some(cost / (now.1 - next.1))
            };
            let steps = candidates.iter().enumerate();
            let cheapest = steps
                .filter_map(|(index, c)| Some((index, price(c)?)))
                .min_by(|a, b| a.1.total_cmp(&b.1));
            match cheapest {
                Some((index, _)) => candidates[index].chosen += 1,
                None => return bytes_max == 0.0,
            }
        }
    }
}

/// Spends what the last step saved too much: of the steps that fit, the one back that gains most, until
/// none fits.
fn give_back(candidates: &mut [Candidate], mut rest: f64) {
    loop {
        let gain = |c: &Candidate| {
            let (now, before) = (c.points[c.chosen], c.points.get(c.chosen.checked_sub(1)?)?);
            let bytes = before.1 - now.1;
            (bytes <= rest && now.2 > before.2).then_some((now.2 - before.2, bytes))
        };
        let best = (candidates.iter().enumerate())
            .filter_map(|(index, c)| Some((index, gain(c)?)))
            .max_by(|a, b| a.1.0.total_cmp(&b.1.0));
        let Some((index, (_, bytes))) = best else { return };
        candidates[index].chosen -= 1;
        rest -= bytes;
    }
}

/// What rounding by second moments, in sequence, leaves of the error of the nearest levels, which is
/// predicted: MiniLM-L6 in 4 bits, on texts outside the calibration data.
const WEIGHT_LEFT: f64 = 0.36;
/// The same of a table by gradients.
const TABLE_LEFT: f64 = 0.67;

/// With scales and zero points.
fn bytes_of(predicted: &Predicted, (bits, block): Format) -> f64 {
    let (count, outputs) = (predicted.element_count, predicted.output_count.max(1));
    let bytes_each = f64::from(bits) / 8.0;
    let bytes = count as f64 * bytes_each;
    match (bits, block) {
        (16, _) => bytes,
        // A scale of f32 for each row.
        (8, 0) if predicted.is_table => bytes + 4.0 * outputs as f64,
        (_, 0) => bytes + (4.0 + bytes_each) * outputs as f64,
        (_, block) => {
            let scales = outputs * (count / outputs).div_ceil(block);
            let scale_bytes = if scales < HALF_MIN { 4.0 } else { 2.0 };
            bytes + (scale_bytes + bytes_each) * scales as f64
        }
    }
}

/// How much of the outputs is lost with fewer bits for each weight, measured one by one.
fn measured_reach(
    model: &Model,
    context: &Context,
    options: &BitsOptions,
) -> Result<Reach, PassError> {
    let reference = Reference::new(model, context)?;
    let mut measure = |model: &Model, _: [usize; 2]| {
        let output_error = Some(exactly(reference.lost(model)?.sqrt()));
        Ok::<_, PassError>(Measured { output_error, metric: None })
    };
    let found = bits_sensitivity(model, context, options, &mut measure)?;
    let of_levels = |levels: &[crate::LevelSensitivity]| {
        let measured = levels.iter().filter_map(|level| match level.level {
            Level::Bits(bits) => Some((bits, level.output_error?.value)),
            Level::Sparsity(_) => None,
        });
        measured.collect()
    };
    Ok(found.tensors.iter().map(|t| (t.name.clone(), of_levels(&t.levels))).collect())
}

/// Without an interval.
fn exactly(value: f64) -> Estimate {
    Estimate { value, low: value, high: value }
}

pub(super) fn summary(candidates: &[Candidate], fixed: f64, before: f64) -> String {
    let count = |bits: u32| {
        candidates.iter().filter(|candidate| candidate.points[candidate.chosen].0.0 == bits).count()
    };
    let counts: Vec<String> = [2, 4, 8, 16, 32]
        .into_iter()
        .filter(|&bits| count(bits) > 0)
        .map(|bits| format!("{} in {bits} bits", count(bits)))
        .collect();
    let bytes: f64 = candidates.iter().map(|c| c.points[c.chosen].1).sum::<f64>() + fixed;
    let error: f64 = candidates.iter().map(|c| c.points[c.chosen].2).sum();
    format!(
        "{}: {:.1} % of the bytes, for a predicted {:.1} % of the outputs",
        counts.join(", "),
        100.0 * bytes / before,
        100.0 * error.sqrt()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, points: &[(u32, f64, f64)]) -> Candidate {
        let points = points.iter().map(|&(bits, bytes, error)| ((bits, 64), bytes, error));
        Candidate { name: name.into(), points: points.collect(), chosen: 0 }
    }

    fn pass(settings: &str) -> MixedQuantize {
        settings.parse::<toml::Table>().unwrap().try_into().unwrap()
    }

    fn bits(candidates: &[Candidate]) -> Vec<u32> {
        candidates.iter().map(|c| c.points[c.chosen].0.0).collect()
    }

    fn two() -> [Candidate; 2] {
        [
            candidate("robust", &[(16, 200.0, 0.0), (8, 100.0, 0.01), (4, 50.0, 0.02)]),
            candidate("fragile", &[(16, 200.0, 0.0), (8, 100.0, 0.1), (4, 50.0, 9.0)]),
        ]
    }

    #[test]
    fn what_minds_least_gets_the_fewest_bits() {
        let mut candidates = two();
        assert!(pass("size_ratio = 0.2").choose(&mut candidates, 0.0, 800.0));
        assert_eq!(bits(&candidates), [4, 8]);
        let mut candidates = two();
        assert!(pass("size_ratio = 0.125").choose(&mut candidates, 0.0, 800.0));
        assert_eq!(bits(&candidates), [4, 4]);
        let mut candidates = two();
        assert!(!pass("size_ratio = 0.1").choose(&mut candidates, 0.0, 800.0), "out of reach");
    }

    #[test]
    fn what_the_last_step_leaves_is_spent() {
        let mut candidates = [
            candidate("large", &[(8, 100.0, 0.0), (4, 50.0, 1.0)]),
            candidate("small", &[(8, 10.0, 0.0), (4, 5.0, 0.05)]),
            candidate("quiet", &[(8, 10.0, 0.0), (4, 5.0, 0.04)]),
        ];
        // The small ones go first, and are not enough; with the large one there is room for one of them.
        assert!(pass("size_ratio = 0.55").choose(&mut candidates, 0.0, 120.0));
        assert_eq!(bits(&candidates), [4, 8, 4]);
    }

    #[test]
    fn an_error_is_not_passed() {
        let mut candidates = two();
        // Squared: 0.09.
        assert!(pass("error_max = 0.3").choose(&mut candidates, 0.0, 800.0));
        assert_eq!(bits(&candidates), [4, 16]);
    }

    #[test]
    fn bits_without_gain_are_passed_over() {
        // 8 bits lose as much as 4.
        let errors = [((16, 0), 0.0), ((8, 64), 0.1), ((4, 64), 0.1)].to_vec();
        let found = points(&pass(""), errors, 100);
        assert_eq!(found, [(16, 0), (4, 64)]);
    }

    fn points(pass: &MixedQuantize, errors: Vec<(Format, f64)>, count: usize) -> Vec<Format> {
        let predicted = Predicted {
            name: "w".into(),
            is_table: false,
            element_count: count,
            output_count: 1,
            errors,
        };
        let reach = vec![(4, 0.02)];
        let candidate = pass.candidate(&predicted, 128, Some(&reach));
        candidate.points.iter().map(|point| point.0).collect()
    }

    #[test]
    fn of_several_blocks_those_remain_that_gain_for_their_bytes() {
        let errors = [
            ((8, 128), 0.001),
            ((4, 32), 0.06),
            // Hardly better than blocks of 128, and larger.
            ((4, 64), 0.099),
            ((4, 128), 0.1),
        ];
        let found = points(&pass("block = [32, 64, 128]"), errors.to_vec(), 1 << 14);
        assert_eq!(found, [(8, 128), (4, 32), (4, 128)]);
        assert_eq!(pass("block = [32, 0]").blocks(), [0, 32]);
        for (settings, expected) in [
            ("block = [24]", "block is 24, expected 0 or a power of 2 from 16 on"),
            ("block = []", "block is [], expected a number of inputs or a list of them"),
            ("block = \"all\"", "block is \"all\", expected a number of inputs or a list of them"),
        ] {
            let found = settings.parse::<toml::Table>().unwrap().try_into::<MixedQuantize>();
            assert!(found.unwrap_err().to_string().contains(expected), "{settings}");
        }
    }

    #[test]
    fn bytes_are_those_of_levels_scales_and_zero_points() {
        let predicted = |is_table| Predicted {
            name: "w".into(),
            is_table,
            element_count: 384 * 100,
            output_count: 100,
            errors: Vec::new(),
        };
        let bytes = |is_table, format| bytes_of(&predicted(is_table), format);
        assert_eq!(bytes(false, (16, 0)), 76_800.0);
        assert_eq!(bytes(true, (8, 0)), 38_400.0 + 400.0);
        assert_eq!(bytes(false, (8, 0)), 38_400.0 + 500.0);
        // Twelve blocks of 32 each.
        assert_eq!(bytes(false, (4, 32)), 19_200.0 + 1200.0 * 2.5);
        // 100 scales are too few for f16.
        assert_eq!(bytes(false, (4, 384)), 19_200.0 + 100.0 * 4.5);
    }
}
