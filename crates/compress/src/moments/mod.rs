//! Rows that products multiply their weights with: taken out of values, summed, or sampled.

mod rows;
mod sample;
mod second;

pub(crate) use rows::{Product, Rows, products};
pub(crate) use sample::RowSample;
pub(crate) use second::SecondMoments;
