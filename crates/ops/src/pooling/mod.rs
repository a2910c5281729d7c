//! `MaxPool` (opset 1), `AveragePool` (opset 1) and `LpPool` (opset 2), over any count of axes:
//! y[o] = max, mean or (Σ |x|ᵖ)^(1/p) of x[o·stride + tap·dilation − pad] over the taps.

mod gradient;

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Element, Tensor};

use crate::geometry::{Axis, Geometry};
use crate::kernels::for_rows;
use crate::kernels::pooling::{
    Greater, Join, Slide, divide_counts, greatest_f32, greatest_f64, greatest_i8, greatest_u8,
    sums_f32, sums_f64,
};
use crate::real::{Real, by_real};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

/// The pooling of a window, as an operator.
#[derive(Clone, Copy, PartialEq)]
enum Pooling {
    Max,
    Average,
    Lp,
}

macro_rules! poolings {
    ($($op:ident, $since:literal, $pooling:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                $since
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                1..=1
            }

            fn widens_half(&self) -> bool {
                true
            }

            fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                infer(node, inputs)
            }

            fn channels(&self, _: &Node, tensors: &$crate::channels::Tensors) -> Option<$crate::channels::Channels> {
                if tensors.outputs.len() > 1 {
                    return None;
                }
                let spatial: Vec<usize> = (2..tensors.rank($crate::channels::Port::Input(0))?).collect();
                Some($crate::channels::Channels::like_input(tensors, &spatial))
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                Ok(Box::new(PoolKernel::new(node, $pooling)?))
            }

            fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
                gradient::gradient(PoolKernel::new(node, $pooling)?)
            }
        }
    )*};
}

poolings! {
    AveragePool, 1, Pooling::Average;
    LpPool, 2, Pooling::Lp;
    MaxPool, 1, Pooling::Max;
}

fn infer(node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let x = required(inputs, 0)?;
    let geometry = Geometry::of_pooling(node)?;
    let rank = geometry.kernel.len() + 2;
    let dims: Vec<Dim> = match &x.shape {
        Some(shape) if shape.len() != rank => {
            let text = |rank: usize| format!("of rank {rank}");
            return Err(OpError::Shapes { a: text(shape.len()), b: text(rank) });
        }
        Some(shape) => {
            let spatial = shape[2..].iter().enumerate();
            let spatial = spatial.map(|(axis, size)| geometry.output_dim(axis, size));
            shape[..2].iter().cloned().chain(spatial).collect()
        }
        None => vec![Dim::Unknown; rank],
    };
    let mut facts = vec![Fact::new(x.dtype, dims.clone())];
    if node.outputs.len() > 1 {
        facts.push(Fact::new(DType::I64, dims));
    }
    Ok(facts)
}

struct PoolKernel {
    geometry: Geometry,
    pooling: Pooling,
    counts_padding: bool,
    /// Exponent of `LpPool`.
    p: i64,
    gives_indices: bool,
    column_major: bool,
}

impl PoolKernel {
    fn new(node: &Node, pooling: Pooling) -> Result<Self, OpError> {
        let p = node.int_or("p", 2)?;
        if p < 1 {
            return Err(OpError::value("p", p, "at least 1"));
        }
        Ok(Self {
            geometry: Geometry::of_pooling(node)?,
            pooling,
            counts_padding: node.int_or("count_include_pad", 0)? != 0,
            p,
            gives_indices: node.outputs.get(1).is_some_and(|output| !output.is_empty()),
            column_major: node.int_or("storage_order", 0)? != 0,
        })
    }
}

impl Kernel for PoolKernel {
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        let x = run.input(0)?;
        if x.rank() < 2 {
            return Err(OpError::value("the input", x.shape(), "batch, channels and axes"));
        }
        let windows = Windows::new(self.geometry.axes(&x.shape()[2..])?)?;
        let mut shape = x.shape()[..2].to_vec();
        shape.extend(windows.axes.iter().map(|axis| axis.output));
        match self.pooling {
            Pooling::Max => self.max(run, x, &windows, &shape),
            Pooling::Average => by_real!(x, 0, T => average::<T>(
                run, x, &windows, &shape, self.counts_padding,
            )),
            Pooling::Lp => by_real!(x, 0, T => lp::<T>(run, x, &windows, &shape, self.p)),
        }
        .map(|outputs| outputs.into_iter().collect())
    }
}

/// A type that windows are joined in.
trait Pooled: Element + PartialOrd {
    const LEAST: Self;
    fn greatest(out: &mut [Self], padded: &mut [Self], rows: &[&[Self]], slide: Slide);
}

macro_rules! pooled {
    ($($ty:ident: $greatest:ident;)*) => {$(
        impl Pooled for $ty {
            const LEAST: Self = <Greater as Join<Self>>::NEUTRAL;

            fn greatest(out: &mut [Self], padded: &mut [Self], rows: &[&[Self]], slide: Slide) {
                $greatest(out, padded, rows, slide);
            }
        }
    )*};
}

