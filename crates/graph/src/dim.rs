//! Dimensions that may be symbols, and arithmetic on them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

/// A tensor's extent along one axis, or an element of a shape tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    Known(i64),
    /// A polynomial with integer coefficients in named sizes, never a constant.
    Symbolic(Arc<Polynomial>),
    /// Nothing is known; not even equal to another unknown.
    Unknown,
}

/// Σ coefficient · Π factors. No zero coefficients; factors are sorted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Polynomial(BTreeMap<Vec<Factor>, i64>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Factor {
    Name(Arc<str>),
    /// ⌊numerator / denominator⌋ where the division leaves a rest, or may.
    Quotient(Polynomial, Polynomial),
}

impl Dim {
    pub fn symbol(name: &str) -> Self {
        let monomial = vec![Factor::Name(name.into())];
        Self::Symbolic(Arc::new(Polynomial(BTreeMap::from([(monomial, 1)]))))
    }

    pub fn known(&self) -> Option<i64> {
        match self {
            Self::Known(value) => Some(*value),
            _ => None,
        }
    }

    pub fn is_known(&self) -> bool {
        self.known().is_some()
    }

    /// Whether the size is left open: nothing is said of it, or the `?` that some exporters write
    /// for every size they do not know, which makes none equal to another.
    pub fn is_open(&self) -> bool {
        *self == Self::Unknown || *self == Self::symbol("?")
    }

    /// Whether both are known to be the same size.
    pub fn same_as(&self, other: &Self) -> bool {
        *self != Self::Unknown && self == other
    }

    /// Whether this is at least `least`, which is 0 or 1, whatever the sizes are: none of them is
    /// negative.
    pub fn is_at_least(&self, least: i64) -> bool {
        match self {
            Self::Known(value) => *value >= least,
            Self::Symbolic(polynomial) => polynomial.is_at_least(least),
            Self::Unknown => false,
        }
    }

    fn polynomial(&self) -> Option<Polynomial> {
        match self {
            Self::Known(value) => Some(Polynomial::constant(*value)),
            Self::Symbolic(polynomial) => Some((**polynomial).clone()),
            Self::Unknown => None,
        }
    }

    /// ⌊self / divisor⌋, exact where the division leaves no rest.
    pub fn floor_div(&self, divisor: &Self) -> Self {
        let (Some(numerator), Some(denominator)) = (self.polynomial(), divisor.polynomial()) else {
            return Self::Unknown;
        };
        if denominator.0.is_empty() {
            return Self::Unknown;
        }
        if let (Some(a), Some(b)) = (numerator.as_constant(), denominator.as_constant()) {
            return a.checked_div_euclid(b).map_or(Self::Unknown, Self::Known);
        }
        if let Some(quotient) = numerator.div_exact(&denominator) {
            quotient.into()
        } else {
            let factor = Factor::Quotient(numerator, denominator);
            Polynomial(BTreeMap::from([(vec![factor], 1)])).bounded()
        }
    }

    /// The value once `size_of` names every symbol; `None` where it does not, or on overflow.
    pub fn evaluate(&self, size_of: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        match self {
            Self::Known(value) => Some(*value),
            Self::Symbolic(polynomial) => polynomial.evaluate(size_of),
            Self::Unknown => None,
        }
    }

    /// Calls `visit` with every symbol's name.
    pub fn for_each_symbol(&self, visit: &mut dyn FnMut(&str)) {
        if let Self::Symbolic(polynomial) = self {
            polynomial.for_each_symbol(visit);
        }
    }
}

/// Terms and factors, those in quotients too, beyond which a size counts as unknown. Squaring a sum
/// again and again would double them each time.
const WEIGHT_MAX: usize = 256;

impl Polynomial {
    fn weight(&self) -> usize {
        let of_factor = |factor: &Factor| match factor {
            Factor::Name(_) => 1,
            Factor::Quotient(a, b) => 1 + a.weight() + b.weight(),
        };
        self.0.keys().map(|factors| 1 + factors.iter().map(of_factor).sum::<usize>()).sum()
    }

    fn bounded(self) -> Dim {
        if self.weight() > WEIGHT_MAX { Dim::Unknown } else { self.into() }
    }

    fn constant(value: i64) -> Self {
        let mut terms = BTreeMap::new();
        if value != 0 {
            terms.insert(Vec::new(), value);
        }
        Self(terms)
    }

