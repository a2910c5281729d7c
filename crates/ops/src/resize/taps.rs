//! Which elements of an axis each output reads, and with what weights.

use super::settings::{Coordinates, Mode, Nearest, Scaled, Settings};

/// The elements that each output of an axis is made of: `count` for each.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Taps {
    pub(super) count: usize,
    /// Tap t of output o stands at [o · count + t].
    pub(super) indices: Vec<usize>,
    pub(super) weights: Vec<f32>,
    /// Outputs that lie outside the region of interest.
    pub(super) outside: Vec<bool>,
}

impl Taps {
    /// Taps of an axis that is not empty.
    pub(super) fn new(settings: &Settings, axis: &Scaled) -> Self {
        let last = axis.input as f32 - 1.0;
        let mut taps =
            Self { count: 0, indices: Vec::new(), weights: Vec::new(), outside: Vec::new() };
        let kernel = Kernel::new(settings, axis.scale);
        for output in 0..axis.output {
            let x = coordinate(settings.coordinates, axis, output as f32);
            let is_cut = settings.coordinates == Coordinates::TfCropAndResize;
            taps.outside.push(is_cut && !(0.0..=last).contains(&x));
            if settings.mode == Mode::Nearest {
                let nearest = rounded(settings.nearest, x).clamp(0.0, last);
                taps.push(&[nearest as i64], &[1.0], axis.input);
            } else {
                kernel.push(&mut taps, x, axis.input, settings.exclude_outside);
            }
        }
        taps
    }

    fn push(&mut self, indices: &[i64], weights: &[f32], size: usize) {
        self.count = indices.len();
        let clamped = |&index: &i64| index.clamp(0, size as i64 - 1) as usize;
        self.indices.extend(indices.iter().map(clamped));
        self.weights.extend(weights);
    }

    /// Whether every output is its own input.
    pub(super) fn are_identity(&self, input: usize) -> bool {
        self.outside.len() == input
            && !self.outside.contains(&true)
            && (0..input).all(|output| {
                let at = output * self.count..(output + 1) * self.count;
                let (indices, weights) = (&self.indices[at.clone()], &self.weights[at]);
                // At the edge, taps of weight 0 are clamped onto the element itself.
                let own =
                    |(&index, &weight): (&usize, &f32)| if index == output { weight } else { 0.0 };
                let other = |(&index, &weight): (&usize, &f32)| index != output && weight != 0.0;
                indices.iter().zip(weights).map(own).sum::<f32>() == 1.0
                    && !indices.iter().zip(weights).any(other)
            })
    }
}

/// The input coordinate of an output index; f32, as ONNX Runtime has it, so that ties fall alike.
fn coordinate(coordinates: Coordinates, axis: &Scaled, x: f32) -> f32 {
    let Scaled { scale, roi: [start, end], .. } = *axis;
    let length = axis.input as f32;
    // The reference takes the length before it is rounded down.
    let resized = scale * length;
    match coordinates {
        Coordinates::HalfPixel => (x + 0.5) / scale - 0.5,
        Coordinates::HalfPixelSymmetric => {
            let adjustment = axis.output as f32 / resized;
            length / 2.0 * (1.0 - adjustment) + (x + 0.5) / scale - 0.5
        }
        Coordinates::PytorchHalfPixel if axis.output > 1 => (x + 0.5) / scale - 0.5,
        Coordinates::PytorchHalfPixel => 0.0,
        Coordinates::AlignCorners if resized == 1.0 => 0.0,
        Coordinates::AlignCorners => x * (length - 1.0) / (resized - 1.0),
        Coordinates::Asymmetric => x / scale,
        Coordinates::TfHalfPixelForNn => (x + 0.5) / scale,
        Coordinates::TfCropAndResize if axis.output > 1 => {
            start * (length - 1.0) + x * (end - start) * (length - 1.0) / (axis.output as f32 - 1.0)
        }
        Coordinates::TfCropAndResize => 0.5 * (start + end) * (length - 1.0),
    }
}

fn rounded(nearest: Nearest, x: f32) -> f32 {
    match nearest {
        Nearest::RoundPreferFloor if x == x.floor() + 0.5 => x.floor(),
        Nearest::RoundPreferFloor | Nearest::RoundPreferCeil => x.round(),
        Nearest::Floor => x.floor(),
        Nearest::Ceil => x.ceil(),
    }
}

/// The weights around a coordinate: linear or cubic, stretched by 1 / scale where antialiased.
struct Kernel {
    mode: Mode,
    cubic_a: f32,
    /// 1 where nothing is stretched.
    scale: f32,
    /// Index of the first tap, from the one below the coordinate.
    first: i64,
}

impl Kernel {
    fn new(settings: &Settings, scale: f32) -> Self {
        let scale = if settings.antialias { scale.min(1.0) } else { 1.0 };
        let reach = if settings.mode == Mode::Cubic { 2.0 } else { 1.0 };
        let first = (-reach / scale).floor() as i64 + 1;
        Self { mode: settings.mode, cubic_a: settings.cubic_a, scale, first }
    }

    fn push(&self, taps: &mut Taps, x: f32, size: usize, exclude_outside: bool) {
        // Far outside, every tap is the edge.
        let x = x.clamp(-2.0 * size as f32 - 4.0, 3.0 * size as f32 + 4.0);
        let below = x.floor();
        let ratio = x - below;
        let indices: Vec<i64> =
            (self.first..2 - self.first).map(|tap| below as i64 + tap).collect();
        let at = |tap: i64| self.weight((tap as f32 - ratio) * self.scale);
        let mut weights: Vec<f32> = (self.first..2 - self.first).map(at).collect();
        let is_excluded = |index: &i64| exclude_outside && !(0..size as i64).contains(index);
        let mut is_normal = self.scale == 1.0;
        for (weight, index) in weights.iter_mut().zip(&indices) {
            if is_excluded(index) {
                *weight = 0.0;
                is_normal = false;
            }
        }
        let sum: f32 = weights.iter().sum();
        if !is_normal && sum != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        taps.push(&indices, &weights, size);
    }

    /// Keys' cubic convolution, or the triangle.
    fn weight(&self, distance: f32) -> f32 {
        let (x, a) = (distance.abs(), self.cubic_a);
        match self.mode {
            Mode::Cubic if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Mode::Cubic if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
            Mode::Cubic => 0.0,
            _ => (1.0 - x).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    fn taps(attributes: &str, input: usize, scale: f32) -> Taps {
        let graph = graph_from_text(&format!("y = Resize(x, r, s{attributes})"));
        let settings = Settings::new(&graph.nodes[0]).unwrap();
        let scaled = settings.scaled(&[input], None, Some(&[scale]), None).unwrap();
        Taps::new(&settings, &scaled[0])
    }

    #[test]
    fn nearest_takes_every_element_twice() {
        assert_eq!(taps("", 3, 2.0).indices, [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn linear_weights_sum_to_one_and_stay_at_the_edge() {
        let taps = taps(", mode=linear", 2, 2.0);
        assert_eq!(taps.indices, [0, 0, 0, 1, 0, 1, 1, 1]);
        assert_eq!(taps.weights, [0.25, 0.75, 0.75, 0.25, 0.25, 0.75, 0.75, 0.25]);
    }

    #[test]
    fn a_scale_of_one_changes_nothing() {
        assert!(taps(", mode=cubic", 5, 1.0).are_identity(5));
        assert!(!taps(", mode=cubic", 5, 1.2).are_identity(5));
    }
}
