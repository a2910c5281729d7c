//! Weights of an integer convolution in the order that its kernels read them.

use super::{Form, Tile};
use crate::kernels::int8_convolution::Line;
use crate::kernels::int8_depthwise::Layout;

/// Weights [outputs, inputs per group, taps] on their way into lines.
pub(super) struct Packing<'a> {
    pub(super) values: &'a [i16],
    pub(super) shape: &'a [usize],
    pub(super) group: usize,
}

impl Packing<'_> {
    /// As the layout has them.
    pub(super) fn depthwise(&self, layout: Layout) -> Vec<Line> {
        let (tall, wide) = match self.shape[2..] {
            [tall, wide] => (tall, wide),
            _ => (1, self.shape[2]),
        };
        let (channels, lines, block) = (self.shape[0], layout.lines(), layout.block());
        let mut bytes = Vec::new();
        for first in (0..channels).step_by(block) {
            for (kx, unit) in
                (0..wide).flat_map(|kx| (0..tall.div_ceil(lines)).map(move |unit| (kx, unit)))
            {
                for (c, ky) in layout
                    .order()
                    .flat_map(|c| (0..lines).map(move |line| (first + c, unit * lines + line)))
                {
                    let is_weight = c < channels && ky < tall;
                    let w = if is_weight { self.values[(c * tall + ky) * wide + kx] } else { 0 };
                    match layout {
                        Layout::Fours => bytes.push(w as i8),
                        #[cfg(target_arch = "x86_64")]
                        Layout::Pairs => bytes.extend(w.to_le_bytes().map(u8::cast_signed)),
                    }
                }
            }
        }
        bytes.as_chunks().0.iter().map(|&line| Line(line)).collect()
    }

    /// Per group and tile of outputs: [part, tap, four inputs, vector, lane, input]. Where taps of
    /// the last axis are joined, they count as inputs of one.
    pub(super) fn dense(&self, most: usize, is_joined: bool, parts: usize) -> (Vec<Line>, Form) {
        let (outputs, inputs) = (self.shape[0], self.shape[1]);
        let taps: usize = self.shape[2..].iter().product();
        let joined = if is_joined { self.shape[self.shape.len() - 1] } else { 1 };
        let depth = joined * inputs;
        let per_group = outputs / self.group;
        let (mut lines, mut tiles, mut place) = (Vec::new(), Vec::new(), 0);
        for group in 0..self.group {
            // Tiles of nearly equal width.
            let mut vectors = per_group.div_ceil(16);
            let mut count = vectors.div_ceil(most);
            let mut first = 0;
            while count > 0 {
                let each = vectors.div_ceil(count);
                let width = (per_group - first).min(each * 16);
                let (output, start) = (group * per_group + first, lines.len());
                let mut tile = Tile { group, output, width, start, size: 0, place };
                let order: Vec<usize> = tile.order().collect();
                for index in 0..parts {
                    for (tap, four) in (0..taps / joined)
                        .flat_map(|tap| (0..depth.div_ceil(4)).map(move |four| (tap, four)))
                    {
                        for lanes in order.chunks_exact(16) {
                            let at = |i: usize| {
                                let (o, k) = (lanes[i / 4], four * 4 + i % 4);
                                if o == usize::MAX || k >= depth {
                                    return 0;
                                }
                                let tap = tap * joined + k / inputs;
                                let w = self.values[(o * inputs + k % inputs) * taps + tap];
                                part(w, index, parts)
                            };
                            lines.push(Line(std::array::from_fn(at)));
                        }
                    }
                }
                tile.size = lines.len() - start;
                place += order.len();
                tiles.push(tile);
                first += width;
                vectors -= each;
                count -= 1;
            }
        }
        (lines, Form::Dense { tiles, parts })
    }
}

/// One of the parts, all of i8, that add up to a weight.
fn part(w: i16, index: usize, parts: usize) -> i8 {
    let mut rest = w;
    for at in 0..index {
        rest -= rest / (parts - at) as i16;
    }
    (rest / (parts - index) as i16) as i8
}
