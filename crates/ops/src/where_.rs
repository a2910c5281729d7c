//! Where (opset 9 and later): y = condition ? a : b, broadcasting.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::broadcast::{Loops, broadcast_facts, broadcast_shapes};
use crate::words::{by_width, check_movable, words, words_mut};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

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
        let picks = facts[0].constant.as_ref().map(|condition| condition.bytes().to_vec());
        if let (Some(picks), Some(a), Some(b)) = (picks, facts[1].elements(), facts[2].elements())
            && fact.rank().is_some_and(|rank| rank <= 1)
            && [picks.len(), a.len(), b.len()].iter().all(|&n| n == picks.len())
        {
            let chosen = picks.iter().zip(a.iter().zip(b));
            let chosen = chosen.map(|(&pick, (a, b))| if pick != 0 { a } else { b });
            fact.set_elements(chosen.cloned().collect());
        }
        Ok(vec![fact])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let (condition, a, b) = (run.typed::<u8>(0)?, run.input(1)?, run.input(2)?);
            check_movable(1, a)?;
            if a.dtype() != b.dtype() {
                return Err(OpError::DType { index: 2, found: b.dtype() });
            }
            let shape =
                broadcast_shapes(&broadcast_shapes(condition.shape(), a.shape())?, b.shape())?;
            let mut y = run.pool.tensor(a.dtype(), &shape);
            let loops = Loops::new([condition.shape(), a.shape(), b.shape()], &shape);
            by_width!(a, Word => choose::<Word>(
                words_mut(&mut y), condition.bytes(), words(a), words(b), &loops));
            Ok(vec![y])
        }))
    }
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
