//! Weights that were pruned: zeros that training holds.

use attar_ops::Flow;
use attar_tensor::Tensor;

/// Which elements of a weight are held at zero.
#[derive(Clone, Debug)]
pub(crate) struct HeldZeros {
    /// One bit per element, set where it is held.
    words: Vec<u64>,
}

impl HeldZeros {
    /// The zeros of a weight, if it has some and other values too. Zeros beside one value alone are
    /// no pruning: a fresh bias, and that of an LSTM, whose forget gate begins open.
    pub(crate) fn of(weight: &Tensor) -> Option<Self> {
        let values = weight.slice::<f32>();
        let mut others = values.iter().filter(|&&x| x != 0.0);
        let first = others.next()?;
        let is_fresh = others.all(|x| x == first);
        if is_fresh || !values.contains(&0.0) || weight.rank() < 2 {
            return None;
        }
        let word = |chunk: &[f32]| {
            let bits = chunk.iter().enumerate();
            bits.fold(0, |word, (bit, &x)| word | u64::from(x == 0.0) << bit)
        };
        Some(Self { words: values.chunks(64).map(word).collect() })
    }

    /// Nothing of a weight of `count` elements.
    pub(crate) fn none(count: usize) -> Self {
        Self { words: vec![0; count.div_ceil(64)] }
    }

    /// How many elements are held.
    pub(crate) fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(crate) fn is_held(&self, place: usize) -> bool {
        self.words[place / 64] >> (place % 64) & 1 == 1
    }

    pub(crate) fn set(&mut self, place: usize, is_held: bool) {
        let bit = 1 << (place % 64);
        let word = &mut self.words[place / 64];
        *word = if is_held { *word | bit } else { *word & !bit };
    }

    /// Sets what is held to zero in a tensor of the weight's shape.
    pub(crate) fn clear(&self, tensor: &mut Tensor) {
        for (place, x) in tensor.slice_mut::<f32>().iter_mut().enumerate() {
            if self.is_held(place) {
                *x = 0.0;
            }
        }
    }

    /// As a tensor of `shape`, 1 where it is held.
    pub(crate) fn to_tensor(&self, shape: &[usize]) -> Tensor {
        let count = shape.iter().product();
        let ones: Vec<f32> = (0..count).map(|at| f32::from(u8::from(self.is_held(at)))).collect();
        Tensor::new(shape, &ones)
    }

    /// From such a tensor.
    pub(crate) fn of_ones(ones: &Tensor) -> Self {
        let values = ones.slice::<f32>();
        let mut mask = Self::none(values.len());
        (0..values.len()).filter(|&at| values[at] != 0.0).for_each(|at| mask.set(at, true));
        mask
    }

    /// Sets the gradient to zero where the weight is held, so that neither it nor its moments move.
    pub(crate) fn hold(&self, gradient: &mut Flow) {
        match gradient {
            Flow::Dense(tensor) => {
                let chunks = tensor.slice_mut::<f32>().chunks_mut(64);
                for (chunk, &word) in chunks.zip(&self.words) {
                    let mut rest = word;
                    while rest != 0 {
                        chunk[rest.trailing_zeros() as usize] = 0.0;
                        rest &= rest - 1;
                    }
                }
            }
            Flow::Rows { shape, indices, rows } => {
                let width: usize = shape[1..].iter().product();
                let rows = rows.slice_mut::<f32>().chunks_exact_mut(width.max(1));
                for (row, &index) in rows.zip(indices.iter()) {
                    for (offset, x) in row.iter_mut().enumerate() {
                        let at = index * width + offset;
                        if self.is_held(at) {
                            *x = 0.0;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_of_pruned_weights_are_zero() {
        let weight: Vec<f32> = (0..150).map(|i| f32::from(u8::from(i % 3 != 1))).collect();
        let pruned: Vec<f32> = (0..150).map(|i| weight[i] * (i + 1) as f32).collect();
        let held = HeldZeros::of(&Tensor::new(&[15, 10], &pruned)).unwrap();
        let mut dense: Flow = Tensor::new(&[15, 10], &[1.0_f32; 150]).into();
        held.hold(&mut dense);
        let Flow::Dense(found) = dense else { panic!("it was dense") };
        assert_eq!(found.slice::<f32>(), weight);
        let rows = Tensor::new(&[2, 10], &[1.0_f32; 20]);
        let mut rows = Flow::Rows { shape: vec![15, 10], indices: vec![14, 3], rows };
        held.hold(&mut rows);
        let Flow::Rows { rows, .. } = rows else { panic!("they were rows") };
        assert_eq!(rows.slice::<f32>()[..10], weight[140..]);
        assert_eq!(rows.slice::<f32>()[10..], weight[30..40]);
    }

    #[test]
    fn fresh_zeros_are_not_held() {
        assert!(HeldZeros::of(&Tensor::new(&[2, 2], &[0.0_f32; 4])).is_none());
        assert!(HeldZeros::of(&Tensor::new(&[3], &[0.0_f32, 1.0, 0.0])).is_none());
        assert!(HeldZeros::of(&Tensor::new(&[1, 2], &[1.0_f32, 2.0])).is_none());
        assert!(HeldZeros::of(&Tensor::new(&[1, 4], &[0.0_f32, 1.0, 1.0, 0.0])).is_none());
    }
}
