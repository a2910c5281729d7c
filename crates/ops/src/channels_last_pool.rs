//! `ChannelsLastGlobalAveragePool`, made by fusion: the mean over all spatial axes, which stay
//! with size 1, of values whose channels are the last axis.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::kernels::normalize::add_rows;
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct ChannelsLastGlobalAveragePool;

impl Operator for ChannelsLastGlobalAveragePool {
    fn op_type(&self) -> &'static str {
        "ChannelsLastGlobalAveragePool"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let mut dims = shape.clone();
        let spatial = 1..dims.len().saturating_sub(1).max(1);
        dims[spatial].fill(Dim::Known(1));
        Ok(vec![Fact::new(x.dtype, dims)])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let x = run.typed::<f32>(0)?;
            let [_, spatial @ .., channels] = x.shape() else {
                return Err(OpError::value("the input", x.shape(), "batch and channels"));
            };
            let mut shape = x.shape().to_vec();
            shape[1..=spatial.len()].fill(1);
            let pixels: usize = spatial.iter().product();
            let mut y = run.pool.tensor(DType::F32, &shape);
            let images = x.slice::<f32>().chunks_exact((pixels * channels).max(1));
            if pixels * channels == 0 {
                y.slice_mut::<f32>().fill(f32::NAN);
                return Ok(vec![y]);
            }
            for (y, image) in y.slice_mut::<f32>().chunks_exact_mut((*channels).max(1)).zip(images)
            {
                mean_rows(y, image);
            }
            Ok(vec![y])
        }))
    }
}

/// Rows that are added up before their sum joins the whole: long sums lose less so, and threads
/// change nothing.
const PART: usize = 64;

fn mean_rows(y: &mut [f32], rows: &[f32]) {
    let channels = y.len();
    let size = PART * channels;
    let mut parts = vec![0.0; rows.len().div_ceil(size) * channels];
    let work = |(part, rows): (&mut [f32], &[f32])| add_rows(part, rows);
    if rows.len() < 1 << 17 || rayon::current_num_threads() == 1 {
        parts.chunks_exact_mut(channels).zip(rows.chunks(size)).for_each(work);
    } else {
        parts.par_chunks_exact_mut(channels).zip(rows.par_chunks(size)).for_each(work);
    }
    y.fill(0.0);
    add_rows(y, &parts);
    let factor = (rows.len() / channels) as f32;
    y.iter_mut().for_each(|y| *y /= factor);
}
