//! What the attention operators share: per head, Y = softmax(cap(scale·Q·Kᵀ) + mask)·V
//! (Vaswani et al., 2017, arXiv:1706.03762), heads read and written where they stand.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::real::Real;
use crate::broadcast::broadcast_strides;
use crate::kernels::gemm::Strided;
use crate::{OpError, Pool};

/// Counts and sizes of one attention. `heads` is a multiple of `kv_heads`: neighbouring query
/// heads share a head of keys and values.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) head_size: usize,
    pub(crate) value_size: usize,
}

/// Refuses heads of no size, which would give scores without data behind them, and of sizes that
/// no network has.
pub(crate) fn check_head_sizes(sizes: [usize; 2]) -> Result<(), OpError> {
    const SIZE_MAX: usize = 1 << 16;
    if sizes.iter().all(|size| (1..=SIZE_MAX).contains(size)) {
        return Ok(());
    }
    Err(OpError::value("the sizes of a head", sizes, format!("1 to {SIZE_MAX}")))
}

/// Where the rows of every head stand: strides from batch to batch, head to head, row to row.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) strides: [usize; 3],
}

impl<'a, T> Heads<'a, T> {
    /// In [batch, rows, heads·size].
    pub(crate) fn packed(data: &'a [T], rows: usize, heads: usize, size: usize) -> Self {
        Self { data, strides: [rows * heads * size, size, heads * size] }
    }

    /// In [batch, heads, rows, size].
    pub(crate) fn apart(data: &'a [T], rows: usize, heads: usize, size: usize) -> Self {
        Self { data, strides: [heads * rows * size, rows * size, size] }
    }

    pub(super) fn head(&self, text: usize, head: usize, size: [usize; 2]) -> Strided<'a, T> {
        let start = text * self.strides[0] + head * self.strides[1];
        let data = if size.contains(&0) { &[] } else { &self.data[start..] };
        Strided { data, size, strides: [self.strides[2], 1] }
    }
}

/// Strides of the result within one text, from head to head and row to row.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    head: usize,
    row: usize,
}

impl Layout {
    /// [batch, queries, heads·size].
    pub(crate) fn packed(sizes: &Sizes) -> Self {
        Self { head: sizes.value_size, row: sizes.heads * sizes.value_size }
    }

    /// [batch, heads, queries, size].
    pub(crate) fn apart(sizes: &Sizes) -> Self {
        Self { head: sizes.queries * sizes.value_size, row: sizes.value_size }
    }
}

/// Addends to the scores, one row of `keys` per batch, head and query, with the strides by which
/// they repeat.
pub(crate) struct Mask<'a, T: Clone> {
    values: Cow<'a, [T]>,
    strides: [usize; 3],
    keys: usize,
}

impl<'a, T: Real> Mask<'a, T> {
    /// Addends of a shape that broadcasts to [batch, heads, queries, keys], whose last axis is
    /// `keys`.
    pub(crate) fn new(
        values: impl Into<Cow<'a, [T]>>,
        shape: &[usize],
        sizes: &Sizes,
    ) -> Result<Self, OpError> {
        let target = [sizes.batch, sizes.heads, sizes.queries, sizes.keys];
        let missing = 4_usize.checked_sub(shape.len());
        let fits = missing.is_some_and(|missing| {
            shape.last() == Some(&sizes.keys)
                && shape
                    .iter()
                    .zip(&target[missing..])
                    .all(|(&size, &full)| size == full || size == 1)
        });
        if !fits {
            return Err(OpError::shapes(shape, &target));
        }
        let strides = broadcast_strides(shape, &target);
        let strides = [strides[0], strides[1], strides[2]];
        Ok(Self { values: values.into(), strides, keys: sizes.keys })
    }

    fn is_per_query(&self) -> bool {
        self.strides[2] != 0
    }

    /// From the first query of a head on, and the stride from query to query.
    pub(super) fn of_head(&self, text: usize, head: usize) -> (&[T], usize) {
        let start = text * self.strides[0] + head * self.strides[1];
        (&self.values[start..], self.strides[2])
    }

    fn row(&self, text: usize, head: usize, query: usize) -> &[T] {
        let start = text * self.strides[0] + head * self.strides[1] + query * self.strides[2];
        &self.values[start..start + self.keys]
    }
}

