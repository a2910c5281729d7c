//! First values of weights that are to be trained.

use std::collections::BTreeMap;

use attar_tensor::Tensor;

use crate::ImportError;

/// Elements that all weights of a new model may have: 8 GB of f32.
const ELEMENTS_MAX: usize = 1 << 31;

/// What a weight's first values are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Initial {
    Zeros,
    Ones,
    /// ±bound, evenly.
    Uniform(f64),
    /// A normal distribution without what lies beyond twice its deviation (Devlin et al., 2018,
    /// as their code has it).
    TruncatedNormal(f64),
    /// Normal of variance 2 / inputs, for what a `Relu` follows (He et al., 2015,
    /// arXiv:1502.01852).
    Kaiming,
    /// Uniform of variance 2 / (inputs + outputs) (Glorot and Bengio, 2010).
    Glorot,
    /// As `Glorot`, for each of the stacked gates by itself.
    GlorotGates(usize),
    /// Orthogonal square matrices, one for each gate (Saxe et al., 2013, arXiv:1312.6120).
    OrthogonalGates(usize),
    /// Zeros, but ones in the given gate of the first half: the forget gate, which lets gradients
    /// through at first (Jozefowicz et al., 2015).
    GateBias {
        gates: usize,
        open: usize,
    },
}

/// Draws weights, each from the seed and its name alone: a model that has more of them has the
/// same values in those that both have.
pub(crate) struct Drawing {
    pub(crate) seed: u64,
    /// What the architecture says of a weight, by name and shape.
    pub(crate) rule: fn(&str, &[usize]) -> Initial,
    /// Shapes of the weights that are asked for before they are drawn.
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
    drawn_count: usize,
}

impl Drawing {
    pub(crate) fn new(seed: u64, rule: fn(&str, &[usize]) -> Initial) -> Self {
        Self { seed, rule, shapes: BTreeMap::new(), drawn_count: 0 }
    }

    pub(super) fn draw(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ImportError> {
        let count = attar_tensor::element_count(shape)
            .and_then(|count| self.drawn_count.checked_add(count))
            .filter(|&count| count <= ELEMENTS_MAX);
        let too_large = || ImportError::TooLarge {
            tensor: name.into(),
            shape: shape.into(),
            max: ELEMENTS_MAX,
        };
        self.drawn_count = count.ok_or_else(too_large)?;
        let mut draws = Draws::new(self.seed, name);
        Ok(Tensor::new(shape, &(self.rule)(name, shape).values(shape, &mut draws)))
    }
}

impl Initial {
    fn values(self, shape: &[usize], draws: &mut Draws) -> Vec<f32> {
        let count = shape.iter().product();
        let mut fill = |value: &mut dyn FnMut(&mut Draws) -> f64| -> Vec<f32> {
            (0..count).map(|_| value(draws) as f32).collect()
        };
        let [inputs, outputs] = fans(shape);
        let glorot = |inputs: f64, outputs: f64| (6.0 / (inputs + outputs)).sqrt();
        match self {
            Self::Zeros => vec![0.0; count],
            Self::Ones => vec![1.0; count],
            Self::Uniform(bound) => fill(&mut |draws| bound * draws.signed()),
            Self::TruncatedNormal(deviation) => fill(&mut |draws| {
                let within = std::iter::repeat_with(|| draws.normal()).find(|x| x.abs() <= 2.0);
                deviation * within.expect("most draws are within two deviations")
            }),
            Self::Kaiming => fill(&mut |draws| (2.0 / inputs).sqrt() * draws.normal()),
            Self::Glorot => fill(&mut |draws| glorot(inputs, outputs) * draws.signed()),
            Self::GlorotGates(gates) => {
                // [directions, gates·hidden, inputs]
                let (rows, inputs) = (shape[1] as f64 / gates as f64, shape[2] as f64);
                fill(&mut |draws| glorot(inputs, rows) * draws.signed())
            }
            Self::OrthogonalGates(gates) => {
                let size = shape[2];
                (0..shape[0] * gates).flat_map(|_| orthogonal(size, draws)).collect()
            }
            Self::GateBias { gates, open } => {
                // [directions, 2·gates·hidden]
                let hidden = shape[1] / (2 * gates);
                let of_row = |i: usize| if i / hidden == open { 1.0 } else { 0.0 };
                (0..shape[0]).flat_map(|_| (0..shape[1]).map(of_row)).collect()
            }
        }
    }
}

/// Inputs and outputs of one element of the result of a matrix [outputs, inputs] or a filter
/// [outputs, inputs, …].
fn fans(shape: &[usize]) -> [f64; 2] {
    let size = |axes: &[usize]| axes.iter().product::<usize>() as f64;
    match shape {
        [outputs, inputs, window @ ..] => {
            let window = size(window);
            [*inputs as f64 * window, *outputs as f64 * window]
        }
        _ => [size(shape); 2],
    }
}

/// Rows of length 1 that stand at right angles to each other, by the Gram-Schmidt process.
fn orthogonal(size: usize, draws: &mut Draws) -> Vec<f32> {
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(size);
    while rows.len() < size {
        let mut row: Vec<f64> = (0..size).map(|_| draws.normal()).collect();
        // Twice, because once leaves what rounding lost.
        for _ in 0..2 {
            for other in &rows {
                let along: f64 = row.iter().zip(other).map(|(x, y)| x * y).sum();
                row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
            }
        }
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        // A row that the others span is drawn again.
        if length > 1e-6 {
            row.iter_mut().for_each(|x| *x /= length);
            rows.push(row);
        }
    }
    rows.concat().into_iter().map(|x| x as f32).collect()
}

/// Pseudo-random numbers: `SplitMix64` (Steele et al., 2014) from a seed and a name.
struct Draws {
    state: u64,
    /// The second of the two normal numbers that are made together.
    spare: Option<f64>,
}

impl Draws {
    fn new(seed: u64, name: &str) -> Self {
        // FNV-1a.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut draws = Self { state: seed, spare: None };
        draws.state = draws.next() ^ hash;
        draws
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From −1 to 1, neither of them included.
    fn signed(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 52) as f64 - 1.0
    }

