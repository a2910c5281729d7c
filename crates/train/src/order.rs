//! Which examples make the batches of an epoch.

use crate::{BatchOptions, Rng, Source};

/// Batches' worth of examples that are sorted by length together.
const BUCKET_BATCHES: usize = 50;

/// What a generator is for, so that two of one seed differ.
pub(crate) const ORDER: u64 = 1;
pub(crate) const BATCH: u64 = 2;
pub(crate) const STEP: u64 = 3;

/// The batches of an epoch as examples' indices. Decided by (seed, epoch) alone. With lengths,
/// blocks of the shuffled examples are sorted by length and cut, and the batches shuffled.
pub(crate) fn batches_of(source: &dyn Source, options: &BatchOptions, epoch: u64) -> Vec<Vec<u32>> {
    let mut rng = Rng::new(&[options.seed, ORDER, epoch]);
    let size = options.size.get();
    let mut indices: Vec<u32> = (0..source.len() as u32).collect();
    rng.shuffle(&mut indices);
    let lengths = source.lengths().filter(|_| options.bucket);
    if let Some(lengths) = lengths {
        for block in indices.chunks_mut(size * BUCKET_BATCHES) {
            block.sort_by_key(|&index| lengths.get(index as usize).copied().unwrap_or(0));
        }
    }
    let mut batches: Vec<Vec<u32>> = indices.chunks(size).map(<[u32]>::to_vec).collect();
    if options.drop_last && batches.len() > 1 {
        batches.retain(|batch| batch.len() == size);
    }
    if lengths.is_some() {
        rng.shuffle(&mut batches);
    }
    batches
}

/// How many batches an epoch has.
pub(crate) fn batch_count(example_count: usize, options: &BatchOptions) -> usize {
    let size = options.size.get();
    if options.drop_last { (example_count / size).max(1) } else { example_count.div_ceil(size) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, TrainError};

    struct Lengths(Vec<usize>);

    impl Source for Lengths {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn lengths(&self) -> Option<&[usize]> {
            Some(&self.0)
        }

        fn batch(&self, _: &[usize], _: &mut Rng) -> Result<Batch, TrainError> {
            Err(TrainError::NoData)
        }
    }

    fn options(size: usize) -> BatchOptions {
        BatchOptions { size: size.try_into().unwrap(), ..BatchOptions::default() }
    }

    #[test]
    fn an_epoch_holds_every_example_once_in_an_order_of_its_own() {
        let source = Lengths((0..103).map(|i| i % 7).collect());
        for bucket in [false, true] {
            let options = BatchOptions { bucket, ..options(10) };
            let batches = batches_of(&source, &options, 3);
            assert_eq!(batches.len(), batch_count(103, &options));
            assert_eq!(batches, batches_of(&source, &options, 3));
            assert_ne!(batches, batches_of(&source, &options, 4));
            let mut all = batches.concat();
            all.sort_unstable();
            assert_eq!(all, (0..103).collect::<Vec<u32>>());
        }
    }

    #[test]
    fn a_batch_of_buckets_holds_like_lengths() {
        let source = Lengths((0..1000).map(|i| i * 7919 % 64).collect());
        let batches = batches_of(&source, &options(20), 0);
        let padding = |batches: &[Vec<u32>]| -> usize {
            let cost = |batch: &Vec<u32>| {
                let lengths = batch.iter().map(|&index| source.0[index as usize]);
                lengths.clone().max().unwrap_or(0) * batch.len() - lengths.sum::<usize>()
            };
            batches.iter().map(cost).sum()
        };
        let unsorted = batches_of(&source, &BatchOptions { bucket: false, ..options(20) }, 0);
        assert!(padding(&batches) * 10 < padding(&unsorted));
    }

    #[test]
    fn a_last_batch_that_is_not_full_can_be_left_out() {
        let source = Lengths(vec![1; 25]);
        let options = BatchOptions { drop_last: true, ..options(10) };
        let batches = batches_of(&source, &options, 0);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10]);
        assert_eq!(batch_count(25, &options), 2);
    }
}
