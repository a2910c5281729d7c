//! Channels of attention: whole heads, or the same place in every head.
//!
//! Where heads lie side by side on one axis, [`Factor`] says which of the two is cut. Queries may
//! have more heads than keys and values; then a head of keys goes with all of its queries, or as
//! many queries go from every head of keys.

use crate::channels::{Axis, Blocks, Channels, Factor, Fixed, Place, Port, Size, Tensors};

/// Heads of one tensor: how many, how long, and where.
#[derive(Clone, Copy)]
pub(super) struct Part {
    count: usize,
    size: usize,
    lie: Lie,
}

#[derive(Clone, Copy)]
enum Lie {
    /// Head after head on one axis, from an index on.
    Beside { axis: Axis, first: usize },
    /// An axis counts the heads, another their places; 0 places where there is none.
    Apart { heads: Axis, places: Option<Axis> },
}

impl Part {
    pub(super) fn beside(axis: Axis, first: usize, [count, size]: [usize; 2]) -> Self {
        Self { count, size, lie: Lie::Beside { axis, first } }
    }

    /// `None` where the sizes are open.
    pub(super) fn apart(
        tensors: &Tensors,
        port: Port,
        [heads, places]: [usize; 2],
    ) -> Option<Self> {
        let [heads, places] = [heads, places].map(|axis| Axis { port, axis });
        let (count, size) = (tensors.size(heads)?, tensors.size(places)?);
        Some(Self { count, size, lie: Lie::Apart { heads, places: Some(places) } })
    }

    /// An axis that counts heads, of a tensor that has no places of theirs.
    pub(super) fn heads(tensors: &Tensors, heads: Axis) -> Option<Self> {
        let count = tensors.size(heads).filter(|&count| count > 1)?;
        Some(Self { count, size: 0, lie: Lie::Apart { heads, places: None } })
    }

    /// All of a rank 3 or 4 operand: [batch, rows, heads·size] or [batch, heads, rows, size].
    pub(super) fn of(tensors: &Tensors, port: Port, heads: Option<usize>) -> Option<Self> {
        if tensors.rank(port)? == 4 {
            return Self::apart(tensors, port, [1, 3]);
        }
        let (axis, heads) = (Axis { port, axis: 2 }, heads?);
        Some(Self::beside(axis, 0, [heads, tensors.size(axis)? / heads]))
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// This part in blocks, each a head; for an axis of places, all of it is one.
    pub(super) fn blocks(&self, is_of_heads: bool) -> Option<Blocks> {
        let (count, size) = (self.count, self.size);
        Some(match self.lie {
            Lie::Beside { axis, first } => {
                Blocks { axis, from: first, up_to: first + count * size, per: size }
            }
            Lie::Apart { heads, .. } if is_of_heads => {
                Blocks { axis: heads, from: 0, up_to: count, per: 1 }
            }
            Lie::Apart { places, .. } => Blocks { axis: places?, from: 0, up_to: size, per: size },
        })
    }

    pub(super) fn is_beside(&self) -> bool {
        matches!(self.lie, Lie::Beside { .. })
    }

    /// The index that stands for a head.
    fn head(&self, head: usize) -> (Axis, usize) {
        match self.lie {
            Lie::Beside { axis, first } => (axis, first + head * self.size),
            Lie::Apart { heads, .. } => (heads, head),
        }
    }
}

/// The operands of one attention, the first of each being the one that others are tied to.
#[derive(Default)]
pub(super) struct Operands {
    pub(super) queries: Vec<Part>,
    /// Results, which have as many heads as queries, and places of values.
    pub(super) results: Vec<Part>,
    pub(super) keys: Vec<Part>,
    pub(super) values: Vec<Part>,
    /// What has something for each head of the queries: masks and scores.
    pub(super) query_gates: Vec<Part>,
    /// What has something for each head of the keys.
    pub(super) key_gates: Vec<Part>,
    /// Whether keys and values must keep one size.
    pub(super) is_square: bool,
}

impl Operands {
    /// Adds an axis on which queries, keys and values follow each other.
    pub(super) fn add_bias(&mut self, axis: Axis, heads: usize, sizes: [usize; 3]) {
        let mut first = 0;
        let parts = [&mut self.queries, &mut self.keys, &mut self.values];
        for (part, size) in parts.into_iter().zip(sizes) {
            part.push(Part::beside(axis, first, [heads, size]));
            first += heads * size;
        }
    }