pooled! {
    f32: greatest_f32;
    f64: greatest_f64;
    i8: greatest_i8;
    u8: greatest_u8;
}

/// A float that windows are summed in.
trait Summed: Real {
    fn sums(out: &mut [Self], padded: &mut [Self], rows: &[&[Self]], slide: Slide);
    fn divide(out: &mut [Self], rows: usize, columns: &[Self]);
}

impl Summed for f32 {
    fn sums(out: &mut [Self], padded: &mut [Self], rows: &[&[Self]], slide: Slide) {
        sums_f32(out, padded, rows, slide);
    }

    fn divide(out: &mut [Self], rows: usize, columns: &[Self]) {
        divide_counts(out, rows as f32, columns);
    }
}

impl Summed for f64 {
    fn sums(out: &mut [Self], padded: &mut [Self], rows: &[&[Self]], slide: Slide) {
        sums_f64(out, padded, rows, slide);
    }

    fn divide(out: &mut [Self], rows: usize, columns: &[Self]) {
        out.iter_mut().zip(columns).for_each(|(out, columns)| *out /= rows as f64 * columns);
    }
}

impl PoolKernel {
    fn max(
        &self,
        run: &Run,
        x: &Tensor,
        windows: &Windows,
        shape: &[usize],
    ) -> Result<Vec<Tensor>, OpError> {
        macro_rules! as_type {
            ($ty:ty) => {{
                let mut y = run.output(x.dtype(), shape)?;
                let values = x.slice::<$ty>();
                if !self.gives_indices {
                    windows.for_each(run, y.slice_mut::<$ty>(), values, <$ty>::greatest, |_, _| {});
                    return Ok(vec![y]);
                }
                let mut indices = run.output(DType::I64, shape)?;
                let (y_out, at) = (y.slice_mut::<$ty>(), indices.slice_mut::<i64>());
                windows.argmax(y_out, at, values, self.column_major);
                Ok(vec![y, indices])
            }};
        }
        match x.dtype() {
            DType::F32 => as_type!(f32),
            DType::F64 => as_type!(f64),
            DType::I8 => as_type!(i8),
            DType::U8 => as_type!(u8),
            found => Err(OpError::DType { index: 0, found }),
        }
    }
}

/// What a mean is taken over, by column and by row of a plane: the product of both.
fn counts(windows: &Windows, counts_padding: bool) -> (Vec<usize>, Vec<usize>) {
    let count = |axis: &Axis, output| {
        if counts_padding { axis.padded_tap_count(output) } else { axis.taps(output).len() }
    };
    let (last, leading) = windows.split();
    let columns = (0..last.output).map(|o| count(last, o)).collect();
    let mut rows = vec![1_usize];
    for axis in leading {
        rows =
            rows.iter().flat_map(|n| (0..axis.output).map(move |o| n * count(axis, o))).collect();
    }
    (columns, rows)
}

fn average<T: Summed>(
    run: &Run,
    x: &Tensor,
    windows: &Windows,
    shape: &[usize],
    counts_padding: bool,
) -> Result<Vec<Tensor>, OpError> {
    let (columns, rows) = counts(windows, counts_padding);
    let columns: Vec<T> = columns.iter().map(|&count| T::of(count as f64)).collect();
    let mut y = run.output(x.dtype(), shape)?;
    windows.for_each(run, y.slice_mut::<T>(), x.slice::<T>(), T::sums, |row, out| {
        T::divide(out, rows[row], &columns);
    });
    Ok(vec![y])
}

fn lp<T: Summed>(
    run: &Run,
    x: &Tensor,
    windows: &Windows,
    shape: &[usize],
    p: i64,
) -> Result<Vec<Tensor>, OpError> {
    let exponent = T::of(p as f64);
    let mut powers = run.pool.tensor(x.dtype(), x.shape());
    for (power, &x) in powers.slice_mut::<T>().iter_mut().zip(x.slice::<T>()) {
        *power = match p {
            1 => x.abs(),
            2 => x * x,
            _ => x.abs().powf(exponent),
        };
    }
    let mut y = run.output(x.dtype(), shape)?;
    windows.for_each(run, y.slice_mut::<T>(), powers.slice::<T>(), T::sums, |_, out| match p {
        1 => {}
        2 => out.iter_mut().for_each(|sum| *sum = sum.sqrt()),
        _ => out.iter_mut().for_each(|sum| *sum = sum.powf(T::ONE / exponent)),
    });
    run.pool.recycle(powers);
    Ok(vec![y])
}

/// Windows over the planes of [batch, channels, axes…]; each plane is [rows, width].
struct Windows {
    axes: Vec<Axis>,
    slide: Slide,
    /// Per output row of a plane, the input rows under it, one list after the other.
    sources: Vec<usize>,
    ends: Vec<usize>,
}

/// Longest padded row; more is a hostile dilation or padding.
const PADDED_MAX: usize = 1 << 26;

