//! Numbers as strings, with ONNX `Cast` semantics: the shortest decimal that reads back as the same
//! number, and `INF`, `-INF`, `NaN`.

use bytes::Bytes;

use crate::{DType, Tensor, TensorError};

impl Tensor {
    /// Numbers written out.
    pub(crate) fn to_text(&self) -> Result<Self, TensorError> {
        let error = || TensorError::Conversion { from: self.dtype(), to: DType::String };
        let texts: Vec<String> = match self.dtype() {
            DType::F64 => self.values::<f64>().iter().map(|&x| float_text(x, x)).collect(),
            DType::U64 => self.values::<u64>().iter().map(ToString::to_string).collect(),
            _ => {
                if let Some(values) = self.to_i64() {
                    values.iter().map(ToString::to_string).collect()
                } else {
                    let values = self.to_f32().ok_or_else(error)?;
                    values.iter().map(|&x| float_text(x, f64::from(x))).collect()
                }
            }
        };
        Self::from_strings(self.shape(), texts.into_iter().map(Bytes::from).collect())
    }

    /// Strings read as numbers.
    pub(crate) fn parsed(&self, to: DType) -> Result<Self, TensorError> {
        let strings = self.strings();
        if to == DType::U64 {
            let values: Result<Vec<u64>, _> = strings.iter().map(parse_u64).collect();
            return Ok(Self::new(self.shape(), &values?));
        }
        if to.is_float()
            || matches!(to.bits(), 4 | 6 | 8) && Self::zeros(to, &[]).to_i64().is_none()
        {
            let values: Result<Vec<f64>, _> = strings.iter().map(|s| parse_float(s, to)).collect();
            return Self::new(self.shape(), &values?).converted(to);
        }
        let values: Result<Vec<i64>, _> = strings.iter().map(|s| parse_i64(s, to)).collect();
        Self::new(self.shape(), &values?).converted(to)
    }
}

/// Plain digits; with an exponent where those would be many, as `numpy` and ONNX Runtime write.
fn float_text<T: std::fmt::Display + std::fmt::LowerExp>(x: T, value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "INF".into() } else { "-INF".into() };
    }
    let magnitude = value.abs();
    if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return x.to_string();
    }
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').expect("the format has an exponent");
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    format!("{digits}e{sign}{exponent:0>2}")
}

fn text_of(string: &Bytes) -> String {
    String::from_utf8_lossy(string).trim().to_string()
}

fn unreadable(string: &Bytes, to: DType) -> TensorError {
    TensorError::Number { text: text_of(string), to }
}

/// Rounded once, to the precision of `to`.
fn parse_float(string: &Bytes, to: DType) -> Result<f64, TensorError> {
    let text = text_of(string);
    let value = match to {
        DType::F32 => text.parse::<f32>().map(f64::from),
        _ => text.parse::<f64>(),
    };
    value.map_err(|_| unreadable(string, to))
}

/// A fraction is cut off.
fn parse_i64(string: &Bytes, to: DType) -> Result<i64, TensorError> {
    match text_of(string).parse::<i64>() {
        Ok(value) => Ok(value),
        Err(_) => parse_float(string, to).map(|value| value as i64),
    }
}

fn parse_u64(string: &Bytes) -> Result<u64, TensorError> {
    match text_of(string).parse::<u64>() {
        Ok(value) => Ok(value),
        Err(_) => parse_i64(string, DType::U64).map(|value| value as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&'static str]) -> Tensor {
        let texts = texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect();
        Tensor::from_strings(&[3], texts).unwrap()
    }

    #[test]
    fn special_values_are_read_in_any_case() {
        let floats = strings(&["+INF", "nan", "-1.5E1"]).converted(DType::F32).unwrap();
        let floats = floats.slice::<f32>();
        assert!(floats[0] == f32::INFINITY && floats[1].is_nan() && floats[2] == -15.0);
    }

    #[test]
    fn numbers_are_written_as_short_as_they_read_back() {
        let x = Tensor::new(&[4], &[0.1_f32, 1.0, f32::NEG_INFINITY, 1e20]);
        let x = x.converted(DType::String).unwrap();
        assert_eq!(x.strings(), ["0.1", "1", "-INF", "1e+20"]);
    }

    #[test]
    fn fractions_are_cut_off_and_words_are_refused() {
        let integers = strings(&["12", "-3.7", "1e3"]).converted(DType::I32).unwrap();
        assert_eq!(integers.slice::<i32>(), [12, -3, 1000]);
        let error = strings(&["1", "two", "3"]).converted(DType::I64).unwrap_err();
        assert_eq!(error.to_string(), "the string `two` is no i64");
    }
}