/// The keys that a query of a text sees.
pub(crate) type Visible<'a> = &'a (dyn Fn(usize, usize) -> Range<usize> + Sync);

/// When scores are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Product,
    Capped,
    Masked,
    Probabilities,
}

/// How scores become probabilities.
pub(crate) struct Scores<'a, T: Clone> {
    pub(crate) scale: f32,
    /// Scores become cap·tanh(score/cap); 0 leaves them.
    pub(crate) cap: f32,
    pub(crate) mask: Option<Mask<'a, T>>,
    pub(crate) visible: Option<Visible<'a>>,
    /// Whether a query that sees no key gives zeros, in place of NaN.
    pub(crate) zeroes_blind: bool,
}

impl<T: Clone> Scores<'_, T> {
    pub(crate) fn scaled(scale: f32) -> Self {
        Self { scale, cap: 0.0, mask: None, visible: None, zeroes_blind: false }
    }
}

/// One attention, ready to be computed.
pub(crate) struct Attention<'a, T: Clone> {
    pub(crate) sizes: Sizes,
    pub(crate) query: Heads<'a, T>,
    pub(crate) key: Heads<'a, T>,
    pub(crate) value: Heads<'a, T>,
    pub(crate) scores: Scores<'a, T>,
    pub(crate) layout: Layout,
}

