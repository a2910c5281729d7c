//! `Spectrum`, made by fusion: the Fourier transform of stretches of a real signal, which models bring
//! as a convolution with windowed cosines and sines: `[batch, 1, length]` → `[batch, terms, frames]`.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::kernels::for_rows_of_work;
use crate::kernels::real_fourier::{RealFourier, SIZE_MIN};
use crate::kernels::transpose::transpose_matrix;
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

/// x, and the window [N] as a constant. Attributes: `step` between frames, `pads` before and after the
/// signal, `form`, `sine`, the sign of the sines that the signal is multiplied with, and
/// `channels_last`, which makes the result `[batch, frames, terms]`.
pub(crate) struct Spectrum;

/// What is made of the terms of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Σ x·cos, then Σ x·sin with its sign: N + 2 numbers.
    Parts,
    /// The sum of their squares: N/2 + 1.
    Power,
    /// Its root.
    Magnitude,
}

struct Settings {
    step: usize,
    pads: [usize; 2],
    form: Form,
    sine: f32,
    is_last: bool,
}

impl Settings {
    fn new(node: &Node) -> Result<Self, OpError> {
        let size = |name: &str, value: i64| {
            usize::try_from(value).map_err(|_| OpError::value(name, value, "0 or more"))
        };
        let step = size("step", node.int_or("step", 1)?)?;
        let pads = match node.ints("pads")? {
            Some(&[before, after]) => [size("pads", before)?, size("pads", after)?],
            _ => [0, 0],
        };
        let form = match node.text("form")?.unwrap_or("parts") {
            "parts" => Form::Parts,
            "power" => Form::Power,
            "magnitude" => Form::Magnitude,
            other => return Err(OpError::value("form", other, "parts, power or magnitude")),
        };
        if step == 0 {
            return Err(OpError::value("step", step, "1 or more"));
        }
        let is_last = node.int_or("channels_last", 0)? != 0;
        Ok(Self { step, pads, form, sine: node.float_or("sine", 1.0)?, is_last })
    }

    /// Numbers of a frame.
    fn width(&self, size: usize) -> usize {
        if self.form == Form::Parts { size + 2 } else { size / 2 + 1 }
    }
}

impl Operator for Spectrum {
    fn op_type(&self) -> &'static str {
        "Spectrum"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, window) = (required(inputs, 0)?, required(inputs, 1)?);
        let settings = Settings::new(node)?;
        let shape = x.shape.as_deref().unwrap_or_default();
        let at = |axis: usize| shape.get(axis).cloned().unwrap_or(Dim::Unknown);
        let size = window.shape.as_ref().and_then(|shape| shape.first()?.known());
        let Some(size) = size.and_then(|size| usize::try_from(size).ok()) else {
            return Ok(vec![Fact::unranked(x.dtype)]);
        };
        let room = settings.pads[0] as i64 + settings.pads[1] as i64 - size as i64;
        let frames = &(&at(2) + &Dim::Known(room)).floor_div(&Dim::Known(settings.step as i64))
            + &Dim::Known(1);
        let width = Dim::from(settings.width(size));
        let shape =
            if settings.is_last { vec![at(0), frames, width] } else { vec![at(0), width, frames] };
        Ok(vec![Fact::new(x.dtype, shape)])
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        let window = constants.get(1).copied().flatten();
        let window = window.ok_or(OpError::MissingInput { index: 1 })?.values::<f32>().into_owned();
        if !window.len().is_power_of_two() || window.len() < SIZE_MIN {
            return Err(OpError::value("the window's length", window.len(), "a power of two"));
        }
        let fourier = RealFourier::new(window.len());
        Ok(Box::new(move |run: &mut Run| run_frames(run, &settings, &window, &fourier)))
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 1
    }
}

fn run_frames(
    run: &mut Run,
    settings: &Settings,
    window: &[f32],
    fourier: &RealFourier,
) -> Result<Vec<Tensor>, OpError> {
    let x = run.typed::<f32>(0)?;
    let &[batch, 1, length] = x.shape() else {
        return Err(OpError::value("the shape of the signal", x.shape(), "[batch, 1, length]"));
    };
    let ([before, after], size) = (settings.pads, window.len());
    let Some(room) = (length + before + after).checked_sub(size) else {
        let least = format!("{} or more", size.saturating_sub(before + after));
        return Err(OpError::value("the signal's length", length, least));
    };
    let (frames, width) = (room / settings.step + 1, settings.width(size));
    let mut rows = run.pool.tensor(DType::F32, &[batch, frames, width]);
    let signal = x.slice::<f32>();
    let work_size = rows.element_count() * 8;
    for_rows_of_work(rows.slice_mut::<f32>(), width, work_size, |first, rows| {
        let mut scratch = run.pool.tensor(DType::F32, &[fourier.room() + 2 * size + 2]);
        let (room, rest) = scratch.slice_mut::<f32>().split_at_mut(fourier.room());
        let (frame, imaginary) = rest.split_at_mut(size);
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            let at = first + index;
            let own = &signal[at / frames * length..][..length];
            let start = at % frames * settings.step;
            let stretch = match start.checked_sub(before) {
                Some(from) if from + size <= length => &own[from..from + size],
                _ => {
                    // Zeros stand before and after the signal.
                    frame.fill(0.0);
                    let (skipped, from) =
                        (before.saturating_sub(start), start.max(before) - before);
                    let count = length.saturating_sub(from).min(size.saturating_sub(skipped));
                    if count > 0 {
                        frame[skipped..skipped + count].copy_from_slice(&own[from..from + count]);
                    }
                    &*frame
                }
            };
            let terms = size / 2 + 1;
            let (re, im) = match settings.form {
                Form::Parts => row.split_at_mut(terms),
                _ => (&mut *row, &mut imaginary[..terms]),
            };
            fourier.forward(stretch, window, room, [&mut *re, &mut *im]);
            match settings.form {
                // The transform multiplies with −sin.
                Form::Parts => im.iter_mut().for_each(|im| *im *= -settings.sine),
                Form::Power | Form::Magnitude => {
                    for (re, im) in re.iter_mut().zip(im) {
                        *re = *re * *re + *im * *im;
                    }
                }
            }
            if settings.form == Form::Magnitude {
                row.iter_mut().for_each(|power| *power = power.sqrt());
            }
        }
        run.pool.recycle(scratch);
    });
    if settings.is_last {
        return Ok(vec![rows]);
    }
    let mut y = run.pool.tensor(DType::F32, &[batch, width, frames]);
    transpose_matrix(y.slice_mut::<f32>(), rows.slice::<f32>(), [frames, width]);
    run.pool.recycle(rows);
    Ok(vec![y])
}
