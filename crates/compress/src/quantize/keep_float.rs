//! Products that lose more quality than they gain time stay in float.

use std::collections::BTreeSet;

use serde::Deserialize;

/// The setting: by the rule, a number of products, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub(crate) enum KeepFloat {
    #[default]
    Auto,
    /// By what each changes of the model's outputs, however long that takes: relative error that all
    /// together may cause.
    Measured(f64),
    /// As many as fit into a time: that of the model afterwards, of that before.
    Time(f64),
    Count(usize),
}

impl KeepFloat {
    /// Whether each product is to be tried by itself, which costs `macs` multiply-accumulates in all.
    pub(crate) fn measures(self, macs: f64) -> bool {
        match self {
            Self::Auto => macs <= MEASURED_MACS_MAX,
            Self::Measured(_) | Self::Time(_) => true,
            Self::Count(_) => false,
        }
    }
}

impl TryFrom<toml::Value> for KeepFloat {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match &value {
            toml::Value::String(text) if text == "auto" => Ok(Self::Auto),
            toml::Value::String(text) if text == "measured" => Ok(Self::Measured(ALL_ERROR_MAX)),
            toml::Value::Float(error) if *error > 0.0 && *error < 1.0 => Ok(Self::Measured(*error)),
            toml::Value::String(text) if text == "off" => Ok(Self::Count(0)),
            toml::Value::Table(table) if table.len() == 1 => {
                let time = table.get("time").and_then(toml::Value::as_float);
                let time = time.filter(|time| *time > 0.0 && *time < 1.0);
                time.map(Self::Time).ok_or_else(|| wrong(&value))
            }
            toml::Value::Integer(count) if *count >= 0 => Ok(Self::Count(*count as usize)),
            _ => Err(wrong(&value)),
        }
    }
}

fn wrong(value: &toml::Value) -> String {
    format!(
        "keep_float is {value}, expected \"auto\", \"measured\", \"off\", a number of products, an error \
         below 1 or {{ time = 0.5 }}"
    )
}

/// What one product costs and gains.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Index of the node.
    pub(crate) index: usize,
    /// ‖ŷ − y‖² / ‖y‖² of the product alone, predicted.
    pub(crate) squared_error: f64,
    /// The same of the model's outputs where this product alone is in 8 bits, if it was measured.
    pub(crate) output_squared_error: Option<f64>,
    /// Multiply-accumulates on the calibration data.
    pub(crate) macs: f64,
    /// Elements of its weight.
    pub(crate) weight_count: usize,
}

impl Cost {
    /// The squared error of the outputs; 0 where it was not measured.
    fn output_error(&self) -> f64 {
        self.output_squared_error.unwrap_or(0.0)
    }
}

/// Relative error from which a product is looked at at all.
const ERROR_MIN: f64 = 0.05;
/// Relative error of the model's outputs that one product may cause.
const OUTPUT_ERROR_MAX: f64 = 0.05;
/// Relative error of the model's outputs that all products together may cause.
pub(crate) const ALL_ERROR_MAX: f64 = 0.2;
/// What measuring may cost without being asked for: a few seconds.
const MEASURED_MACS_MAX: f64 = 5e10;
/// A product with fewer weights and a smaller part of the work takes less time than to quantize what it
/// reads.
const WEIGHTS_MIN: usize = 512;
const TINY_WORK: f64 = 0.005;
/// How many times a product's share of all squared errors must be its share of the work: of what is
/// predicted, to be looked at, and of what the outputs then lose.
const SHARE_RATIO_MIN: f64 = 4.0;

