//! Attention backward, per head. With S the scores, P = softmax(S) and Y = P·V: dV = Pᵀ·dY,
//! dP = dY·Vᵀ, dS = P∘(dP − rowsum(P∘dP)), and with Q·Kᵀ scaled and capped to S,
//! dQ = scale·dS·K and dK = scale·dSᵀ·Q, dS times 1 − (S/cap)² where there is a cap. P is computed
//! once more rather than kept: it is larger than what it is made of.

use attar_tensor::{DType, Tensor};
use rayon::prelude::*;

use super::core::{Attention, Heads, Sizes, Stage};
use crate::Pool;
use crate::kernels::gemm::Strided;
use crate::kernels::{elementwise, gemm, gradient as kernels};

/// Gradients as [batch, heads, rows, size]; that of the scores only where it is asked for.
pub(super) struct Gradients {
    pub(super) query: Tensor,
    pub(super) key: Tensor,
    pub(super) value: Tensor,
    /// [batch, heads, queries, keys], before the mask is summed to its shape.
    pub(super) scores: Option<Tensor>,
}

/// How a gradient is laid out: [batch, rows, heads·size], or [batch, heads, rows, size].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Packed,
    Apart,
}

impl Attention<'_, f32> {
    /// What flows back from `dy` and, at a stage of theirs, from the scores.
    pub(super) fn flow_back(
        &self,
        dy: Heads<f32>,
        orders: [Order; 3],
        more: Option<(Stage, &[f32])>,
        wants_scores: bool,
        pool: &Pool,
    ) -> Gradients {
        let sizes = &self.sizes;
        let shape = |order: Order, heads: usize, rows: usize, size: usize| match order {
            Order::Packed => vec![sizes.batch, rows, heads * size],
            Order::Apart => vec![sizes.batch, heads, rows, size],
        };
        let tensor = |shape: &[usize]| pool.tensor(DType::F32, shape);
        let (kv_heads, keys) = (sizes.kv_heads, sizes.keys);
        let mut query = tensor(&shape(orders[0], sizes.heads, sizes.queries, sizes.head_size));
        let mut key = tensor(&shape(orders[1], kv_heads, keys, sizes.head_size));
        let mut value = tensor(&shape(orders[2], kv_heads, keys, sizes.value_size));
        let score_shape = [sizes.batch, sizes.heads, sizes.queries, keys];
        let mut scores = wants_scores.then(|| tensor(&score_shape));
        let texts = sizes.batch.max(1);
        let of_text = |tensor: &Tensor| (tensor.element_count() / texts).max(1);
        let chunks = [&query, &key, &value].map(of_text);
        let score_chunk = (sizes.heads * sizes.queries * keys).max(1);
        let mut none = vec![[0.0_f32; 0]; texts];
        let shown: Vec<&mut [f32]> = match &mut scores {
            Some(scores) => scores.slice_mut::<f32>().chunks_mut(score_chunk).collect(),
            None => none.iter_mut().map(<[f32; 0]>::as_mut_slice).collect(),
        };
        let query_data = query.slice_mut::<f32>().par_chunks_mut(chunks[0]);
        let key_data = key.slice_mut::<f32>().par_chunks_mut(chunks[1]);
        let value_data = value.slice_mut::<f32>().par_chunks_mut(chunks[2]);
        let parts = query_data.zip(key_data).zip(value_data).zip(shown).enumerate();
        parts.for_each(|(text, (((query, key), value), shown))| {
            let out = Out { query, key, value, shown, orders };
            self.text_back(text, dy, more, out, pool);
        });
        Gradients { query, key, value, scores }
    }

    fn text_back(
        &self,
        text: usize,
        dy: Heads<f32>,
        more: Option<(Stage, &[f32])>,
        out: Out,
        pool: &Pool,
    ) {
        let sizes = &self.sizes;
        let per_kv = sizes.heads / sizes.kv_heads;
        let score_count = sizes.queries * sizes.keys;
        let is_parallel = sizes.batch < crate::threads::count();
        let head_back = |kv_head: usize| {
            let mut head = Head::new(sizes, per_kv, pool);
            for index in 0..per_kv {
                let at = kv_head * per_kv + index;
                let of_head = (text * sizes.heads + at) * score_count;
                let more = more.map(|(stage, all)| (stage, &all[of_head..][..score_count]));
                self.head_back([text, at, index], dy, more, &mut head);
            }
            head
        };
        let Out { query, key, value, shown, orders } = out;
        let mut place = |kv_head: usize, head: Head| {
            let [dq, dk, dv, ds] = head.parts(sizes, per_kv);
            for index in 0..per_kv {
                let (at, size) = (kv_head * per_kv + index, sizes.head_size);
                let dq = &dq[index * sizes.queries * size..][..sizes.queries * size];
                put(query, dq, orders[0], at, [sizes.heads, size]);
            }
            put(key, dk, orders[1], kv_head, [sizes.kv_heads, sizes.head_size]);
            put(value, dv, orders[2], kv_head, [sizes.kv_heads, sizes.value_size]);
            if !shown.is_empty() {
                let at = kv_head * per_kv * score_count;
                shown[at..at + per_kv * score_count].copy_from_slice(ds);
            }
            pool.recycle(head.buffer);
        };
        if is_parallel {
            let heads: Vec<Head> = (0..sizes.kv_heads).into_par_iter().map(head_back).collect();
            heads.into_iter().enumerate().for_each(|(kv_head, head)| place(kv_head, head));
        } else {
            (0..sizes.kv_heads).for_each(|kv_head| place(kv_head, head_back(kv_head)));
        }
    }

    /// One head of queries; adds to what its head of keys and values gets.
    fn head_back(
        &self,
        [text, head, index]: [usize; 3],
        dy: Heads<f32>,
        more: Option<(Stage, &[f32])>,
        out: &mut Head,
    ) {
        let sizes = &self.sizes;
        let (queries, keys) = (sizes.queries, sizes.keys);
        if queries * keys == 0 {
            return;
        }
        let kv_head = head / (sizes.heads / sizes.kv_heads);
        let key = self.key.head(text, kv_head, [keys, sizes.head_size]);
        let value = self.value.head(text, kv_head, [keys, sizes.value_size]);
        let query = self.query.head(text, head, [queries, sizes.head_size]);
        let dy = dy.head(text, head, [queries, sizes.value_size]);
        let per_kv = sizes.heads / sizes.kv_heads;
        let ([dq, dk, dv, ds], [probabilities, capped]) = out.parts_mut(sizes, per_kv);
        let dq = &mut dq[index * queries * sizes.head_size..][..queries * sizes.head_size];
        let ds = &mut ds[index * queries * keys..][..queries * keys];
        let cap = self.scores.cap;
        let shown = (cap > 0.0).then_some((Stage::Capped, &mut *capped));
        self.probabilities(text, head, probabilities, shown);
        let of_keys = Strided::rows(probabilities, queries, keys).transposed();
        gemm::add_matmul(dv, of_keys, dy, 1.0, index > 0);
        gemm::add_matmul(ds, dy, value.transposed(), 1.0, false);
        let of_stage = |at: Stage| more.filter(|(stage, _)| *stage == at).map(|(_, more)| more);
        if let Some(more) = of_stage(Stage::Probabilities) {
            elementwise::add_assign(ds, more);
        }
        kernels::softmax_rows(ds, probabilities, keys, 1.0);
        if let Some(more) = of_stage(Stage::Masked) {
            let rows = ds.chunks_exact_mut(keys).zip(more.chunks_exact(keys));
            for (query, (ds, more)) in rows.enumerate() {
                let seen = self.seen(text, query);
                elementwise::add_assign(&mut ds[seen.clone()], &more[seen]);
            }
        }
        // The mask is added behind the cap: dS so far is its gradient.
        let (early, late) = (of_stage(Stage::Product), of_stage(Stage::Capped));
        let through = if cap > 0.0 || early.is_some() || late.is_some() {
            for (i, slot) in capped.iter_mut().enumerate() {
                let ratio = if cap > 0.0 { *slot / cap } else { 0.0 };
                let behind = ds[i] + late.map_or(0.0, |more| more[i]);
                *slot = behind * (1.0 - ratio * ratio) + early.map_or(0.0, |more| more[i]);
            }
            capped
        } else {
            ds
        };
        let scale = self.scores.scale;
        gemm::add_matmul(dq, Strided::rows(through, queries, keys), key, scale, false);
        let of_keys = Strided::rows(through, queries, keys).transposed();
        gemm::add_matmul(dk, of_keys, query, scale, index > 0);
    }
}

