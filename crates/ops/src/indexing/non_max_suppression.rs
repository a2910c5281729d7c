//! `NonMaxSuppression` (opset 10 and later): for each batch item and class, boxes by falling score
//! (of equal ones that with the lower index), those dropped that overlap a chosen one by more than
//! a threshold. Gives `[count, 3]`: batch item, class, box.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::integers_of;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct NonMaxSuppression;

impl Operator for NonMaxSuppression {
    fn op_type(&self) -> &'static str {
        "NonMaxSuppression"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=5
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        required(inputs, 0)?;
        Ok(vec![Fact::new(DType::I64, vec![Dim::Unknown, Dim::Known(3)])])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let by_center = node.int_or("center_point_box", 0)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let (boxes, scores) = (run.typed::<f32>(0)?, run.typed::<f32>(1)?);
            let (&[batches, count, 4], &[score_batches, classes, score_count]) =
                (boxes.shape(), scores.shape())
            else {
                return Err(OpError::shapes(boxes.shape(), scores.shape()));
            };
            if batches != score_batches || count != score_count {
                return Err(OpError::shapes(boxes.shape(), scores.shape()));
            }
            let limit = match run.optional(2) {
                Some(limit) => *integers_of(limit, 2)?.first().unwrap_or(&0),
                None => 0,
            };
            let limits = Limits {
                count: usize::try_from(limit).unwrap_or(0),
                overlap: threshold(run, 3)?.unwrap_or(0.0),
                score: threshold(run, 4)?,
            };
            let boxes: Vec<Corners> =
                boxes.slice::<f32>().chunks_exact(4).map(|b| Corners::new(b, by_center)).collect();
            let scores = scores.slice::<f32>();
            let mut chosen: Vec<i64> = Vec::new();
            for batch in 0..batches {
                let boxes = &boxes[batch * count..][..count];
                for class in 0..classes {
                    let scores = &scores[(batch * classes + class) * count..][..count];
                    for index in suppress(boxes, scores, &limits) {
                        chosen.extend([batch as i64, class as i64, index as i64]);
                    }
                }
            }
            Ok(vec![Tensor::new(&[chosen.len() / 3, 3], &chosen)])
        }))
    }
}

struct Limits {
    /// Boxes chosen per class at most.
    count: usize,
    overlap: f32,
    /// What a score must exceed.
    score: Option<f32>,
}

fn threshold(run: &Run, index: usize) -> Result<Option<f32>, OpError> {
    if run.optional(index).is_none() {
        return Ok(None);
    }
    Ok(run.typed::<f32>(index)?.slice::<f32>().first().copied())
}

#[derive(Clone, Copy)]
struct Corners {
    low: [f32; 2],
    high: [f32; 2],
}

impl Corners {
    /// From two opposite corners `[y, x, y, x]`, or from `[x, y, width, height]` of the centre.
    fn new(numbers: &[f32], by_center: bool) -> Self {
        let axis = |i: usize| {
            if by_center {
                let half = numbers[i + 2] / 2.0;
                (numbers[i] - half, numbers[i] + half)
            } else {
                let (a, b) = (numbers[i], numbers[i + 2]);
                (a.min(b), a.max(b))
            }
        };
        let (first, second) = (axis(0), axis(1));
        Self { low: [first.0, second.0], high: [first.1, second.1] }
    }

    fn area(&self) -> f32 {
        (self.high[0] - self.low[0]) * (self.high[1] - self.low[1])
    }

    /// Intersection over union; 0 where they do not touch or one has no area.
    fn overlap(&self, other: &Self) -> f32 {
        let extent = |i: usize| self.high[i].min(other.high[i]) - self.low[i].max(other.low[i]);
        let (height, width) = (extent(0), extent(1));
        if height <= 0.0 || width <= 0.0 {
            return 0.0;
        }
        let common = height * width;
        let (a, b) = (self.area(), other.area());
        let union = a + b - common;
        if common <= 0.0 || a <= 0.0 || b <= 0.0 || union <= 0.0 { 0.0 } else { common / union }
    }
}

/// The chosen boxes of one class, by falling score.
fn suppress(boxes: &[Corners], scores: &[f32], limits: &Limits) -> Vec<usize> {
    let passes = |index: &usize| limits.score.is_none_or(|least| scores[*index] > least);
    let mut candidates: Vec<usize> = (0..boxes.len()).filter(passes).collect();
    candidates.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut chosen: Vec<usize> = Vec::new();
    for index in candidates {
        if chosen.len() >= limits.count {
            break;
        }
        let is_free = |&other: &usize| {
            let overlap = boxes[index].overlap(&boxes[other]);
            // Boxes that do not touch stay, whatever the threshold.
            overlap <= limits.overlap || overlap == 0.0
        };
        if chosen.iter().all(is_free) {
            chosen.push(index);
        }
    }
    chosen
}