    /// By the polar method (Marsaglia and Bray, 1964).
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (x, y) = (self.signed(), self.signed());
            let square = x * x + y * y;
            if square < 1.0 && square > 0.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                self.spare = Some(y * factor);
                return x * factor;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(initial: Initial, shape: &[usize]) -> Vec<f32> {
        initial.values(shape, &mut Draws::new(1, "w"))
    }

    fn variance(values: &[f32]) -> f64 {
        values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64
    }

    #[test]
    fn variances_are_those_of_the_papers() {
        // 10⁵ draws: the variance of a normal sample is off by 1.4 % at three deviations.
        for (initial, shape, expected) in [
            (Initial::Uniform(0.3), vec![100_000], 0.03),
            // What is left of the variance between −2 and 2: 1 − 4·φ(2) / (2·Φ(2) − 1).
            (Initial::TruncatedNormal(1.0), vec![100_000], 0.773_741),
            (Initial::Kaiming, vec![200, 500], 2.0 / 500.0),
            (Initial::Kaiming, vec![100, 20, 5, 10], 2.0 / 1000.0),
            (Initial::Glorot, vec![200, 500], 2.0 / 700.0),
            (Initial::GlorotGates(4), vec![2, 4 * 50, 250], 2.0 / 300.0),
        ] {
            let found = variance(&drawn(initial, &shape));
            assert!((found / expected - 1.0).abs() < 0.015, "{initial:?}: {found}, {expected}");
        }
    }

    #[test]
    fn each_gate_is_orthogonal() {
        let size = 20;
        let values = drawn(Initial::OrthogonalGates(2), &[1, 2 * size, size]);
        for gate in values.chunks(size * size) {
            for (i, a) in gate.chunks(size).enumerate() {
                for (j, b) in gate.chunks(size).enumerate() {
                    let product: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                    let expected = f32::from(u8::from(i == j));
                    assert!((product - expected).abs() < 1e-6, "{i} {j}: {product}");
                }
            }
        }
    }

    #[test]
    fn the_forget_gate_is_open_in_one_of_the_two_biases() {
        let values = drawn(Initial::GateBias { gates: 4, open: 2 }, &[2, 2 * 4 * 3]);
        let ones: Vec<usize> = (0..values.len()).filter(|&i| values[i] == 1.0).collect();
        assert_eq!(ones, [6, 7, 8, 30, 31, 32]);
        assert!(values.iter().all(|&x| x == 0.0 || x == 1.0));
    }

    #[test]
    fn a_weight_depends_on_seed_and_name_alone() {
        let mut one = Drawing::new(1, |_, _| Initial::Uniform(1.0));
        let a = one.draw("a", &[4]).unwrap();
        let b = one.draw("b", &[4]).unwrap();
        assert_ne!(a, b);
        let mut same = Drawing::new(1, |_, _| Initial::Uniform(1.0));
        assert_eq!((same.draw("b", &[4]).unwrap(), same.draw("a", &[4]).unwrap()), (b, a.clone()));
        let mut other = Drawing::new(2, |_, _| Initial::Uniform(1.0));
        assert_ne!(other.draw("a", &[4]).unwrap(), a);
    }

    #[test]
    fn weights_that_no_memory_holds_are_refused() {
        let mut drawing = Drawing::new(0, |_, _| Initial::Zeros);
        let error = drawing.draw("w", &[1 << 20, 1 << 20]).unwrap_err();
        assert!(error.to_string().contains("`w`"), "{error}");
        assert!(drawing.draw("w", &[usize::MAX, 2]).is_err());
    }
}