impl<T: Real> Attention<'_, T> {
    /// Fills `y`, and what `shown` says with the scores [batch, heads, queries, keys] at a stage.
    pub(crate) fn run(&self, y: &mut [T], shown: Option<(Stage, &mut [T])>, pool: &Pool) {
        let sizes = &self.sizes;
        let text_size = sizes.heads * sizes.queries * sizes.value_size;
        if let Some((stage, shown)) = shown {
            return self.run_shown(y, stage, shown);
        }
        if text_size == 0 {
            return;
        }
        let scratch_size = sizes.queries * (sizes.keys + sizes.value_size);
        let per_text = |(text, y): (usize, &mut [T])| {
            let mut scratch = pool.buffer(scratch_size * size_of::<T>());
            let values: &mut [T] = bytemuck::cast_slice_mut(scratch.as_bytes_mut());
            for head in 0..sizes.heads {
                self.head(text, head, values, None);
                self.place(y, head, &values[sizes.queries * sizes.keys..]);
            }
            pool.recycle_buffer(scratch);
        };
        let is_parallel = crate::threads::count() > 1;
        if is_parallel && sizes.batch > 1 {
            y.par_chunks_mut(text_size).enumerate().for_each(per_text);
        } else if is_parallel {
            // One text on several threads: each head into its own block, put together afterwards.
            let of_head = |head| {
                let mut scratch = vec![T::default(); scratch_size];
                self.head(0, head, &mut scratch, None);
                scratch.split_off(sizes.queries * sizes.keys)
            };
            let blocks: Vec<Vec<T>> = (0..sizes.heads).into_par_iter().map(of_head).collect();
            blocks.iter().enumerate().for_each(|(head, block)| self.place(y, head, block));
        } else {
            y.chunks_mut(text_size).enumerate().for_each(per_text);
        }
    }

    fn run_shown(&self, y: &mut [T], stage: Stage, shown: &mut [T]) {
        let sizes = &self.sizes;
        let score_count = sizes.queries * sizes.keys;
        let text_size = sizes.heads * sizes.queries * sizes.value_size;
        let mut scratch = vec![T::default(); score_count + sizes.queries * sizes.value_size];
        for text in 0..sizes.batch {
            for head in 0..sizes.heads {
                let at = (text * sizes.heads + head) * score_count;
                let shown = &mut shown[at..at + score_count];
                self.head(text, head, &mut scratch, Some((stage, shown)));
                let y = &mut y[text * text_size..(text + 1) * text_size];
                self.place(y, head, &scratch[score_count..]);
            }
        }
    }

    /// Puts a head's result where it belongs in the text's.
    fn place(&self, y: &mut [T], head: usize, result: &[T]) {
        let size = self.sizes.value_size;
        for (row, values) in result.chunks_exact(size.max(1)).enumerate() {
            let start = head * self.layout.head + row * self.layout.row;
            y[start..start + size].copy_from_slice(values);
        }
    }

    /// Fills scratch with the probabilities and, behind them, the head's result.
    fn head(&self, text: usize, head: usize, scratch: &mut [T], shown: Option<(Stage, &mut [T])>) {
        let sizes = &self.sizes;
        let (queries, keys) = (sizes.queries, sizes.keys);
        let kv_head = head / (sizes.heads / sizes.kv_heads);
        let (scores, result) = scratch.split_at_mut(queries * keys);
        if keys == 0 || result.is_empty() {
            result.fill(T::default());
            return;
        }
        self.probabilities(text, head, scores, shown);
        let value = self.value.head(text, kv_head, [keys, sizes.value_size]);
        T::product(result, Strided::rows(scores, queries, keys), value);
    }

    /// Fills `scores` with the probabilities of a head.
    pub(super) fn probabilities(
        &self,
        text: usize,
        head: usize,
        scores: &mut [T],
        shown: Option<(Stage, &mut [T])>,
    ) {
        let (sizes, how) = (&self.sizes, &self.scores);
        let kv_head = head / (sizes.heads / sizes.kv_heads);
        let key = self.key.head(text, kv_head, [sizes.keys, sizes.head_size]).transposed();
        let query = self.query.head(text, head, [sizes.queries, sizes.head_size]);
        T::product(scores, query, key);
        if how.cap == 0.0 && how.visible.is_none() && shown.is_none() {
            self.normalize_at_once(text, head, scores);
        } else {
            self.normalize_in_stages(text, head, scores, shown);
        }
    }

    fn normalize_at_once(&self, text: usize, head: usize, scores: &mut [T]) {
        let (how, keys) = (&self.scores, self.sizes.keys);
        match &how.mask {
            Some(mask) if mask.is_per_query() => {
                for (query, scores) in scores.chunks_exact_mut(keys).enumerate() {
                    self.normalize_masked(scores, Some(mask.row(text, head, query)));
                }
            }
            mask => {
                let mask = mask.as_ref().map(|mask| mask.row(text, head, 0));
                self.normalize_masked(scores, mask);
            }
        }
    }

    /// Rows of probabilities; the mask is one row for all.
    fn normalize_masked(&self, scores: &mut [T], mask: Option<&[T]>) {
        let how = &self.scores;
        T::masked_softmax(scores, self.sizes.keys, how.scale, mask);
        let is_blind = |mask: &[T]| mask.iter().all(|&addend| addend == T::NEG_INFINITY);
        if how.zeroes_blind && mask.is_some_and(is_blind) {
            scores.fill(T::default());
        }
    }

    fn normalize_in_stages(
        &self,
        text: usize,
        head: usize,
        scores: &mut [T],
        mut shown: Option<(Stage, &mut [T])>,
    ) {
        let (how, keys) = (&self.scores, self.sizes.keys);
        let mut show = |stage: Stage, scores: &[T]| {
            if let Some((_, target)) = shown.as_mut().filter(|(at, _)| *at == stage) {
                target.copy_from_slice(scores);
            }
        };
        T::scale(scores, how.scale);
        show(Stage::Product, scores);
        if how.cap > 0.0 {
            T::cap(scores, how.cap);
        }
        show(Stage::Capped, scores);
        for (query, row) in scores.chunks_exact_mut(keys).enumerate() {
            if let Some(mask) = &how.mask {
                T::add(row, mask.row(text, head, query));
            }
            let seen = self.seen(text, query);
            row[..seen.start].fill(T::NEG_INFINITY);
            row[seen.end..].fill(T::NEG_INFINITY);
        }
        show(Stage::Masked, scores);
        for (query, row) in scores.chunks_exact_mut(keys).enumerate() {
            let seen = self.seen(text, query);
            row[..seen.start].fill(T::default());
            row[seen.end..].fill(T::default());
            let row = &mut row[seen];
            if how.zeroes_blind && row.iter().all(|&score| score == T::NEG_INFINITY) {
                row.fill(T::default());
            } else {
                let size = row.len();
                T::masked_softmax(row, size, 1.0, None);
            }
        }
        show(Stage::Probabilities, scores);
    }

    pub(super) fn seen(&self, text: usize, query: usize) -> Range<usize> {
        let keys = self.sizes.keys;
        let seen = self.scores.visible.map_or(0..keys, |visible| visible(text, query));
        let end = seen.end.min(keys);
        seen.start.min(end)..end
    }
}
