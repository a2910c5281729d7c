//! Products that lose more quality than they gain time stay in float.

use serde::Deserialize;

/// The setting: by the rule, a number of products, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub(crate) enum KeepFloat {
    #[default]
    Auto,
    Count(usize),
}

impl TryFrom<toml::Value> for KeepFloat {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match &value {
            toml::Value::String(text) if text == "auto" => Ok(Self::Auto),
            toml::Value::String(text) if text == "off" => Ok(Self::Count(0)),
            toml::Value::Integer(count) if *count >= 0 => Ok(Self::Count(*count as usize)),
            _ => Err(format!("keep_float is {value}, expected \"auto\", \"off\" or a number")),
        }
    }
}

/// What one product costs and gains.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Index of the node.
    pub(crate) index: usize,
    /// ‖ŷ − y‖² / ‖y‖² of the product alone, predicted.
    pub(crate) squared_error: f64,
    /// Multiply-accumulates on the calibration data.
    pub(crate) macs: f64,
}

/// Relative error from which a product is looked at at all.
const ERROR_MIN: f64 = 0.05;
/// How many times a product's share of all squared errors must be its share of the work.
const SHARE_RATIO_MIN: f64 = 4.0;

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
        KeepFloat::Auto => {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(index: usize, error: f64, macs: f64) -> Cost {
        Cost { index, squared_error: error * error, macs }
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
        assert_eq!(KeepFloat::try_from(toml::Value::Integer(4)), Ok(KeepFloat::Count(4)));
        assert_eq!(
            read("all").unwrap_err(),
            "keep_float is \"all\", expected \"auto\", \"off\" or a number"
        );
    }
}
