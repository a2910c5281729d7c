//! Which weights are removed together, or compete.

use serde::Deserialize;

use super::Cut;
use crate::layout::Matrix;

/// The form of what is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Pattern {
    /// Each weight for itself.
    #[default]
    Element,
    /// So many outputs by so many successive inputs.
    Block { outputs: usize, inputs: usize },
    /// Of every `of` successive inputs of an output, `kept` stay (Mishra et al., 2021,
    /// arXiv:2104.08378).
    Kept { kept: usize, of: usize },
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let pair = |separator| {
            let (a, b) = text.split_once(separator)?;
            Some((a.trim().parse::<usize>().ok()?, b.trim().parse::<usize>().ok()?))
        };
        if text == "element" {
            return Ok(Self::Element);
        }
        if let Some((outputs, inputs)) = pair('x').filter(|&(a, b)| a > 0 && b > 0) {
            return Ok(Self::Block { outputs, inputs });
        }
        if let Some((kept, of)) = pair(':').filter(|&(kept, of)| kept > 0 && kept < of) {
            return Ok(Self::Kept { kept, of });
        }
        Err(format!(
            "`{text}` is no pattern: \"element\", N:M as \"2:4\", or outputs by inputs as \"1x4\""
        ))
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Element => f.write_str("element"),
            Self::Block { outputs, inputs } => write!(f, "{outputs}x{inputs}"),
            Self::Kept { kept, of } => write!(f, "{kept}:{of}"),
        }
    }
}

impl Pattern {
    /// The sparsity that it makes by itself.
    pub(crate) fn sparsity(self) -> Option<f64> {
        match self {
            Self::Kept { kept, of } => Some(1.0 - kept as f64 / of as f64),
            _ => None,
        }
    }
}

/// Shows the places of each block's weights, in order; blocks at the edges are smaller.
pub(crate) fn for_each_block(
    matrices: &[Matrix],
    [outputs, inputs]: [usize; 2],
    visit: &mut dyn FnMut(&[usize]),
) {
    let mut places = Vec::new();
    for matrix in matrices {
        for rows in matrix.outputs.chunks(outputs) {
            for run in matrix.inputs.chunks(matrix.run) {
                for columns in run.chunks(inputs) {
                    places.clear();
                    places.extend(rows.iter().flat_map(|row| columns.iter().map(move |c| row + c)));
                    visit(&places);
                }
            }
        }
    }
}

/// Marks all but `kept` of every `of` successive inputs of an output, those of lowest scores; of
/// ties the first goes. A group at the end that is not full stays as it is.
pub(crate) fn mark_groups(
    matrices: &[Matrix],
    [kept, of]: [usize; 2],
    scores: &[f32],
    marks: &mut [bool],
) {
    for_each_block(matrices, [1, of], &mut |places| {
        if places.len() < of {
            return;
        }
        let of_group: Vec<f32> = places.iter().map(|&place| scores[place]).collect();
        let mut cut = Cut::of(&of_group, of - kept);
        for (&place, score) in places.iter().zip(of_group) {
            marks[place] = cut.takes(score);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[test]
    fn patterns_are_read_and_written() {
        let read = |text: &str| Pattern::try_from(text.to_string());
        for text in ["element", "2:4", "4:8", "1:3", "1x4", "4x1", "16x1"] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        for text in ["4:4", "0:4", "0x4", "2/4", "", "blocks"] {
            assert!(read(text).unwrap_err().contains("is no pattern"), "{text}");
        }
        assert_eq!(read("2:8").unwrap().sparsity(), Some(0.75));
    }

    #[test]
    fn groups_lie_along_the_inputs() {
        // Five inputs, two outputs; the fifth input is no full group.
        let layout = Layout { output_axis: 1, input_axis: 0, groups: 1, is_kernel: false };
        let scores = [1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 0.0, 0.0];
        let mut marks = [false; 10];
        mark_groups(&layout.matrices(&[5, 2]), [2, 4], &scores, &mut marks);
        let marked: Vec<usize> = (0..10).filter(|&index| marks[index]).collect();
        assert_eq!(marked, [0, 2, 5, 7]);
    }

    #[test]
    fn blocks_cover_every_weight_once() {
        let layout = Layout { output_axis: 0, input_axis: 1, groups: 1, is_kernel: true };
        let mut seen = [0; 3 * 6 * 2];
        let mut count = 0;
        for_each_block(&layout.matrices(&[3, 6, 2]), [2, 4], &mut |places| {
            count += 1;
            places.iter().for_each(|&place| seen[place] += 1);
        });
        assert_eq!((seen, count), ([1; 36], 2 * 2 * 2));
    }
}
