//! The generator that everything random in training is drawn from.

/// xoshiro256++ (Blackman and Vigna, 2019), seeded by splitmix64 from any count of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// A generator of its own for a place, such as (seed, epoch, batch).
    pub fn new(place: &[u64]) -> Self {
        let mut mix = 0x243F_6A88_85A3_08D3;
        for &number in place {
            mix = splitmix(&mut (mix ^ number));
        }
        Self { state: std::array::from_fn(|_| splitmix(&mut mix)) }
    }

    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Evenly from 0 up to, but not, 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Evenly from `0..bound`.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "a number below 0 was asked for");
        let bound = bound as u64;
        // Numbers of the last, incomplete round would favour the small ones.
        let end = u64::MAX - (u64::MAX % bound + 1) % bound;
        loop {
            let drawn = self.next_u64();
            if drawn <= end {
                return (drawn % bound) as usize;
            }
        }
    }

    /// True with the probability given.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    /// From the normal distribution of mean 0 and deviation 1 (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// From the gamma distribution of the shape given and scale 1 (Marsaglia and Tsang, 2000).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = (1.0 - self.uniform()).powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                return d * v;
            }
        }
    }

    /// From the beta distribution: the share of the first of two that mixup mixes.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        if x + y > 0.0 { x / (x + y) } else { 0.5 }
    }

    /// Every order is equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_draws_of_its_own() {
        let draw = |place: &[u64]| Rng::new(place).next_u64();
        assert_eq!(draw(&[1, 2, 3]), draw(&[1, 2, 3]));
        assert_ne!(draw(&[1, 2, 3]), draw(&[1, 3, 2]));
        assert_ne!(draw(&[0]), draw(&[0, 0]));
    }

    #[test]
    fn draws_have_the_mean_of_their_distribution() {
        let mut rng = Rng::new(&[7]);
        let mut mean =
            |draw: fn(&mut Rng) -> f64| (0..20_000).map(|_| draw(&mut rng)).sum::<f64>() / 20_000.0;
        assert!((mean(Rng::uniform) - 0.5).abs() < 0.01);
        assert!(mean(Rng::normal).abs() < 0.03);
        assert!((mean(|rng| rng.normal().powi(2)) - 1.0).abs() < 0.05);
        assert!((mean(|rng| rng.gamma(0.5)) - 0.5).abs() < 0.03);
        assert!((mean(|rng| rng.gamma(3.0)) - 3.0).abs() < 0.06);
        assert!((mean(|rng| rng.beta(0.2, 0.2)) - 0.5).abs() < 0.02);
        assert!((mean(|rng| rng.below(3) as f64) - 1.0).abs() < 0.03);
    }

    #[test]
    fn shuffling_keeps_every_item() {
        let mut items: Vec<usize> = (0..100).collect();
        Rng::new(&[1]).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
