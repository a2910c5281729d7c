//! The input of a convolution with its padding around it.

use crate::geometry::Axis;

/// The input as the windows see it: zeros around it where there is padding.
pub(super) struct Strip {
    pub(super) channels: usize,
    /// Elements from one index to the next along each spatial axis.
    pub(super) pitches: Vec<usize>,
    /// Sizes along each axis, of a whole image.
    sizes: Vec<usize>,
    /// Whether there is padding, so that the input must be copied.
    pub(super) is_copied: bool,
}

impl Strip {
    pub(super) fn new(axes: &[Axis], channels: usize) -> Self {
        let needed =
            |axis: &Axis| (axis.output - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
        let is_copied = axes.iter().any(|axis| axis.pad > 0 || needed(axis) > axis.input);
        let size = |axis: &Axis| if is_copied { needed(axis) } else { axis.input };
        let sizes: Vec<usize> = axes.iter().map(size).collect();
        let mut pitches = vec![channels; sizes.len()];
        for axis in (0..sizes.len() - 1).rev() {
            pitches[axis] = pitches[axis + 1] * sizes[axis + 1];
        }
        Self { channels, pitches, sizes, is_copied }
    }

    /// Rows along the first axis that `count` outputs need.
    pub(super) fn rows(axis: &Axis, count: usize) -> usize {
        (count - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1
    }

    /// Image `n` of `x`.
    pub(super) fn image<'a, T>(&self, x: &'a [T], axes: &[Axis], n: usize) -> &'a [T] {
        let size = axes.iter().map(|axis| axis.input).product::<usize>() * self.channels;
        &x[n * size..(n + 1) * size]
    }

    /// What each tap adds to a pixel's place, and how many values it reads. Neighbouring taps of
    /// the last axis lie next to each other and count as one.
    pub(super) fn taps(&self, axes: &[Axis], group: usize) -> (Vec<usize>, usize) {
        let last = axes.len() - 1;
        let joined = group == 1 && axes[last].dilation == 1;
        let mut taps = vec![0];
        for (index, axis) in axes.iter().enumerate() {
            let count = if joined && index == last { 1 } else { axis.kernel };
            let step = axis.dilation * self.pitches[index];
            taps = (taps.iter()).flat_map(|&tap| (0..count).map(move |k| tap + k * step)).collect();
        }
        let kernel = if joined { axes[last].kernel } else { 1 };
        (taps, kernel * (self.channels / group))
    }

    /// Copies the rows from that of output `first` on, with `pad` around them.
    pub(super) fn fill<T: Copy>(
        &self,
        strip: &mut [T],
        image: &[T],
        axes: &[Axis],
        first: usize,
        pad: T,
    ) {
        let last = axes.len() - 1;
        let line = self.pitches[last - 1];
        let wide = &axes[last];
        let inside = wide.input.min(self.sizes[last].saturating_sub(wide.pad)) * self.channels;
        let before = wide.pad.min(self.sizes[last]) * self.channels;
        for (index, line) in strip.chunks_exact_mut(line).enumerate() {
            match self.source_line(axes, first, index) {
                Some(source) => {
                    let source = &image[source * wide.input * self.channels..][..inside];
                    line[..before].fill(pad);
                    line[before..before + inside].copy_from_slice(source);
                    line[before + inside..].fill(pad);
                }
                None => line.fill(pad),
            }
        }
    }

    /// The line of the image that is line `index` of the strip, if it is none of padding.
    fn source_line(&self, axes: &[Axis], first: usize, index: usize) -> Option<usize> {
        let last = axes.len() - 1;
        let (mut rest, mut source, mut pitch) = (index, 0, 1);
        for at in (0..last).rev() {
            let axis = &axes[at];
            let place = if at == 0 {
                rest + first * axis.stride
            } else {
                let place = rest % self.sizes[at];
                rest /= self.sizes[at];
                place
            };
            let place = place.checked_sub(axis.pad).filter(|&place| place < axis.input)?;
            source += place * pitch;
            pitch *= axis.input;
        }
        Some(source)
    }
}