    /// The ties of these, added to those of `channels`.
    pub(super) fn tie(&self, channels: &mut Channels, factor: Factor) {
        let all = [&self.queries, &self.results, &self.keys, &self.values];
        let is_beside = all.into_iter().flatten().any(Part::is_beside);
        if !is_beside || factor != Factor::Last {
            self.tie_heads(channels, factor);
        }
        if !is_beside || factor == Factor::Last {
            self.tie_places(channels);
        }
    }

    fn tie_heads(&self, channels: &mut Channels, factor: Factor) {
        let query = self.queries[0];
        let of_query = [&self.queries, &self.results, &self.query_gates].into_iter().flatten();
        of_query.for_each(|part| tie_heads(channels, part, &query, |head| head));
        let key = self.keys[0];
        let each = query.count / key.count.max(1);
        if each > 1 && factor != Factor::First {
            tie_heads(channels, &query, &query, |head| head % each);
            return;
        }
        let of_key = [&self.keys, &self.values, &self.key_gates].into_iter().flatten();
        of_key.for_each(|part| tie_heads(channels, part, &key, |head| head));
        tie_heads(channels, &query, &key, |head| head / each.max(1));
    }

    fn tie_places(&self, channels: &mut Channels) {
        let (key, value) = (self.keys[0], self.values[0]);
        self.keys.iter().chain(&self.queries).for_each(|part| tie_places(channels, part, &key));
        self.values.iter().chain(&self.results).for_each(|part| tie_places(channels, part, &value));
        if self.is_square {
            tie_places(channels, &value, &key);
        }
        if let (Some(query), Some(key)) = (self.queries[0].blocks(false), key.blocks(false)) {
            channels.summed.push([query.axis, key.axis]);
        }
    }
}

/// Everything of each head of `a` with head `to` of `b`.
pub(super) fn tie_heads(channels: &mut Channels, a: &Part, b: &Part, to: impl Fn(usize) -> usize) {
    if (0..a.count).any(|head| to(head) >= b.count) {
        channels.whole.extend([a, b].map(|part| part.head(0).0));
        return;
    }
    for head in 0..a.count {
        let (own, start) = a.head(head);
        let (other, at) = b.head(to(head));
        let count = if a.is_beside() { a.size } else { 1 };
        (0..count).for_each(|place| channels.tie_range(own, start + place, other, at, 1));
    }
}

/// The places of every head of `a` with those of the first of `b`.
pub(super) fn tie_places(channels: &mut Channels, a: &Part, b: &Part) {
    let (Some(own), Some(other)) = (a.blocks(false), b.blocks(false)) else { return };
    if own.per != other.per || own.per == 0 {
        channels.whole.extend([own.axis, other.axis]);
        return;
    }
    for start in (own.from..own.up_to).step_by(own.per) {
        channels.tie_range(own.axis, start, other.axis, other.from, own.per);
    }
}

/// Says where the node counts the heads of a part.
pub(super) fn hold_heads(channels: &mut Channels, attribute: &'static str, part: &Part) {
    if let Some(blocks) = part.blocks(true) {
        channels.sizes.push(Size { place: Place::Attribute(attribute), blocks });
    }
}

/// Says that scores are scaled by 1/√size while `scale` says nothing else.
pub(super) fn fix_scale(channels: &mut Channels, part: &Part) {
    if let Some(blocks) = part.blocks(false) {
        let value = 1.0 / (part.size as f32).sqrt();
        channels.fixed.push(Fixed { attribute: "scale", value, blocks });
    }
}