/// Of the products that [`kept`] found by prediction, those without which the outputs lose less in
/// proportion: `all` is their squared error with everything in 8 bits, `without` the same with that
/// product in float.
pub(crate) fn confirmed(
    costs: &[Cost],
    all: f64,
    without: &[(usize, f64)],
) -> Vec<(usize, String)> {
    let macs: f64 = costs.iter().map(|cost| cost.macs).sum();
    let gain = |&(index, left): &(usize, f64)| {
        let cost = costs.iter().find(|cost| cost.index == index)?;
        let [gain, work] = [(all - left) / all.max(f64::MIN_POSITIVE), cost.macs / macs];
        let reason = || {
            let [gain, work] = [gain, work].map(|part| 100.0 * part);
            format!("{gain:.0} % of the squared error of the outputs for {work:.1} % of the work")
        };
        (gain > SHARE_RATIO_MIN * work).then(|| (index, reason()))
    };
    without.iter().filter_map(gain).collect()
}

/// The products to leave in float, with the reason, by index.
pub(crate) fn kept(costs: &[Cost], setting: KeepFloat) -> Vec<(usize, String)> {
    let errors: f64 = costs.iter().map(|cost| cost.squared_error).sum();
    let macs: f64 = costs.iter().map(|cost| cost.macs).sum();
    let mut by_error = costs.to_vec();
    by_error.sort_by(|a, b| b.squared_error.total_cmp(&a.squared_error));
    let percent = |part: f64, whole: f64| 100.0 * part / whole.max(f64::MIN_POSITIVE);
    let mut kept: Vec<(usize, String)> = match setting {
        KeepFloat::Count(count) => {
            let first = by_error.iter().take(count);
            first.map(|cost| (cost.index, format!("one of the {count} of most error"))).collect()
        }
        _ if costs.iter().any(|cost| cost.output_squared_error.is_some()) => {
            let most = match setting {
                KeepFloat::Measured(most) => most,
                _ => ALL_ERROR_MAX,
            };
            by_outputs(costs, most)
        }
        _ => {
            let hurts = |cost: &&Cost| {
                cost.squared_error > ERROR_MIN * ERROR_MIN
                    && cost.squared_error * macs > SHARE_RATIO_MIN * cost.macs * errors
            };
            let reason = |cost: &Cost| {
                format!(
                    "{:.0} % of all squared error for {:.1} % of the work",
                    percent(cost.squared_error, errors),
                    percent(cost.macs, macs)
                )
            };
            by_error.iter().filter(hurts).map(|cost| (cost.index, reason(cost))).collect()
        }
    };
    kept.sort_unstable();
    kept
}

/// Those of most measured error for their work first.
fn by_error_for_work(costs: &[Cost]) -> Vec<&Cost> {
    let mut sorted: Vec<&Cost> = costs.iter().collect();
    sorted.sort_by(|a, b| (b.output_error() * a.macs).total_cmp(&(a.output_error() * b.macs)));
    sorted
}

/// The most products of measured error, those of most for their work first, with which the model
/// still runs within `time`, and the time that it then takes: both as a share of the original's.
/// `clock` times it with these in float.
///
/// # Errors
/// What `clock` returns.
pub(crate) fn kept_in_time<E>(
    costs: &[Cost],
    time: f64,
    clock: &mut dyn FnMut(&BTreeSet<usize>) -> Result<f64, E>,
) -> Result<(Vec<(usize, String)>, f64), E> {
    let sorted = by_error_for_work(costs);
    let first = |count: usize| sorted[..count].iter().map(|cost| cost.index).collect();
    let mut taken = (0, clock(&BTreeSet::new())?);
    let mut too_many = if taken.1 > time { 1 } else { sorted.len() + 1 };
    while taken.0 + 1 < too_many {
        let middle = usize::midpoint(taken.0, too_many);
        let found = clock(&first(middle))?;
        if found > time {
            too_many = middle;
        } else {
            taken = (middle, found);
        }
    }
    let reason = |cost: &&Cost| {
        let percent = 100.0 * cost.output_error().sqrt();
        (
            cost.index,
            format!("there is time for it; alone it changes the outputs by {percent:.1} %"),
        )
    };
    let mut kept: Vec<(usize, String)> = sorted[..taken.0].iter().map(reason).collect();
    kept.sort_unstable();
    Ok((kept, taken.1))
}

