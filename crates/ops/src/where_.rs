//! Where (opset 9 and later): y = condition ? a : b, broadcasting.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::broadcast::{Loops, Operand, broadcast_facts, broadcast_shapes};
use crate::channels::{Channels, Tensors};
use crate::gradient::{gradient, sum_to};
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Pool, Reads, Run, Training, required};

pub(crate) struct Where;

impl Operator for Where {
    fn op_type(&self) -> &'static str {
        "Where"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let facts = [required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?];
        let mut fact = broadcast_facts(&facts, facts[1].dtype)?;
        if let Some(elements) = chosen(facts)
            && fact.rank().is_some_and(|rank| rank <= 1)
        {
            fact.set_elements(elements);
        }
        Ok(vec![fact])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::elementwise(tensors, 0..tensors.inputs.len()))
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(for_every_type(
            |index| index > 0,
            |run: &mut Run| {
                let (condition, a, b) = (run.typed::<u8>(0)?, run.input(1)?, run.input(2)?);
                check_movable(1, a)?;
                let shape =
                    broadcast_shapes(&broadcast_shapes(condition.shape(), a.shape())?, b.shape())?;
                let mut y = run.pool.declared(a.dtype(), &shape)?;
                let loops = Loops::new([condition.shape(), a.shape(), b.shape()], &shape);
                by_width!(a, Word => choose::<Word>(
                words_mut(&mut y), condition.bytes(), words(a), words(b), &loops));
                Ok(vec![y])
            },
        ))
    }

    /// da = Σ dy where the condition holds, db = Σ dy where it does not.
    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient(Reads::NOTHING.input(0), |run| {
            let dy = run.take_gradient();
            let condition = run.input(0)?;
            let part = |index: usize| {
                run.wants(index).then(|| {
                    let part = masked(run.pool, &dy, condition, index == 1);
                    sum_to(part, run.shape(index), run.pool).into()
                })
            };
            let flows = vec![None, part(1), part(2)];
            run.pool.recycle(dy);
            Ok(flows)
        })
    }
}

/// dy where the condition is `held`, 0 elsewhere.
fn masked(pool: &Pool, dy: &Tensor, condition: &Tensor, held: bool) -> Tensor {
    let mut part = pool.tensor(dy.dtype(), dy.shape());
    let loops = Loops::new([condition.shape(), dy.shape()], dy.shape());
    let (condition, dy, [stride, dy_stride]) =
        (condition.bytes(), dy.slice::<f32>(), loops.inner_strides());
    loops.for_each_row_of(part.slice_mut::<f32>(), |part, [at, from]| {
        let size = part.len();
        match (Operand::new(condition, at, stride, size), Operand::new(dy, from, dy_stride, size)) {
            (Operand::Row(condition), Operand::Row(dy)) => {
                for ((part, &condition), &dy) in part.iter_mut().zip(condition).zip(dy) {
                    *part = if (condition != 0) == held { dy } else { 0.0 };
                }
            }
            (Operand::Scalar(condition), _) if (condition != 0) != held => part.fill(0.0),
            (_, Operand::Row(dy)) => part.copy_from_slice(dy),
            (_, Operand::Scalar(dy)) => part.fill(dy),
        }
    });
    part
}

/// Elements of a shape vector, each of `a` or of `b`; one of either serves all.
///
/// Where the condition is not known, an element that both sides agree on is known all the same.
fn chosen([condition, a, b]: [&Fact; 3]) -> Option<Vec<Dim>> {
    let (a, b) = (a.elements()?, b.elements()?);
    let unknown = [Dim::Unknown];
    let condition = condition.elements().unwrap_or(&unknown);
    let lists = [condition, a, b];
    let count = lists.iter().map(|list| list.len()).find(|&length| length != 1).unwrap_or(1);
    if lists.iter().any(|list| list.len() != 1 && list.len() != count) {
        return None;
    }
    let at = |list: &[Dim], index: usize| list[if list.len() == 1 { 0 } else { index }].clone();
    let pick = |index: usize| match (at(condition, index).known(), at(a, index), at(b, index)) {
        (Some(0), _, b) => b,
        (Some(_), a, _) => a,
        (None, a, b) if a.same_as(&b) => a,
        _ => Dim::Unknown,
    };
    Some((0..count).map(pick).collect())
}

fn choose<T: Copy>(y: &mut [T], condition: &[u8], a: &[T], b: &[T], loops: &Loops<3>) {
    if y.is_empty() {
        return;
    }
    let [sc, sa, sb] = loops.inner_strides();
    let mut rows = y.chunks_exact_mut(loops.inner_size());
    loops.for_each_row(|[c, at_a, at_b]| {
        let row = rows.next().expect("as many rows as the loops visit");
        for (i, y) in row.iter_mut().enumerate() {
            *y = if condition[c + i * sc] != 0 { a[at_a + i * sa] } else { b[at_b + i * sb] };
        }
    });
}
