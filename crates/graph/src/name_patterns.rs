//! Names of nodes and values, given as patterns.

/// Patterns of node and tensor names; `*` stands for any text.
#[derive(Clone, Debug, Default)]
pub struct NamePatterns(Vec<String>);

impl NamePatterns {
    pub fn new(patterns: Vec<String>) -> Self {
        Self(patterns)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, name))
    }

    /// Patterns that match none of `names`: most likely misspelt.
    pub fn unmatched<'a>(&'a self, names: &[&str]) -> Vec<&'a str> {
        let is_unused = |pattern: &&String| !names.iter().any(|name| matches(pattern, name));
        self.0.iter().filter(is_unused).map(String::as_str).collect()
    }
}

/// Whether the parts of `pattern` between its stars appear in `name` in order, the first at its
/// start and the last at its end.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut last: Option<&str> = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            match rest.find(middle) {
                Some(at) => rest = &rest[at + middle.len()..],
                None => return false,
            }
        }
    }
    match last {
        Some(last) => rest.ends_with(last),
        None => rest.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(matches("encoder.*.weight", "encoder.layer.0.weight"));
        assert!(matches("*", ""));
        assert!(matches("a*b*c", "a-b-b-c"));
        assert!(!matches("encoder", "encoder.layer"));
        assert!(!matches("*.bias", "a.weight"));
        assert!(!matches("ab*ba", "aba"));
    }
}
