//! Comparisons of followed elements that hold whatever the sizes are.
//!
//! Exporters write conditions over shapes into the graph: `torch.expand` asks which sizes are −1,
//! indexing asks which indices are negative. A size is never negative, so these have an answer
//! before anything runs.

use std::cmp::Ordering;

use attar_graph::Dim;

use crate::Fact;

/// How `a` stands to `b` for all sizes; `None` where that depends on them.
fn ordering(a: &Dim, b: &Dim) -> Option<Ordering> {
    if a.same_as(b) {
        return Some(Ordering::Equal);
    }
    let difference = a - b;
    if difference.is_at_least(1) {
        Some(Ordering::Greater)
    } else if (b - a).is_at_least(1) {
        Some(Ordering::Less)
    } else {
        difference.known().map(|difference| difference.cmp(&0))
    }
}

/// Whether `a` < `b`.
fn is_below(a: &Dim, b: &Dim) -> Option<bool> {
    if (a - b).is_at_least(0) { Some(false) } else { ordering(a, b).map(Ordering::is_lt) }
}

/// The result of a comparison or of logic, 1 for true.
fn holds(op_type: &str, a: &Dim, b: &Dim) -> Dim {
    let (left, right) = (a.known().map(|x| x != 0), b.known().map(|x| x != 0));
    let result = match op_type {
        "Equal" => ordering(a, b).map(Ordering::is_eq),
        "Greater" => is_below(b, a),
        "GreaterOrEqual" => is_below(a, b).map(|is_below| !is_below),
        "Less" => is_below(a, b),
        "LessOrEqual" => is_below(b, a).map(|is_below| !is_below),
        "And" => match (left, right) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            _ => left.zip(right).map(|(a, b)| a && b),
        },
        "Or" => match (left, right) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            _ => left.zip(right).map(|(a, b)| a || b),
        },
        _ => None,
    };
    result.map_or(Dim::Unknown, |holds| Dim::Known(i64::from(holds)))
}

/// Gives the fact of a comparison or of logic its elements, where both operands are followed.
pub(crate) fn follow(op_type: &str, [a, b]: [&Fact; 2], fact: &mut Fact) {
    let (Some(x), Some(y)) = (a.elements(), b.elements()) else { return };
    let count = if x.is_empty() || y.is_empty() { 0 } else { x.len().max(y.len()) };
    let fits = |list: &[Dim]| list.len() == count || list.len() == 1;
    if fact.rank().is_none_or(|rank| rank > 1) || !fits(x) || !fits(y) {
        return;
    }
    let at = |list: &[Dim], index: usize| list[if list.len() == 1 { 0 } else { index }].clone();
    fact.set_elements((0..count).map(|i| holds(op_type, &at(x, i), &at(y, i))).collect());
}

/// Logical not.
pub(crate) fn negated(x: &Dim) -> Dim {
    x.known().map_or(Dim::Unknown, |x| Dim::Known(i64::from(x == 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_not_minus_one_but_may_be_any_other() {
        let (n, one) = (Dim::symbol("n"), Dim::Known(1));
        assert_eq!(holds("Equal", &n, &Dim::Known(-1)), Dim::Known(0));
        assert_eq!(holds("Equal", &n, &one), Dim::Unknown);
        assert_eq!(holds("Less", &n, &Dim::Known(0)), Dim::Known(0));
        assert_eq!(holds("Greater", &(&n + &one), &n), Dim::Known(1));
        assert_eq!(holds("And", &Dim::Known(0), &Dim::Unknown), Dim::Known(0));
    }
}