/// Where the gradients of a text go.
struct Out<'a> {
    query: &'a mut [f32],
    key: &'a mut [f32],
    value: &'a mut [f32],
    shown: &'a mut [f32],
    orders: [Order; 3],
}

/// The gradients of a head of keys and values and of the heads of queries that share it, and scratch
/// for scores.
struct Head {
    buffer: Tensor,
}

impl Head {
    fn new(sizes: &Sizes, per_kv: usize, pool: &Pool) -> Self {
        let ends = Self::ends(sizes, per_kv);
        let mut buffer = pool.tensor(DType::F32, &[ends[5]]);
        if sizes.queries * sizes.keys == 0 {
            buffer.slice_mut::<f32>().fill(0.0);
        }
        Self { buffer }
    }

    /// Where dQ, dK, dV, dS, the probabilities and the capped scores end.
    fn ends(sizes: &Sizes, per_kv: usize) -> [usize; 6] {
        let scores = sizes.queries * sizes.keys;
        let counts = [
            per_kv * sizes.queries * sizes.head_size,
            sizes.keys * sizes.head_size,
            sizes.keys * sizes.value_size,
            per_kv * scores,
            scores,
            scores,
        ];
        let mut end = 0;
        counts.map(|count| {
            end += count;
            end
        })
    }

    fn parts(&self, sizes: &Sizes, per_kv: usize) -> [&[f32]; 4] {
        let (ends, data) = (Self::ends(sizes, per_kv), self.buffer.slice::<f32>());
        let part = |start: usize, end: usize| &data[start..end];
        [part(0, ends[0]), part(ends[0], ends[1]), part(ends[1], ends[2]), part(ends[2], ends[3])]
    }

    fn parts_mut(&mut self, sizes: &Sizes, per_kv: usize) -> ([&mut [f32]; 4], [&mut [f32]; 2]) {
        let ends = Self::ends(sizes, per_kv);
        let (dq, rest) = self.buffer.slice_mut::<f32>().split_at_mut(ends[0]);
        let (dk, rest) = rest.split_at_mut(ends[1] - ends[0]);
        let (dv, rest) = rest.split_at_mut(ends[2] - ends[1]);
        let (ds, rest) = rest.split_at_mut(ends[3] - ends[2]);
        let (probabilities, capped) = rest.split_at_mut(ends[4] - ends[3]);
        ([dq, dk, dv, ds], [probabilities, capped])
    }
}

/// Puts the rows of a head where they belong in their text's.
fn put(out: &mut [f32], rows: &[f32], order: Order, head: usize, [heads, size]: [usize; 2]) {
    match order {
        Order::Apart => out[head * rows.len()..][..rows.len()].copy_from_slice(rows),
        Order::Packed => {
            for (row, values) in rows.chunks_exact(size.max(1)).enumerate() {
                out[(row * heads + head) * size..][..size].copy_from_slice(values);
            }
        }
    }
}