/// By what was measured of the outputs: products that alone change them too far, and those of most
/// error for their work until the rest together, whose squared errors add up, stays within `most`.
fn by_outputs(costs: &[Cost], most: f64) -> Vec<(usize, String)> {
    let error = Cost::output_error;
    let mut left = by_error_for_work(costs);
    let alone_max = OUTPUT_ERROR_MAX.min(most).powi(2);
    let mut kept: Vec<(usize, String)> = Vec::new();
    left.retain(|cost| {
        let is_within = error(cost) <= alone_max;
        if !is_within {
            let percent = 100.0 * error(cost).sqrt();
            kept.push((cost.index, format!("alone it changes the outputs by {percent:.0} %")));
        }
        is_within
    });
    let macs: f64 = costs.iter().map(|cost| cost.macs).sum();
    left.retain(|cost| {
        let is_tiny = cost.weight_count < WEIGHTS_MIN && cost.macs < TINY_WORK * macs;
        if is_tiny {
            let reason = "it has too little to do to be faster in 8 bits";
            kept.push((cost.index, reason.to_string()));
        }
        !is_tiny
    });
    let mut rest: f64 = left.iter().map(|cost| error(cost)).sum();
    for cost in left {
        if rest <= most * most {
            break;
        }
        let [alone, of_all] = [error(cost).sqrt(), rest.sqrt()].map(|error| 100.0 * error);
        let work = 100.0 * cost.macs / macs.max(f64::MIN_POSITIVE);
        let reason = format!(
            "alone it changes the outputs by {alone:.1} %, with those that hurt less for their work \
             by {of_all:.0} %, for {work:.1} % of the work"
        );
        kept.push((cost.index, reason));
        rest -= error(cost);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(index: usize, error: f64, macs: f64) -> Cost {
        let squared_error = error * error;
        Cost { index, squared_error, output_squared_error: None, macs, weight_count: 1000 }
    }

    #[test]
    fn what_has_next_to_nothing_to_do_stays_float() {
        let measured = |index, macs, weight_count| Cost {
            output_squared_error: Some(1e-6),
            weight_count,
            ..cost(index, 0.01, macs)
        };
        let costs = [measured(1, 1000.0, 9), measured(2, 1.0, 128), measured(3, 1.0, 4000)];
        let found = kept(&costs, KeepFloat::Auto);
        assert_eq!(found.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_small_product_of_much_error_stays_float_and_a_large_one_does_not() {
        let small = [cost(3, 0.3, 1.0), cost(5, 0.02, 50.0), cost(7, 0.02, 49.0)];
        let found = kept(&small, KeepFloat::Auto);
        assert_eq!(found, [(3, "99 % of all squared error for 1.0 % of the work".to_string())]);
        let large = [cost(3, 0.3, 90.0), cost(5, 0.02, 10.0)];
        assert_eq!(kept(&large, KeepFloat::Auto), []);
        let harmless = [cost(3, 0.02, 1.0), cost(5, 0.001, 99.0)];
        assert_eq!(kept(&harmless, KeepFloat::Auto), []);
    }

    #[test]
    fn what_does_not_help_the_outputs_is_not_kept() {
        let costs = [cost(3, 0.3, 5.0), cost(5, 0.3, 5.0), cost(7, 0.02, 90.0)];
        let found = confirmed(&costs, 0.02, &[(3, 0.013), (5, 0.018)]);
        let reason = "35 % of the squared error of the outputs for 5.0 % of the work";
        assert_eq!(found, [(3, reason.to_string())]);
    }

    #[test]
    fn what_was_measured_decides_alone() {
        let measured =
            |cost: Cost, error: f64| Cost { output_squared_error: Some(error * error), ..cost };
        let costs = [measured(cost(3, 0.3, 1.0), 0.01), measured(cost(5, 0.01, 99.0), 0.2)];
        let found = kept(&costs, KeepFloat::Auto);
        assert_eq!(found, [(5, "alone it changes the outputs by 20 %".to_string())]);
        assert!(KeepFloat::Auto.measures(1e9) && !KeepFloat::Auto.measures(1e13));
        assert!(KeepFloat::Measured(0.2).measures(1e12) && !KeepFloat::Count(1).measures(0.0));
    }

    fn measured(index: usize, error: f64, macs: f64) -> Cost {
        Cost { output_squared_error: Some(error * error), ..cost(index, 0.1, macs) }
    }

    #[test]
    fn what_is_left_stays_within_the_error_of_all() {
        // Squared: 16, 9, 9 and 4; by their work, the second is the worst and the first the least.
        let costs = [
            measured(3, 0.04, 80.0),
            measured(5, 0.03, 5.0),
            measured(7, 0.03, 10.0),
            measured(9, 0.02, 5.0),
        ];
        let indices = |most: f64| -> Vec<usize> {
            kept(&costs, KeepFloat::Measured(most)).into_iter().map(|(index, _)| index).collect()
        };
        assert_eq!(indices(0.062), [0_usize; 0]);
        assert_eq!(indices(0.061), [5]);
        assert_eq!(indices(0.05), [5, 7]);
        assert_eq!(indices(0.041), [5, 7, 9]);
        assert_eq!(indices(0.03), [3, 5, 7]);
    }

    #[test]
    fn as_many_stay_float_as_there_is_time_for() {
        // By error for work: 5, 7, 9, 3.
        let costs = [
            measured(3, 0.04, 80.0),
            measured(5, 0.03, 5.0),
            measured(7, 0.03, 10.0),
            measured(9, 0.02, 5.0),
        ];
        let run = |time: f64| {
            let mut clock = |left: &BTreeSet<usize>| {
                let float: f64 =
                    costs.iter().filter(|c| left.contains(&c.index)).map(|c| c.macs).sum();
                Ok::<f64, ()>(0.3 + 0.7 * float / 100.0)
            };
            let (kept, time) = kept_in_time(&costs, time, &mut clock).unwrap();
            (kept.into_iter().map(|(index, _)| index).collect::<Vec<_>>(), (time * 1e3).round())
        };
        assert_eq!(run(0.2), (vec![], 300.0), "not even all in 8 bits");
        assert_eq!(run(0.34), (vec![5], 335.0));
        assert_eq!(run(0.41), (vec![5, 7], 405.0));
        assert_eq!(run(0.9), (vec![5, 7, 9], 440.0));
        assert_eq!(run(1.0), (vec![3, 5, 7, 9], 1000.0));
    }

    #[test]
    fn a_number_takes_the_worst() {
        let costs = [cost(3, 0.1, 1.0), cost(5, 0.3, 1.0), cost(7, 0.2, 1.0)];
        let indices = |setting| -> Vec<usize> {
            kept(&costs, setting).into_iter().map(|(index, _)| index).collect()
        };
        assert_eq!(indices(KeepFloat::Count(2)), [5, 7]);
        assert_eq!(indices(KeepFloat::Count(0)), [0_usize; 0]);
    }

    #[test]
    fn the_setting_is_a_word_or_a_number() {
        let read = |text: &str| KeepFloat::try_from(toml::Value::String(text.into()));
        assert_eq!(read("auto"), Ok(KeepFloat::Auto));
        assert_eq!(read("off"), Ok(KeepFloat::Count(0)));
        assert_eq!(read("measured"), Ok(KeepFloat::Measured(0.2)));
        assert_eq!(KeepFloat::try_from(toml::Value::Integer(4)), Ok(KeepFloat::Count(4)));
        assert_eq!(KeepFloat::try_from(toml::Value::Float(0.1)), Ok(KeepFloat::Measured(0.1)));
        assert!(KeepFloat::try_from(toml::Value::Float(1.5)).is_err());
        let table = |text: &str| KeepFloat::try_from(toml::Value::Table(text.parse().unwrap()));
        assert_eq!(table("time = 0.5"), Ok(KeepFloat::Time(0.5)));
        assert!(table("time = 1.5").is_err() && table("size = 0.5").is_err());
        assert_eq!(
            read("all").unwrap_err(),
            "keep_float is \"all\", expected \"auto\", \"measured\", \"off\", a number of products, \
             an error below 1 or { time = 0.5 }"
        );
    }
}
