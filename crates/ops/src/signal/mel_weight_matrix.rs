//! `MelWeightMatrix` (opset 17 and later): triangles that sum the terms of a one-sided spectrum into
//! bands evenly spaced on the mel scale, mel(f) = 2595·log₁₀(1 + f / 700).

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::{floats, integer, length, length_dim, output_type, typed};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct MelWeightMatrix;

impl Operator for MelWeightMatrix {
    fn op_type(&self) -> &'static str {
        "MelWeightMatrix"
    }

    fn since_opset(&self) -> i64 {
        17
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        5..=5
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        required(inputs, 0)?;
        let bands = length_dim(node, inputs, 0, Dim::Unknown);
        let length = length_dim(node, inputs, 1, Dim::Unknown);
        let terms = &length.floor_div(&Dim::Known(2)) + &Dim::Known(1);
        Ok(vec![Fact::new(output_type(node)?, vec![terms, bands])])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let dtype = output_type(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let (bands, size) = (length(run, 0)?, length(run, 1)?);
            let rate = integer(run, 2)?;
            let (low, high) = (edge(run, 3)?, edge(run, 4)?);
            let terms = size / 2 + 1;
            run.pool.declared(DType::F64, &[terms, bands])?;
            let (low, high) = (mel(low), mel(high));
            let step = (high - low) / (bands + 2) as f64;
            let term = |band: usize| {
                let hertz = 700.0 * (10_f64.powf((band as f64 * step + low) / 2595.0) - 1.0);
                let term = ((size + 1) as f64 * hertz / rate as f64).floor();
                let is_term = term >= 0.0 && term < terms as f64;
                let expected = || format!("below {terms}: frequencies up to half the sample rate");
                let error = || OpError::value("a term of the spectrum", term, expected());
                if is_term { Ok(term as usize) } else { Err(error()) }
            };
            let points: Vec<usize> = (0..bands + 2).map(term).collect::<Result<_, _>>()?;
            Ok(vec![typed(&[terms, bands], &triangles(&points, terms), dtype)])
        }))
    }
}

fn mel(hertz: f64) -> f64 {
    2595.0 * (1.0 + hertz / 700.0).log10()
}

/// A frequency: a float of any kind.
fn edge(run: &Run, index: usize) -> Result<f64, OpError> {
    match floats(run, index)?.as_slice() {
        &[hertz] if hertz >= 0.0 && hertz.is_finite() => Ok(hertz),
        found => Err(OpError::value(&format!("input {index}"), found, "a frequency")),
    }
}

/// Band `i` rises from point `i` to `i + 1` and falls to `i + 2`.
fn triangles(points: &[usize], terms: usize) -> Vec<f64> {
    let bands = points.len() - 2;
    let mut weights = vec![0.0; terms * bands];
    for band in 0..bands {
        let [left, center, right] = [points[band], points[band + 1], points[band + 2]];
        let mut set = |term: usize, weight: f64| weights[term * bands + band] = weight;
        if left >= center {
            set(center, 1.0);
        } else {
            let rise = (center - left) as f64;
            (left..=center).for_each(|term| set(term, (term - left) as f64 / rise));
        }
        let fall = right.saturating_sub(center) as f64;
        (center..right).for_each(|term| set(term, (right - term) as f64 / fall));
    }
    weights
}
