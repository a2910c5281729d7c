//! Dropout: the identity outside training.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::channels::{Channels, Tensors};
use crate::clip::in_place_or_copy;
use crate::kernels::for_rows;
use crate::{
    Backward, Fact, Flow, Forward, Gradient, Kernel, OpError, Operator, Reads, Run, Training,
    required,
};

/// The mask, where asked for, is all true.
pub(crate) struct Dropout;

impl Operator for Dropout {
    fn op_type(&self) -> &'static str {
        "Dropout"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok([x.clone(), x.with_dtype(DType::Bool)][..node.outputs.len().min(2)].to_vec())
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::like_input(tensors, &[]))
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let output_count = node.outputs.len();
        Ok(Box::new(move |run: &mut Run| {
            // In training it drops nothing where the ratio is 0; it is 0.5 where none is given.
            let drops = match run.optional(1).and_then(Tensor::to_f64).as_deref() {
                Some([ratio, ..]) => *ratio != 0.0,
                _ => true,
            };
            if drops && run.optional(2).is_some_and(|training| training.bytes() == [1]) {
                return Err(OpError::Unsupported { what: "Dropout in training mode".into() });
            }
            let x = run.input(0)?.clone();
            if output_count == 1 {
                return Ok(vec![x]);
            }
            let mask = Tensor::from_bools(x.shape(), &vec![true; x.element_count()]);
            Ok(vec![x, mask])
        }))
    }

    /// dx = dy/(1 − ratio) where the forward run kept x, and 0 elsewhere.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let ratio = node.float_or("ratio", 0.5)?;
        Ok(Box::new(Dropping { ratio, gives_mask: node.outputs.len() > 1 }))
    }

    fn differs_in_training(&self) -> bool {
        true
    }
}

/// In training every element is kept with the probability 1 − ratio, whatever the node's
/// `training_mode` says (Srivastava et al., 2014). Which ones is drawn from seed and place alone,
/// so that a step that is repeated, on any number of threads, keeps the same.
struct Dropping {
    /// Where the node has no input for it.
    ratio: f32,
    gives_mask: bool,
}

/// What is drawn for an element, uniform over 32 bits (splitmix64, Steele et al., 2014).
fn drawn(seed: u64, place: usize) -> u32 {
    let mut z = seed.wrapping_add((place as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 32) as u32
}

/// Those drawn below it are dropped.
fn threshold(ratio: f64) -> u64 {
    (ratio.clamp(0.0, 1.0) * (1_u64 << 32) as f64) as u64
}

/// values ← values/(1 − ratio) where they are kept, 0 elsewhere.
fn drop_values(values: &mut [f32], seed: u64, ratio: f64) {
    let threshold = threshold(ratio);
    let scale = if ratio < 1.0 { (1.0 / (1.0 - ratio)) as f32 } else { 0.0 };
    for_rows(values, 1, |first, values| {
        for (index, value) in values.iter_mut().enumerate() {
            let is_kept = u64::from(drawn(seed, first + index)) >= threshold;
            *value = if is_kept { *value * scale } else { 0.0 };
        }
    });
}

impl Gradient for Dropping {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&self, forward: &mut Forward, _: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        let run = &mut forward.run;
        let given = run.optional(1).and_then(Tensor::to_f64);
        let ratio = given.and_then(|given| given.first().copied()).unwrap_or(self.ratio.into());
        if !(0.0..=1.0).contains(&ratio) {
            return Err(OpError::value("ratio", ratio, "between 0 and 1"));
        }
        run.typed::<f32>(0)?;
        let mut y = in_place_or_copy(run)?;
        let seed = forward.seed;
        drop_values(y.slice_mut(), seed, ratio);
        let bits = [seed as i64, ratio.to_bits() as i64];
        forward.saved = vec![Tensor::new(&[2], &bits)];
        if !self.gives_mask {
            return Ok(vec![y]);
        }
        let threshold = threshold(ratio);
        let is_kept = |place| u64::from(drawn(seed, place)) >= threshold;
        let mask: Vec<bool> = (0..y.element_count()).map(is_kept).collect();
        let mask = Tensor::from_bools(y.shape(), &mask);
        Ok(vec![y, mask])
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let Some(mut dy) = run.gradients[0].take() else { return Ok(Vec::new()) };
        let &[seed, ratio] = run.saved[0].slice::<i64>() else {
            unreachable!("the forward run saved seed and ratio")
        };
        drop_values(dy.slice_mut(), seed as u64, f64::from_bits(ratio as u64));
        Ok(vec![Some(dy.into())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_the_ratio_and_the_same_for_a_seed() {
        let dropped = |seed: u64| {
            let mut values = vec![1.0; 100_000];
            drop_values(&mut values, seed, 0.3);
            values
        };
        let values = dropped(7);
        let kept = values.iter().filter(|&&value| value != 0.0).count();
        assert!((69_000..71_000).contains(&kept), "{kept}");
        assert!(values.iter().all(|&value| value == 0.0 || (value - 1.0 / 0.7).abs() < 1e-6));
        assert_eq!(values, dropped(7));
        assert_ne!(values, dropped(8));
    }
}