    /// A sum of products of sizes, none taken away, is at least its constant.
    fn is_at_least(&self, least: i64) -> bool {
        let is_size = |factor: &Factor| match factor {
            Factor::Name(_) => true,
            Factor::Quotient(a, b) => a.is_at_least(0) && b.is_at_least(0),
        };
        let constant = self.0.get(&Vec::new()).copied().unwrap_or(0);
        let rest = self.0.iter().filter(|(factors, _)| !factors.is_empty());
        constant >= least
            && rest.into_iter().all(|(factors, c)| *c > 0 && factors.iter().all(is_size))
    }

    fn as_constant(&self) -> Option<i64> {
        match self.0.len() {
            0 => Some(0),
            1 => self.0.get(&Vec::new()).copied(),
            _ => None,
        }
    }

    fn add_term(&mut self, factors: Vec<Factor>, coefficient: i64) -> Option<()> {
        let sum = self.0.get(&factors).unwrap_or(&0).checked_add(coefficient)?;
        if sum == 0 {
            self.0.remove(&factors);
        } else {
            self.0.insert(factors, sum);
        }
        Some(())
    }

    fn sum(&self, other: &Self, sign: i64) -> Option<Self> {
        let mut sum = self.clone();
        for (factors, coefficient) in &other.0 {
            sum.add_term(factors.clone(), coefficient.checked_mul(sign)?)?;
        }
        Some(sum)
    }

    fn product(&self, other: &Self) -> Option<Self> {
        let mut product = Self::default();
        for (a, ca) in &self.0 {
            for (b, cb) in &other.0 {
                let mut factors = [a.as_slice(), b.as_slice()].concat();
                factors.sort();
                product.add_term(factors, ca.checked_mul(*cb)?)?;
            }
        }
        Some(product)
    }

    /// Division by one term that divides every term, or by an equal polynomial.
    fn div_exact(&self, divisor: &Self) -> Option<Self> {
        if self == divisor {
            return Some(Self::constant(1));
        }
        let (factors, coefficient) = match divisor.0.iter().next() {
            Some(term) if divisor.0.len() == 1 => term,
            _ => return None,
        };
        let mut quotient = Self::default();
        for (own, own_coefficient) in &self.0 {
            if own_coefficient.checked_rem(*coefficient) != Some(0) {
                return None;
            }
            let mut rest = own.clone();
            for factor in factors {
                let position = rest.iter().position(|f| f == factor)?;
                rest.remove(position);
            }
            quotient.add_term(rest, own_coefficient / coefficient)?;
        }
        Some(quotient)
    }

    fn evaluate(&self, size_of: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        let mut sum = 0_i64;
        for (factors, coefficient) in &self.0 {
            let mut product = *coefficient;
            for factor in factors {
                let value = match factor {
                    Factor::Name(name) => size_of(name)?,
                    Factor::Quotient(a, b) => {
                        a.evaluate(size_of)?.checked_div_euclid(b.evaluate(size_of)?)?
                    }
                };
                product = product.checked_mul(value)?;
            }
            sum = sum.checked_add(product)?;
        }
        Some(sum)
    }

    fn for_each_symbol(&self, visit: &mut dyn FnMut(&str)) {
        for factor in self.0.keys().flatten() {
            match factor {
                Factor::Name(name) => visit(name),
                Factor::Quotient(a, b) => {
                    a.for_each_symbol(visit);
                    b.for_each_symbol(visit);
                }
            }
        }
    }
}

