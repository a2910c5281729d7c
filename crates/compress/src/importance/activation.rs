//! Activation-aware importance (Sun et al., "Wanda", 2023, arXiv:2306.11695): |w|·‖x‖, with the
//! root mean square of the input channel in place of its norm, so that tensors whose inputs were
//! seen a different number of times compare.

use std::collections::BTreeMap;

use attar_tensor::Tensor;

use super::{Scores, Scoring};
use crate::PassError;
use crate::layout::{DataAxis, Layout, readings};
use crate::quantize::calibrate::{Fold, observe};

struct Activation<'a> {
    scoring: &'a Scoring<'a>,
    /// By tensor: how it lies, and the root mean square of each channel of its data.
    channels: Vec<(Layout, Vec<f32>)>,
}

/// Σ x² of each channel.
struct Squares {
    axis: DataAxis,
    sums: Vec<f64>,
    /// Values of each channel.
    count: usize,
}

impl Fold for Squares {
    fn fold(&mut self, tensor: &Tensor) -> bool {
        let Some([outer, channels, inner]) = self.axis.split(tensor.shape()) else { return true };
        self.sums.resize(channels.max(self.sums.len()), 0.0);
        let values = tensor.values::<f32>();
        for (row, values) in values.chunks_exact(inner.max(1)).enumerate() {
            let squares: f32 = values.iter().map(|x| x * x).sum();
            self.sums[row % channels] += f64::from(squares);
        }
        self.count += outer * inner;
        self.sums.iter().all(|sum| sum.is_finite())
    }
}

pub(super) fn scores<'a>(scoring: &'a Scoring<'a>) -> Result<Box<dyn Scores + 'a>, PassError> {
    let graph = &scoring.model.graph;
    let mut records: BTreeMap<String, Squares> = BTreeMap::new();
    let mut read = Vec::new();
    for name in scoring.names {
        let unseen = || PassError::NoActivation { tensor: name.clone() };
        let readings = readings(graph, name).ok_or_else(unseen)?;
        for reading in &readings {
            let record = Squares { axis: reading.data_axis, sums: Vec::new(), count: 0 };
            let known = records.entry(reading.data.to_string()).or_insert(record);
            if known.axis != reading.data_axis {
                return Err(unseen());
            }
        }
        read.push(readings);
    }
    if !records.is_empty() {
        observe(scoring.model, &mut records, scoring.context)?;
    }
    let mut channels = Vec::new();
    for (index, readings) in read.iter().enumerate() {
        let (mut squares, mut count) = (Vec::new(), 0);
        for reading in readings {
            let record = &records[reading.data];
            squares.resize(record.sums.len().max(squares.len()), 0.0_f64);
            squares.iter_mut().zip(&record.sums).for_each(|(to, from)| *to += from);
            count += record.count;
        }
        let layout = readings[0].layout;
        let shape = scoring.tensor(index).shape();
        let last = shape.iter().product::<usize>().saturating_sub(1);
        if count == 0 || layout.channel(shape, last) >= squares.len() {
            return Err(PassError::NoActivation { tensor: scoring.names[index].clone() });
        }
        let root = |square: f64| (square / count as f64).sqrt() as f32;
        channels.push((layout, squares.into_iter().map(root).collect()));
    }
    Ok(Box::new(Activation { scoring, channels }))
}

impl Scores for Activation<'_> {
    fn of(&self, index: usize) -> Vec<f32> {
        let tensor = self.scoring.tensor(index);
        let (layout, channels) = &self.channels[index];
        let values = tensor.values::<f32>();
        let score = |(offset, w): (usize, &f32)| {
            (w.abs() * channels[layout.channel(tensor.shape(), offset)]).min(f32::MAX)
        };
        values.iter().enumerate().map(score).collect()
    }
}
