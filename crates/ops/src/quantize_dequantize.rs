//! `QuantizeDequantize`, made by fusion: `QuantizeLinear` and the `DequantizeLinear` after it in
//! one pass over the values: for what no 8-bit kernel takes, and for training, where the pair is a
//! fake quantization: y = scale·round(clamp(x / scale, low, high)).

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::clip::in_place_or_copy;
use crate::fake_quantize::grid_flows;
use crate::gradient::gradient;
use crate::kernels::fake_quantize::round_to_levels;
use crate::kernels::{for_rows, quantize};
use crate::quantization::Parameters;
use crate::quantize_linear::{integer_range, target};
use crate::{
    ATTAR_DOMAIN, Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

/// Inputs and attributes are those of `QuantizeLinear`.
pub(crate) struct QuantizeDequantize;

impl Operator for QuantizeDequantize {
    fn op_type(&self) -> &'static str {
        "QuantizeDequantize"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.with_dtype(DType::F32)])
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let constant = |index: usize, dtype: DType| {
            let constant = constants.get(index).copied().flatten();
            constant.filter(|tensor| tensor.dtype() == dtype && tensor.element_count() == 1)
        };
        if let (Some(scale), Some(zero)) = (constant(1, DType::F32), constant(2, DType::U8)) {
            let (scale, zero) = (scale.values::<f32>()[0], zero.values::<u8>()[0]);
            return Ok(Box::new(move |run: &mut Run| {
                run.typed::<f32>(0)?;
                let mut y = in_place_or_copy(run)?;
                for_rows(y.slice_mut::<f32>(), 1, |_, rows| {
                    quantize::round_to_u8_grid(rows, scale, i32::from(zero));
                });
                Ok(vec![y])
            }));
        }
        let grid = Grid::new(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.typed::<f32>(0)?;
            let ends = grid.ends(run.optional(2))?;
            let parameters = grid.parameters(run)?;
            let mut y = run.pool.tensor(DType::F32, x.shape());
            let (values, x) = (y.slice_mut::<f32>(), x.slice::<f32>());
            parameters.each_run(values, x, |y, x, scale, zero| {
                round_to_levels(y, x, scale, ends.map(|end| end - zero));
            });
            Ok(vec![y])
        }))
    }

    /// As [`grid_flows`] says; none flows to the zero point, an integer.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let grid = Grid::new(node)?;
        gradient(Reads::NOTHING.input(0).input(1).input(2), move |run| {
            let settings = Run { inputs: run.inputs.clone(), pool: run.pool };
            let ends = grid.ends(settings.optional(2))?;
            let parameters = grid.parameters(&settings)?;
            let x = settings.typed::<f32>(0)?.slice::<f32>();
            Ok(grid_flows(run, &parameters, x, ends))
        })
    }
}

/// The levels that values are rounded to.
struct Grid {
    node: Node,
    axis: i64,
    block_size: i64,
}

impl Grid {
    fn new(node: &Node) -> Result<Self, OpError> {
        let (axis, block_size) = (node.int_or("axis", 1)?, node.int_or("block_size", 0)?);
        Ok(Self { node: node.clone(), axis, block_size })
    }

    /// The least and the greatest level.
    fn ends(&self, zero_point: Option<&Tensor>) -> Result<[f32; 2], OpError> {
        let dtype = target(&self.node, zero_point.map(Tensor::dtype))?;
        let error = || OpError::Unsupported { what: format!("fake quantization to {dtype}") };
        let (low, high) = integer_range(dtype).ok_or_else(error)?;
        Ok([low as f32, high as f32])
    }

    fn parameters(&self, run: &Run) -> Result<Parameters<f32>, OpError> {
        Parameters::new(run, self.axis, self.block_size, Tensor::to_f32)
    }
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;

    use super::*;
    use crate::{Backward, Pool};

    /// dx and dscale of a fake quantization to i8.
    fn gradients(text: &str, x: &Tensor, scale: &Tensor, dy: &Tensor) -> [Vec<f32>; 2] {
        let node = &graph_from_text(text).nodes[0];
        let zero = Tensor::zeros(DType::I8, scale.shape());
        let training = Training { constants: &[], wanted: &[true, true, false] };
        let gradient = QuantizeDequantize.gradient(node, &training).unwrap();
        let mut run = Backward {
            inputs: [x, scale, &zero].map(|t| Some(t.clone())).to_vec(),
            shapes: &[x, scale, &zero].map(|t| t.shape().to_vec()),
            outputs: vec![None],
            gradients: vec![Some(dy.clone())],
            saved: Vec::new(),
            wanted: &[true, true, false],
            pool: &Pool::default(),
        };
        let flows = gradient.backward(&mut run).unwrap();
        let mut flows = flows.into_iter().flatten().map(|flow| flow.into_dense(run.pool));
        [flows.next().unwrap(), flows.next().unwrap()].map(|flow| flow.slice::<f32>().to_vec())
    }

    #[test]
    fn gradients_pass_within_the_grid_and_the_step_learns_from_all() {
        let x = Tensor::new(&[4], &[0.6_f32, -1.2, 100.0, -100.0]);
        let dy = Tensor::new(&[4], &[1.0_f32, 2.0, 3.0, 4.0]);
        let scale = Tensor::scalar(0.5_f32);
        let [dx, dscale] = gradients("y = QuantizeDequantize(x, s, z)", &x, &scale, &dy);
        assert_eq!(dx, [1.0, 2.0, 0.0, 0.0]);
        // x / scale is 1.2, −2.4, 200 and −200.
        let sum = (1.0 - 1.2) + 2.0 * (-2.0 + 2.4) + 3.0 * 127.0 + 4.0 * -128.0;
        let expected = sum / (4.0_f32 * 127.0).sqrt();
        assert!((dscale[0] - expected).abs() < 1e-5, "{dscale:?} {expected}");
    }

    #[test]
    fn each_channel_learns_its_own_step() {
        let x = Tensor::new(&[2, 2], &[0.6_f32, 0.6, -1.2, 100.0]);
        let dy = Tensor::new(&[2, 2], &[1.0_f32; 4]);
        let scale = Tensor::new(&[2], &[0.5_f32, 0.25]);
        let steps = |text: &str| gradients(text, &x, &scale, &dy)[1].clone();
        let factor = (2.0_f32 * 127.0).sqrt();
        // Along axis 1, the levels are 1.2 and 2.4, then −2.4 and 400.
        let columns = [(-0.2 + 0.4) / factor, (-0.4 + 127.0) / factor];
        let rows = [(-0.2 - 0.2) / factor, (-0.2 + 127.0) / factor];
        for (text, expected) in [("axis=1", columns), ("axis=0", rows)] {
            let found = steps(&format!("y = QuantizeDequantize(x, s, z, {text})"));
            let differ = found.iter().zip(expected).any(|(a, b)| (a - b).abs() > 1e-5);
            assert!(!differ, "{text}: {found:?} {expected:?}");
        }
    }
}
