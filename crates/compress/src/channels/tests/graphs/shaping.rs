//! Steps that take values apart or give them other shapes.

use super::{Graphs, Value, list};

impl Graphs {
    pub(super) fn sliced(&mut self, x: &Value) -> Option<()> {
        let axis = 1 + self.below(x.shape.len() - 1);
        let size = x.shape[axis] as i64;
        if size < 4 {
            return None;
        }
        let start = self.below(size as usize - 2) as i64;
        let end = start + 2 + self.below((size - start - 1) as usize) as i64;
        let mut shape = x.shape.clone();
        shape[axis] = (end - start) as usize;
        let ends = if end == size { i64::MAX } else { self.pick(&[end, end - size]) };
        let starts = self.pick(&[start, start - size]);
        let starts = self.constant("ints", &[starts]);
        let ends = self.constant("ints", &[ends]);
        let axes = self.constant("ints", &[axis as i64]);
        self.node(&format!("Slice({}, {starts}, {ends}, {axes})", x.name), shape, &[x])
    }

    pub(super) fn transposed(&mut self, x: &Value) -> Option<()> {
        let rank = x.shape.len();
        let mut axes: Vec<usize> = (0..rank).collect();
        // The batch stays the first.
        for i in (2..rank).rev() {
            let other = 1 + self.below(i);
            axes.swap(i, other);
        }
        let shape = axes.iter().map(|&axis| x.shape[axis]).collect();
        self.node(&format!("Transpose({}, perm={})", x.name, list(&axes)), shape, &[x])
    }

    /// One axis becomes two, or two become one.
    pub(super) fn reshaped(&mut self, x: &Value) -> Option<()> {
        let rank = x.shape.len();
        let axis = 1 + self.below(rank - 1);
        let mut shape = x.shape.clone();
        if self.below(2) == 0 && axis + 1 < rank {
            let second = shape.remove(axis + 1);
            shape[axis] *= second;
        } else {
            let parts = if shape[axis].is_multiple_of(2) { 2 } else { 3 };
            if rank > 4 || !shape[axis].is_multiple_of(parts) {
                return None;
            }
            shape[axis] /= parts;
            shape.insert(axis + self.below(2), parts);
        }
        // The first size is copied, and one may be left to be found.
        let mut target: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        target[0] = 0;
        let open = self.below(shape.len());
        if open > 0 && self.below(2) == 0 {
            target[open] = -1;
        }
        let target = self.constant("ints", &target);
        self.node(&format!("Reshape({}, {target})", x.name), shape, &[x])
    }

    pub(super) fn flattened(&mut self, x: &Value) -> Option<()> {
        let shape = vec![x.shape[0], x.shape[1..].iter().product()];
        self.node(&format!("Flatten({})", x.name), shape, &[x])
    }

    /// A mean over the last axis, repeated along it.
    pub(super) fn expanded(&mut self, x: &Value) -> Option<()> {
        let rank = x.shape.len();
        let axes = self.constant("ints", &[-1]);
        let mut shape = x.shape.clone();
        shape[rank - 1] = 1;
        self.node(&format!("ReduceMean({}, {axes})", x.name), shape, &[x])?;
        let mean = self.values.last()?.clone();
        let mut target: Vec<i64> = x.shape.iter().map(|&size| size as i64).collect();
        target[0] = 1;
        let target = self.constant("ints", &target);
        self.node(&format!("Expand({}, {target})", mean.name), x.shape.clone(), &[&mean])
    }

    pub(super) fn softmax(&mut self, x: &Value) -> Option<()> {
        let axis = 1 + self.below(x.shape.len() - 1);
        self.node(&format!("Softmax({}, axis={axis})", x.name), x.shape.clone(), &[x])
    }

    pub(super) fn reduced(&mut self, x: &Value) -> Option<()> {
        let rank = x.shape.len();
        if rank < 3 {
            return None;
        }
        let axis = 1 + self.below(rank - 1);
        let keeps = self.below(2);
        let axes = self.constant("ints", &[axis as i64]);
        let mut shape = x.shape.clone();
        if keeps == 1 {
            shape[axis] = 1;
        } else {
            shape.remove(axis);
        }
        let op = self.pick(&["ReduceMean", "ReduceMax", "ReduceSum"]);
        self.node(&format!("{op}({}, {axes}, keepdims={keeps})", x.name), shape, &[x])
    }

    pub(super) fn padded(&mut self, x: &Value) -> Option<()> {
        let &[batch, size, height, width] = x.shape.as_slice() else { return None };
        let pads = self.constant("ints", &[0, 0, 1, 0, 0, 0, 0, 1]);
        let shape = vec![batch, size, height + 1, width + 1];
        self.node(&format!("Pad({}, {pads})", x.name), shape, &[x])
    }
}