impl Windows {
    fn new(axes: Vec<Axis>) -> Result<Self, OpError> {
        let (last, leading) = axes.split_last().expect("a window has an axis");
        let slide = Slide {
            kernel: last.kernel,
            stride: last.stride,
            dilation: last.dilation,
            pad: last.pad,
        };
        let outputs: Vec<usize> = axes.iter().map(|axis| axis.output).collect();
        let rows = attar_tensor::element_count(&outputs[..leading.len()]);
        if slide.padded_size(last.output) > PADDED_MAX || rows.is_none_or(|rows| rows > PADDED_MAX)
        {
            return Err(OpError::value("the windows", outputs, "sizes that memory holds"));
        }
        let (mut sources, mut ends) = (vec![0], vec![1]);
        for axis in leading {
            let (mut finer, mut finer_ends) = (Vec::new(), Vec::new());
            for row in 0..ends.len() {
                let coarse = &sources[start_of(&ends, row)..ends[row]];
                for output in 0..axis.output {
                    for source in coarse {
                        let taps = axis.taps(output);
                        let at = taps.map(|tap| axis.source(output, tap).expect("a tap inside"));
                        finer.extend(at.map(|at| source * axis.input + at));
                    }
                    finer_ends.push(finer.len());
                }
            }
            (sources, ends) = (finer, finer_ends);
        }
        Ok(Self { axes, slide, sources, ends })
    }

    fn split(&self) -> (&Axis, &[Axis]) {
        self.axes.split_last().expect("a window has an axis")
    }

    /// The input rows under an output row of a plane.
    fn rows_under(&self, row: usize) -> &[usize] {
        &self.sources[start_of(&self.ends, row)..self.ends[row]]
    }

    fn input_size(&self) -> usize {
        self.axes.iter().map(|axis| axis.input).product()
    }

    /// Pools every row, then hands it to `finish` with its index in the plane.
    fn for_each<T: Element>(
        &self,
        run: &Run,
        y: &mut [T],
        x: &[T],
        pool_row: impl Fn(&mut [T], &mut [T], &[&[T]], Slide) + Send + Sync,
        finish: impl Fn(usize, &mut [T]) + Send + Sync,
    ) {
        let (last, _) = self.split();
        let (width, plane) = (last.input, self.input_size());
        let padded_size = self.slide.padded_size(last.output);
        for_rows(y, last.output, |first, rows| {
            let mut scratch = run.pool.buffer(padded_size * size_of::<T>());
            let padded: &mut [T] = bytemuck::cast_slice_mut(scratch.as_bytes_mut());
            let mut under: Vec<&[T]> = Vec::new();
            for (index, out) in rows.chunks_exact_mut(last.output).enumerate() {
                let (at, row) =
                    ((first + index) / self.ends.len(), (first + index) % self.ends.len());
                let x = &x[at * plane..(at + 1) * plane];
                under.clear();
                let sources = self.rows_under(row).iter();
                under.extend(sources.map(|&source| &x[source * width..(source + 1) * width]));
                pool_row(out, padded, &under, self.slide);
                finish(row, out);
            }
            run.pool.recycle_buffer(scratch);
        });
    }

    /// The greatest value of every window and where it stands, counted over the whole input.
    fn argmax<T: Pooled>(&self, y: &mut [T], indices: &mut [i64], x: &[T], column_major: bool) {
        let (last, leading) = self.split();
        let (width, plane) = (last.input, self.input_size());
        // Of the first index of a row, and from one element of a row to the next.
        let place = |source: usize| -> (usize, usize) {
            if !column_major {
                return (source * width, 1);
            }
            let (mut rest, mut start) = (source, 0);
            for (axis, sizes) in leading.iter().enumerate().rev() {
                let stride: usize = leading[..axis].iter().map(|axis| axis.input).product();
                start += rest % sizes.input * stride;
                rest /= sizes.input;
            }
            (start, leading.iter().map(|axis| axis.input).product())
        };
        let rows = y
            .chunks_exact_mut(last.output.max(1))
            .zip(indices.chunks_exact_mut(last.output.max(1)));
        for (index, (y, indices)) in rows.enumerate() {
            let (at, row) = (index / self.ends.len(), index % self.ends.len());
            let x = &x[at * plane..(at + 1) * plane];
            for (output, (y, found)) in y.iter_mut().zip(indices).enumerate() {
                let (mut best, mut best_at) = (T::LEAST, None);
                for &source in self.rows_under(row) {
                    let (start, step) = place(source);
                    for tap in last.taps(output) {
                        let column = output * last.stride + tap * last.dilation - last.pad;
                        let value = x[source * width + column];
                        if best_at.is_none() || value > best {
                            // NaN loses, but is where it is when there is nothing else.
                            best = if value > T::LEAST { value } else { best };
                            best_at = Some(start + column * step);
                        }
                    }
                }
                *y = best;
                *found = best_at.map_or(-1, |best_at| (at * plane + best_at) as i64);
            }
        }
    }
}

fn start_of(ends: &[usize], row: usize) -> usize {
    if row == 0 { 0 } else { ends[row - 1] }
}
