//! `BatchNormalization` (opset 14): y = (x − mean) / √(variance + ε) · scale + bias per channel
//! (Ioffe & Szegedy, 2015, arXiv:1502.03167). In training mode, mean and variance are those of the
//! input, and running ← running · momentum + found · (1 − momentum).

mod gradient;

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use self::gradient::Norm;
use crate::channels::{Channels, Tensors, input, output};
use crate::kernels::for_rows;
use crate::real::{by_real, rounded_to, widened};
use crate::row_math::RowMath;
use crate::{ATTAR_DOMAIN, Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct BatchNormalization {
    op_type: &'static str,
    domain: &'static str,
    is_channels_last: bool,
}

/// `BatchNormalization` of ONNX.
pub(crate) const BATCH_NORMALIZATION: BatchNormalization =
    BatchNormalization { op_type: "BatchNormalization", domain: "", is_channels_last: false };

/// The same with the activation behind it, made by fusion for training.
pub(crate) const FUSED_BATCH_NORMALIZATION: BatchNormalization = BatchNormalization {
    op_type: "FusedBatchNormalization",
    domain: ATTAR_DOMAIN,
    is_channels_last: false,
};

/// The same where the channels are the last axis.
pub(crate) const CHANNELS_LAST_BATCH_NORMALIZATION: BatchNormalization = BatchNormalization {
    op_type: "ChannelsLastBatchNormalization",
    domain: ATTAR_DOMAIN,
    is_channels_last: true,
};

impl Operator for BatchNormalization {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn domain(&self) -> &'static str {
        self.domain
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        5..=5
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let mut facts = vec![x.with_dtype(x.dtype)];
        for index in 3..(node.outputs.len() + 2).min(5) {
            let running = required(inputs, index)?;
            let channels = x.shape.as_ref().map(|shape| shape.get(1).cloned());
            let channels = channels.map(|dim| dim.unwrap_or(Dim::Known(1)));
            facts.push(Fact::new(running.dtype, vec![channels.unwrap_or(Dim::Unknown)]));
        }
        Ok(facts)
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        if !self.domain.is_empty() || tensors.outputs.len() > 1 {
            return None;
        }
        let mut channels = Channels::like_input(tensors, &[]);
        (1..5).for_each(|index| channels.tie(tensors, input(index, 0), output(0, 1)));
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let training = node.int_or("training_mode", 0)? != 0;
        let has_statistics = node.outputs.iter().skip(1).any(|output| !output.is_empty());
        if has_statistics && !training {
            return Err(OpError::Unsupported {
                what: "running statistics outside of training mode".into(),
            });
        }
        if !self.domain.is_empty() {
            let norm = Norm::new(node, training, self.is_channels_last)?;
            return Ok(Box::new(move |run: &mut Run| Ok(vec![norm.forward(run)?.y])));
        }
        let settings = Settings {
            epsilon: f64::from(node.float_or("epsilon", 1e-5)?),
            momentum: f64::from(node.float_or("momentum", 0.9)?),
            training,
        };
        Ok(Box::new(move |run: &mut Run| {
            let x = widened(run.input(0)?);
            by_real!(x, 0, T => settings.run::<T>(run, &x))
        }))
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient::gradient(node, training, self.is_channels_last)
    }

    fn differs_in_training(&self) -> bool {
        true
    }
}

struct Settings {
    epsilon: f64,
    momentum: f64,
    training: bool,
}

impl Settings {
    fn run<T: RowMath>(&self, run: &Run, x: &Tensor) -> Result<Vec<Tensor>, OpError> {
        let channels = *x.shape().get(1).unwrap_or(&1);
        let parameter = |index: usize| -> Result<Vec<T>, OpError> {
            let tensor = run.input(index)?;
            if tensor.shape() != [channels] {
                return Err(OpError::shapes(x.shape(), tensor.shape()));
            }
            let found = tensor.dtype();
            let tensor = tensor.converted(T::DTYPE).map_err(|_| OpError::DType { index, found })?;
            Ok(tensor.values::<T>().into_owned())
        };
        let [scale, bias, mean, variance] =
            [parameter(1)?, parameter(2)?, parameter(3)?, parameter(4)?];
        let dtype = run.input(0)?.dtype();
        if !self.training {
            let y = self.normalized(run, x, [&scale, &bias, &mean, &variance]);
            return Ok(vec![rounded_to(dtype, y)]);
        }
        let (found_mean, found_variance) = statistics::<T>(x, channels);
        let y = self.normalized(run, x, [&scale, &bias, &found_mean, &found_variance]);
        let running = |index: usize, before: &[T], found: &[T]| -> Result<Tensor, OpError> {
            let momentum = T::of(self.momentum);
            let mixed = before.iter().zip(found);
            let mixed = mixed.map(|(&b, &f)| b * momentum + f * (T::ONE - momentum));
            let mixed = Tensor::new(&[channels], &mixed.collect::<Vec<T>>());
            Ok(rounded_to(run.input(index)?.dtype(), mixed))
        };
        let statistics = [running(3, &mean, &found_mean)?, running(4, &variance, &found_variance)?];
        Ok(std::iter::once(rounded_to(dtype, y)).chain(statistics).collect())
    }

    /// x by its channels' scale, bias, mean and variance.
    fn normalized<T: RowMath>(
        &self,
        run: &Run,
        x: &Tensor,
        [scale, bias, mean, variance]: [&[T]; 4],
    ) -> Tensor {
        let channels = mean.len();
        let inner: usize = x.shape().iter().skip(2).product();
        let factor_of = |c: usize| scale[c] / (variance[c] + T::of(self.epsilon)).sqrt();
        let factors: Vec<T> = (0..channels).map(factor_of).collect();
        let mut y = run.pool.tensor(x.dtype(), x.shape());
        let values = x.slice::<T>();
        if inner == 1 {
            for_rows(y.slice_mut::<T>(), channels, |first, rows| {
                let x = &values[first * channels..first * channels + rows.len()];
                for (row, x) in rows.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                    for (c, (y, &x)) in row.iter_mut().zip(x).enumerate() {
                        *y = (x - mean[c]) * factors[c] + bias[c];
                    }
                }
            });
            return y;
        }
        for_rows(y.slice_mut::<T>(), inner, |first, rows| {
            for (index, out) in rows.chunks_exact_mut(inner).enumerate() {
                let (at, c) = (first + index, (first + index) % channels);
                let x = &values[at * inner..(at + 1) * inner];
                T::affine(out, x, mean[c], factors[c], bias[c]);
            }
        });
        y
    }
}

/// Mean and population variance of every channel over batch and space.
fn statistics<T: RowMath>(x: &Tensor, channels: usize) -> (Vec<T>, Vec<T>) {
    let inner: usize = x.shape().iter().skip(2).product();
    let count = T::of((x.element_count() / channels.max(1)) as f64);
    let planes = || x.slice::<T>().chunks_exact(inner.max(1)).enumerate();
    let mut mean = vec![T::ZERO; channels];
    planes().for_each(|(index, plane)| mean[index % channels] += T::sum(plane));
    mean.iter_mut().for_each(|mean| *mean = *mean / count);
    let mut variance = vec![T::ZERO; channels];
    for (index, plane) in planes() {
        let c = index % channels;
        variance[c] += T::squares(plane, mean[c]);
    }
    variance.iter_mut().for_each(|variance| *variance = *variance / count);
    (mean, variance)
}
