//! Makes batches on a thread of their own, while steps compute.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use crate::order::{BATCH, batches_of};
use crate::{Batch, BatchOptions, Rng, Source, TrainError};

/// Steps whose batches are made ahead.
const AHEAD: usize = 2;

/// The batches of a step, or why they could not be made.
pub(super) type Made = Result<Vec<Batch>, TrainError>;

/// Begins with the batch given, and goes on to the end of the last epoch, or until nobody listens.
pub(super) fn produce<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    source: &'env dyn Source,
    options: &'env BatchOptions,
    epochs: std::ops::Range<usize>,
    first_batch: usize,
) -> Receiver<Made> {
    let (sender, receiver) = sync_channel(AHEAD);
    scope.spawn(move || {
        let mut skipped = first_batch;
        for epoch in epochs {
            if !send_epoch(source, options, epoch, skipped, &sender) {
                return;
            }
            skipped = 0;
        }
    });
    receiver
}

/// Whether somebody still listens.
fn send_epoch(
    source: &dyn Source,
    options: &BatchOptions,
    epoch: usize,
    skipped: usize,
    sender: &SyncSender<Made>,
) -> bool {
    let batches = batches_of(source, options, epoch as u64);
    let batch = |(place, indices): (usize, &Vec<u32>)| {
        let mut draw = Rng::new(&[options.seed, BATCH, epoch as u64, place as u64]);
        let indices: Vec<usize> = indices.iter().map(|&index| index as usize).collect();
        source.batch(&indices, &mut draw)
    };
    let each = options.accumulate.get();
    for (group, indices) in batches.chunks(each).enumerate().skip(skipped.div_ceil(each)) {
        let places = (group * each..).zip(indices);
        let made: Made = places.map(batch).collect();
        let is_over = made.is_err();
        if sender.send(made).is_err() || is_over {
            return false;
        }
    }
    true
}
