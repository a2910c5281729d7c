//! The equation of Einsum: which index each axis has.

use std::collections::BTreeMap;

use attar_graph::Dim;
use attar_tensor::Tensor;

use crate::OpError;

/// An equation as it is written.
#[derive(Debug)]
pub(super) struct Equation {
    text: String,
    inputs: Vec<Term>,
    /// `None` where the equation leaves it open.
    output: Option<Term>,
}

/// The indices of one operand; the axes of an ellipsis stand where it is written.
#[derive(Debug, Default)]
struct Term {
    letters: Vec<u32>,
    ellipsis: Option<usize>,
}

/// The equation for operands of known ranks. Letters are their codes; the axes of ellipses are
/// numbered from the end, from [`ELLIPSIS`] on, as broadcasting aligns them.
pub(super) struct Indices {
    pub(super) inputs: Vec<Vec<u32>>,
    pub(super) output: Vec<u32>,
}

/// Above every letter.
const ELLIPSIS: u32 = 256;

impl Equation {
    pub(super) fn parse(text: &str) -> Result<Self, OpError> {
        let error = || OpError::value("equation", text, "terms of letters, as in `ij,jk->ik`");
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match compact.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (compact.as_str(), None),
        };
        let inputs: Option<Vec<Term>> = left.split(',').map(Term::parse).collect();
        let output = right.map(|term| Term::parse(term).ok_or_else(error)).transpose()?;
        let inputs = inputs.ok_or_else(error)?;
        if let Some(output) = &output {
            let is_read = |letter| inputs.iter().any(|term| term.letters.contains(letter));
            let repeats = |i: usize| output.letters[..i].contains(&output.letters[i]);
            if !output.letters.iter().all(is_read) || (0..output.letters.len()).any(repeats) {
                return Err(error());
            }
        }
        Ok(Self { text: text.into(), inputs, output })
    }

    /// The index of every axis.
    pub(super) fn indices(&self, ranks: &[usize]) -> Result<Indices, OpError> {
        if ranks.len() != self.inputs.len() {
            let expected = format!("{} operands", self.inputs.len());
            return Err(OpError::value(&format!("`{}`", self.text), ranks.len(), expected));
        }
        let mut inputs = Vec::new();
        let mut ellipsis_max = 0;
        for (term, &rank) in self.inputs.iter().zip(ranks) {
            let rest = rank.checked_sub(term.letters.len());
            let rest =
                rest.filter(|&rest| rest == 0 || term.ellipsis.is_some()).ok_or_else(|| {
                    let expected = format!("{}, as in `{}`", term.letters.len(), self.text);
                    OpError::value("the rank of an operand", rank, expected)
                })?;
            ellipsis_max = ellipsis_max.max(rest);
            inputs.push(term.expanded(rest));
        }
        let output = match &self.output {
            Some(term) => term.expanded(if term.ellipsis.is_some() { ellipsis_max } else { 0 }),
            None => self.open_output().expanded(ellipsis_max),
        };
        Ok(Indices { inputs, output })
    }

    /// All letters that are written once, in their order, behind the ellipsis.
    fn open_output(&self) -> Term {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for &letter in self.inputs.iter().flat_map(|term| &term.letters) {
            *counts.entry(letter).or_default() += 1;
        }
        let once = counts.into_iter().filter(|&(_, count)| count == 1);
        Term { letters: once.map(|(letter, _)| letter).collect(), ellipsis: Some(0) }
    }
}

impl Term {
    fn parse(text: &str) -> Option<Self> {
        let mut term = Self::default();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("...") {
                if term.ellipsis.replace(term.letters.len()).is_some() {
                    return None;
                }
                rest = after;
            } else if first.is_ascii_alphabetic() {
                term.letters.push(u32::from(first));
                rest = &rest[1..];
            } else {
                return None;
            }
        }
        Some(term)
    }

    /// With `count` axes in place of the ellipsis.
    fn expanded(&self, count: usize) -> Vec<u32> {
        let axes = (0..count as u32).rev().map(|axis| ELLIPSIS + axis);
        let (before, after) = self.letters.split_at(self.ellipsis.unwrap_or(0));
        before.iter().copied().chain(axes).chain(after.iter().copied()).collect()
    }
}

impl Indices {
    /// The size of an index, as far as it is known: that of the operand that repeats it least.
    pub(super) fn dim(&self, index: u32, shapes: &[&[Dim]]) -> Dim {
        let dims = self.inputs.iter().zip(shapes).flat_map(|(indices, shape)| {
            let pairs = indices.iter().zip(*shape);
            pairs.filter(|(i, _)| **i == index).map(|(_, dim)| dim)
        });
        let dims: Vec<&Dim> = dims.collect();
        let wide = dims.iter().find(|dim| dim.known().is_some_and(|size| size != 1));
        let Some(first) = dims.iter().find(|dim| dim.known() != Some(1)) else {
            return Dim::Known(1);
        };
        match wide {
            Some(wide) => (*wide).clone(),
            None if dims.iter().all(|dim| dim.known() == Some(1) || dim.same_as(first)) => {
                (*first).clone()
            }
            None => Dim::Unknown,
        }
    }

    /// The size of every index; an operand of size 1 is repeated.
    pub(super) fn sizes(&self, tensors: &[&Tensor]) -> Result<BTreeMap<u32, usize>, OpError> {
        let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
        for (indices, tensor) in self.inputs.iter().zip(tensors) {
            for (&index, &size) in indices.iter().zip(tensor.shape()) {
                let known = sizes.entry(index).or_insert(size);
                if *known == 1 {
                    *known = size;
                } else if size != *known && size != 1 {
                    let name = char::from_u32(index).filter(char::is_ascii_alphabetic);
                    let what = format!("the size of index {}", name.unwrap_or('…'));
                    return Err(OpError::value(&what, size, known.to_string()));
                }
            }
        }
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(text: &str, ranks: &[usize]) -> String {
        let indices = Equation::parse(text).unwrap().indices(ranks).unwrap();
        let name = |&index: &u32| if index < ELLIPSIS { index as u8 as char } else { '.' };
        indices.output.iter().map(name).collect()
    }

    #[test]
    fn an_open_output_has_the_letters_that_are_written_once() {
        assert_eq!(output("ij,jk", &[2, 2]), "ik");
        assert_eq!(output("b...a, a", &[4, 1]), "..b");
        assert_eq!(output("ii", &[2]), "");
        assert_eq!(output("...ij,...jk->...ik", &[2, 4]), "..ik");
    }

    #[test]
    fn what_is_no_equation_is_refused() {
        for text in ["i->j", "ij->ii", "i......j->i", "i,j→k", "i;j", "i->i->i"] {
            assert!(Equation::parse(text).is_err(), "{text}");
        }
        assert!(Equation::parse("ij->i").unwrap().indices(&[3]).is_err());
    }
}
