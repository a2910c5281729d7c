//! `ChannelsLastGlobalAveragePool`, made by fusion: the mean over all spatial axes, which stay
//! with size 1, of values whose channels are the last axis.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::gradient::gradient;
use crate::kernels::for_rows;
use crate::kernels::normalize::add_rows;
use crate::{
    ATTAR_DOMAIN, Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

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

    /// dx = dy/pixels at every pixel.
    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient(Reads::NOTHING, |run| {
            let mut dy = run.take_gradient();
            let mut dx = run.tensor(run.shape(0));
            let channels = dy.shape().last().copied().unwrap_or(1).max(1);
            let pixels = dx.element_count() / dy.element_count().max(1);
            dy.slice_mut::<f32>().iter_mut().for_each(|dy| *dy /= pixels as f32);
            let flow = dy.slice::<f32>();
            for_rows(dx.slice_mut::<f32>(), pixels * channels, |first, images| {
                let flows = flow[first * channels..].chunks_exact(channels);
                for (image, flow) in images.chunks_exact_mut(pixels * channels).zip(flows) {
                    image.chunks_exact_mut(channels).for_each(|pixel| pixel.copy_from_slice(flow));
                }
            });
            run.pool.recycle(dy);
            Ok(vec![Some(dx.into())])
        })
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
    if rows.len() < 1 << 17 || crate::threads::count() == 1 {
        parts.chunks_exact_mut(channels).zip(rows.chunks(size)).for_each(work);
    } else {
        parts.par_chunks_exact_mut(channels).zip(rows.par_chunks(size)).for_each(work);
    }
    y.fill(0.0);
    add_rows(y, &parts);
    let factor = (rows.len() / channels) as f32;
    y.iter_mut().for_each(|y| *y /= factor);
}