impl From<Polynomial> for Dim {
    fn from(polynomial: Polynomial) -> Self {
        match polynomial.as_constant() {
            Some(value) => Self::Known(value),
            None => Self::Symbolic(Arc::new(polynomial)),
        }
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Self {
        Self::Known(size as i64)
    }
}

fn combine(
    a: &Dim,
    b: &Dim,
    operation: impl Fn(&Polynomial, &Polynomial) -> Option<Polynomial>,
) -> Dim {
    match (a.polynomial(), b.polynomial()) {
        (Some(a), Some(b)) => operation(&a, &b).map_or(Dim::Unknown, Polynomial::bounded),
        _ => Dim::Unknown,
    }
}

impl Add for &Dim {
    type Output = Dim;
    fn add(self, other: Self) -> Dim {
        combine(self, other, |a, b| a.sum(b, 1))
    }
}

impl Sub for &Dim {
    type Output = Dim;
    fn sub(self, other: Self) -> Dim {
        combine(self, other, |a, b| a.sum(b, -1))
    }
}

impl Mul for &Dim {
    type Output = Dim;
    fn mul(self, other: Self) -> Dim {
        if *self == Dim::Known(0) || *other == Dim::Known(0) {
            return Dim::Known(0);
        }
        combine(self, other, Polynomial::product)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(value) => write!(f, "{value}"),
            Self::Symbolic(polynomial) => write!(f, "{polynomial}"),
            Self::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Display for Polynomial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Constants sort first but read best last.
        let (constants, terms): (Vec<_>, Vec<_>) = self.0.iter().partition(|(k, _)| k.is_empty());
        for (index, (factors, coefficient)) in terms.into_iter().chain(constants).enumerate() {
            match (index, *coefficient < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                (_, false) => f.write_str(" + ")?,
                (_, true) => f.write_str(" - ")?,
            }
            let size = coefficient.unsigned_abs();
            if size != 1 || factors.is_empty() {
                write!(f, "{size}{}", if factors.is_empty() { "" } else { "*" })?;
            }
            for (index, factor) in factors.iter().enumerate() {
                if index > 0 {
                    f.write_str("*")?;
                }
                match factor {
                    Factor::Name(name) => f.write_str(name)?,
                    Factor::Quotient(a, b) => write!(f, "floor(({a})/({b}))")?,
                }
            }
        }
        Ok(())
    }
}

/// A dimension as a model writes it: a number, or a name (any other text is one symbol).
pub fn parse_dim(text: &str) -> Dim {
    match text.parse() {
        Ok(value) => Dim::Known(value),
        Err(_) if text.is_empty() => Dim::Unknown,
        Err(_) => Dim::symbol(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_and_sums_have_one_form() {
        let (batch, seq) = (Dim::symbol("batch"), Dim::symbol("seq"));
        let a = &(&batch * &seq) + &(&seq * &batch);
        assert_eq!(a, &Dim::Known(2) * &(&batch * &seq));
        assert_eq!(a.to_string(), "2*batch*seq");
        assert_eq!(&a - &a, Dim::Known(0));
    }

    #[test]
    fn a_reshape_divides_out_the_known_part() {
        let (batch, seq) = (Dim::symbol("batch"), Dim::symbol("seq"));
        let total = &(&batch * &seq) * &Dim::Known(384);
        assert_eq!(total.floor_div(&(&batch * &Dim::Known(32))).to_string(), "12*seq");
    }

    #[test]
    fn a_division_with_rest_is_kept_and_evaluates() {
        let half = (&Dim::symbol("h") - &Dim::Known(1)).floor_div(&Dim::Known(2));
        assert_eq!(half.to_string(), "floor((h - 1)/(2))");
        assert_eq!(half.evaluate(&|_| Some(224)), Some(111));
    }

    #[test]
    fn sizes_are_never_negative() {
        let next = &Dim::symbol("n") + &Dim::Known(1);
        assert!(next.is_at_least(1) && Dim::symbol("n").is_at_least(0));
        assert!(!Dim::symbol("n").is_at_least(1) && !(&next - &Dim::Known(2)).is_at_least(0));
        assert!(!(&Dim::symbol("n") - &Dim::symbol("m")).is_at_least(0));
    }

    #[test]
    fn divisions_that_overflow_are_unknown() {
        let least = Dim::Known(i64::MIN);
        assert_eq!(least.floor_div(&Dim::Known(-1)), Dim::Unknown);
        let scaled = &Dim::symbol("n") * &least;
        let text = scaled.floor_div(&Dim::Known(-1)).to_string();
        assert_eq!(text, "floor((-9223372036854775808*n)/(-1))");
    }

    #[test]
    fn no_chain_of_operations_grows_without_end() {
        let mut sum = &Dim::symbol("a") + &Dim::symbol("b");
        let mut quotient = Dim::symbol("n");
        for _ in 0..100_000 {
            sum = &sum * &sum;
            quotient = quotient.floor_div(&Dim::Known(3));
        }
        assert_eq!((sum, quotient), (Dim::Unknown, Dim::Unknown));
    }

    #[test]
    fn unknown_equals_nothing() {
        assert!(!Dim::Unknown.same_as(&Dim::Unknown));
        assert_eq!(&Dim::Unknown * &Dim::Known(0), Dim::Known(0));
    }
}
