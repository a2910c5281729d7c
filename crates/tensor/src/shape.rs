//! The sizes of a tensor's axes.

use std::ops::Deref;

/// Axes that a shape holds in itself: a small model's nodes take less time than allocations.
const INLINE_MAX: usize = 4;

/// Sizes of axes, up to four of them without an allocation.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Inline([usize; INLINE_MAX], u8),
    Boxed(Box<[usize]>),
}

impl From<&[usize]> for Shape {
    fn from(sizes: &[usize]) -> Self {
        if sizes.len() > INLINE_MAX {
            return Self::Boxed(sizes.into());
        }
        let mut inline = [0; INLINE_MAX];
        inline[..sizes.len()].copy_from_slice(sizes);
        Self::Inline(inline, sizes.len() as u8)
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        match self {
            Self::Inline(sizes, rank) => &sizes[..usize::from(*rank)],
            Self::Boxed(sizes) => sizes,
        }
    }
}

impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_any_rank_are_what_was_given() {
        for rank in 0..7 {
            let sizes: Vec<usize> = (2..2 + rank).collect();
            let shape = Shape::from(sizes.as_slice());
            assert_eq!((&*shape, &shape.clone()), (sizes.as_slice(), &shape));
            assert_eq!(matches!(shape, Shape::Boxed(_)), rank > 4);
        }
    }
}
