//! Time of a run. Sessions to compare run in turn, so that a noisy machine slows all alike.

use std::time::{Duration, Instant};

use attar_graph::{Dim, Value};
use attar_runtime::{RuntimeError, Session};
use attar_tensor::{DType, Tensor};
use serde::Serialize;

/// Times of one session.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// What else runs on the machine makes runs longer and none shorter.
    pub least_ms: f64,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub run_count: usize,
    /// Examples per second at the median.
    pub throughput: f64,
}

/// Sizes of a synthetic batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    pub batch: usize,
    /// Tokens per text, or pixels per side of an image.
    pub length: usize,
}

/// Runs every session in turn until each has `runs_min` runs and `time_min` has passed for all.
///
/// The first runs warm up and do not count.
///
/// # Errors
/// A failing run.
pub fn measure(
    sessions: &mut [&mut dyn Session],
    feeds: &[Vec<(String, Tensor)>],
    batch: usize,
    runs_min: usize,
    time_min: Duration,
) -> Result<Vec<Latency>, RuntimeError> {
    const WARM_UP: usize = 3;
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); sessions.len()];
    let start = Instant::now();
    for round in 0.. {
        if round >= runs_min + WARM_UP && start.elapsed() >= time_min {
            break;
        }
        for (index, session) in sessions.iter_mut().enumerate() {
            let feeds: Vec<(&str, &Tensor)> =
                feeds[index].iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            let run = Instant::now();
            session.run(&feeds)?;
            if round >= WARM_UP {
                times[index].push(run.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    Ok(times.into_iter().map(|times| summary(times, batch)).collect())
}

fn summary(mut times: Vec<f64>, batch: usize) -> Latency {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part).round() as usize];
    let p50_ms = at(0.5);
    Latency {
        least_ms: times[0],
        p50_ms,
        p95_ms: at(0.95),
        p99_ms: at(0.99),
        run_count: times.len(),
        throughput: batch as f64 / (p50_ms / 1e3),
    }
}

/// Feeds of the given sizes for any model: token ids of common words, masks of ones, images of
/// smooth noise. Axis 0 is the batch, and so is another axis that is called as one of these; other
/// open axes are the length.
///
/// # Errors
/// An input of a type that cannot be made up.
pub fn synthetic_feeds(
    inputs: &[Value],
    shape: Shape,
) -> Result<Vec<(String, Tensor)>, RuntimeError> {
    let name = |dim: &Dim| {
        let mut name = None;
        dim.for_each_symbol(&mut |symbol| name = Some(symbol.to_string()));
        name
    };
    let first = |input: &Value| name(input.shape()?.first()?);
    let batches: Vec<String> = inputs.iter().filter_map(first).collect();
    let is_batch =
        |axis: usize, dim: &Dim| axis == 0 || name(dim).is_some_and(|name| batches.contains(&name));
    inputs
        .iter()
        .map(|input| {
            let dims = input.shape().unwrap_or(&[Dim::Unknown]);
            let sizes: Vec<usize> = (dims.iter().enumerate())
                .map(|(axis, dim)| match dim.known() {
                    Some(size) => size.max(0) as usize,
                    None if is_batch(axis, dim) => shape.batch,
                    None => shape.length,
                })
                .collect();
            let count: usize = sizes.iter().product();
            let tensor = match input.dtype() {
                Some(DType::F32) => {
                    let value = |i: usize| ((i % 1009) as f32 * 0.37).sin();
                    Tensor::new(&sizes, &(0..count).map(value).collect::<Vec<_>>())
                }
                Some(dtype @ (DType::I64 | DType::I32)) => {
                    let value = |i: usize| match input.name.as_str() {
                        name if name.contains("mask") => 1,
                        name if name.contains("type") => 0,
                        // Ids that the vocabulary of any text model has.
                        _ => 1000 + (i as i64 * 37) % 1000,
                    };
                    Tensor::new(&sizes, &(0..count).map(value).collect::<Vec<i64>>())
                        .converted(dtype)
                        .expect("integers convert to integers")
                }
                other => {
                    let dtype = other.map_or("unknown".into(), |dtype| dtype.to_string());
                    return Err(RuntimeError::Unsupported {
                        what: format!("made-up values for input `{}` of type {dtype}", input.name),
                    });
                }
            };
            Ok((input.name.clone(), tensor))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_that_is_called_as_the_batch_is_the_batch() {
        let value = |name: &str, dims: &[Dim]| Value::tensor(name, DType::F32, dims.to_vec());
        let [batch, length] = ["batch", "length"].map(Dim::symbol);
        let inputs = [
            value("x", &[batch.clone(), length]),
            value("state", &[Dim::from(2_usize), batch, Dim::from(128_usize)]),
        ];
        let feeds = synthetic_feeds(&inputs, Shape { batch: 3, length: 576 }).unwrap();
        let shapes: Vec<&[usize]> = feeds.iter().map(|(_, tensor)| tensor.shape()).collect();
        assert_eq!(shapes, [&[3, 576][..], &[2, 3, 128]]);
    }
}
