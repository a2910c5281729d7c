//! Elements as words of their size, for operators that move values without reading them.

use attar_tensor::{Bytes, DType, Tensor};
use bytemuck::Pod;

use crate::{Kernel, OpError, Run};

/// The elements as words. The width must be that of the tensor's type.
pub(crate) fn words<T: Pod>(tensor: &Tensor) -> &[T] {
    bytemuck::cast_slice(tensor.bytes())
}

pub(crate) fn words_mut<T: Pod>(tensor: &mut Tensor) -> &mut [T] {
    bytemuck::cast_slice_mut(tensor.bytes_mut())
}

/// Whether elements are whole bytes, which a kernel can move.
pub(crate) fn check_movable(index: usize, tensor: &Tensor) -> Result<(), OpError> {
    match tensor.dtype().bits() {
        8 | 16 | 32 | 64 | 128 => Ok(()),
        _ => Err(OpError::DType { index, found: tensor.dtype() }),
    }
}

/// Runs `$body` with `$word` naming the unsigned integer as wide as the tensor's elements.
macro_rules! by_width {
    ($tensor:expr, $word:ident => $body:expr) => {
        match $tensor.dtype().bits() {
            8 => {
                type $word = u8;
                $body
            }
            16 => {
                type $word = u16;
                $body
            }
            32 => {
                type $word = u32;
                $body
            }
            128 => {
                type $word = u128;
                $body
            }
            _ => {
                type $word = u64;
                $body
            }
        }
    };
}
pub(crate) use by_width;

/// Makes a kernel that moves the elements of the inputs that are `moved`, which have one type, take every
/// type: it sees strings as their numbers in a list (`u64`, 0 for the empty string), and elements
/// smaller than a byte as bytes. Its outputs of those types become strings and small ones again.
pub(crate) fn for_every_type(
    moved: fn(usize) -> bool,
    kernel: impl Kernel + 'static,
) -> Box<dyn Kernel> {
    Box::new(EveryType { moved, kernel })
}

struct EveryType<K> {
    moved: fn(usize) -> bool,
    kernel: K,
}

impl<K: Kernel> Kernel for EveryType<K> {
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        let mut dtype = None;
        for index in (0..run.inputs.len()).filter(|&index| (self.moved)(index)) {
            let Some(found) = run.optional(index).map(Tensor::dtype) else { continue };
            if *dtype.get_or_insert(found) != found {
                return Err(OpError::DType { index, found });
            }
        }
        match dtype {
            Some(DType::String) => self.move_strings(run),
            Some(dtype) if dtype.bits() < 8 => self.move_codes(run, dtype),
            _ => self.kernel.run(run),
        }
    }
}

impl<K: Kernel> EveryType<K> {
    fn moved_inputs<'a>(
        &self,
        run: &'a mut Run,
    ) -> impl Iterator<Item = &'a mut Tensor> + use<'a, K> {
        let moved = self.moved;
        let inputs = run.inputs.iter_mut().enumerate().filter(move |(index, _)| moved(*index));
        inputs.filter_map(|(_, input)| input.as_mut())
    }

    fn move_strings(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        let mut strings = vec![Bytes::new()];
        for x in self.moved_inputs(run) {
            let first = strings.len() as u64;
            strings.extend_from_slice(x.strings());
            let numbers: Vec<u64> = (first..strings.len() as u64).collect();
            *x = Tensor::new(x.shape(), &numbers);
        }
        let mut outputs = self.kernel.run(run)?;
        for y in outputs.iter_mut().filter(|y| y.dtype() == DType::U64) {
            let moved = y.slice::<u64>().iter().map(|&i| strings[i as usize].clone()).collect();
            *y = Tensor::from_strings(y.shape(), moved).expect("one string for each number");
        }
        Ok(outputs)
    }

    fn move_codes(&self, run: &mut Run, dtype: DType) -> Result<Vec<Tensor>, OpError> {
        for x in self.moved_inputs(run) {
            *x = unpacked(x);
        }
        let mut outputs = self.kernel.run(run)?;
        for y in outputs.iter_mut().filter(|y| y.dtype() == DType::U8) {
            *y = packed(y, dtype);
        }
        Ok(outputs)
    }
}

/// Elements smaller than a byte as bytes, each in the low bits of its own.
pub(crate) fn unpacked(x: &Tensor) -> Tensor {
    Tensor::new(x.shape(), &x.codes().expect("elements smaller than a byte have codes"))
}

/// The reverse of [`unpacked`].
pub(crate) fn packed(codes: &Tensor, dtype: DType) -> Tensor {
    Tensor::from_codes(dtype, codes.shape(), codes.slice::<u8>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;

    fn reversed(x: &Tensor) -> Tensor {
        let kernel = for_every_type(
            |index| index == 0,
            |run: &mut Run| {
                let x = run.input(0)?;
                let mut y = run.pool.tensor(x.dtype(), x.shape());
                by_width!(x, Word => {
                    words_mut::<Word>(&mut y).iter_mut().zip(words::<Word>(x).iter().rev()).for_each(
                        |(y, x)| *y = *x);
                });
                Ok(vec![y])
            },
        );
        let mut run = Run { inputs: vec![Some(x.clone())], pool: &Pool::default() };
        kernel.run(&mut run).unwrap().remove(0)
    }

    #[test]
    fn strings_and_small_elements_move_like_any_other() {
        let words = ["a", "bc", ""].map(|word| Bytes::from_static(word.as_bytes()));
        let strings = Tensor::from_strings(&[3], words.to_vec()).unwrap();
        assert_eq!(reversed(&strings).strings(), ["", "bc", "a"].map(Bytes::from));
        let four = Tensor::from_bytes(DType::U4, &[3], Bytes::from_static(&[0x21, 0x0f])).unwrap();
        assert_eq!(reversed(&four).bytes(), [0x2f, 0x01]);
        let complex = Tensor::from_bytes(DType::Complex128, &[1], vec![7; 16].into()).unwrap();
        assert_eq!(reversed(&complex.aligned()).bytes(), [7; 16]);
    }
}
