//! `EmbedLayerNormalization` of ONNX Runtime: y = LayerNormalization(word[i] + position[p] +
//! segment[s]). Output 1 is the count of 1s in each row of the mask, output 2 the sum.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::vector;
use crate::kernels::{elementwise, for_rows, normalize};
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

pub(crate) struct EmbedLayerNormalization;

impl Operator for EmbedLayerNormalization {
    fn op_type(&self) -> &'static str {
        "EmbedLayerNormalization"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        7..=9
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (ids, word) = (required(inputs, 0)?, required(inputs, 2)?);
        let (Some([batch, tokens]), Some([_, size])) =
            (ids.shape.as_deref(), word.shape.as_deref())
        else {
            let y = Fact::unranked(word.dtype);
            let mut facts = vec![y.clone(), Fact::unranked(DType::I32), y];
            facts.truncate(node.outputs.len());
            return Ok(facts);
        };
        let y = Fact::new(word.dtype, vec![batch.clone(), tokens.clone(), size.clone()]);
        let mut facts = vec![y.clone(), Fact::new(DType::I32, vec![batch.clone()]), y];
        facts.truncate(node.outputs.len());
        Ok(facts)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let epsilon = node.float_or("epsilon", 1e-12)?;
        let output_count = node.outputs.len();
        Ok(Box::new(move |run: &mut Run| embed(run, epsilon, output_count)))
    }

    fn macs(&self, _: &Node, _: &[Option<&Fact>], _: &[Fact]) -> Dim {
        Dim::Known(0)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// A table of rows, and the index of one per token.
struct Lookup<'a> {
    table: &'a [f32],
    indices: Vec<usize>,
}

impl<'a> Lookup<'a> {
    fn new(
        run: &'a Run,
        table: usize,
        size: usize,
        indices: Vec<i64>,
        what: &str,
    ) -> Result<Self, OpError> {
        let tensor = run.typed::<f32>(table)?;
        let rows = match *tensor.shape() {
            [rows, found] if found == size => rows,
            _ => return Err(OpError::shapes(tensor.shape(), &[size])),
        };
        let row = |index: i64| {
            let valid = usize::try_from(index).ok().filter(|&index| index < rows);
            valid.ok_or_else(|| OpError::value(what, index, format!("below {rows}")))
        };
        let indices = indices.into_iter().map(row).collect::<Result<_, _>>()?;
        Ok(Self { table: tensor.slice(), indices })
    }

    fn row(&self, token: usize, size: usize) -> &[f32] {
        &self.table[self.indices[token] * size..][..size]
    }
}

/// The integers of an optional input.
fn integers(run: &Run, index: usize) -> Result<Option<Vec<i64>>, OpError> {
    let Some(tensor) = run.optional(index) else { return Ok(None) };
    let error = OpError::DType { index, found: tensor.dtype() };
    Ok(Some(tensor.to_i64().ok_or(error)?))
}

fn embed(run: &mut Run, epsilon: f32, output_count: usize) -> Result<Vec<Tensor>, OpError> {
    let ids = run.input(0)?;
    let &[batch, tokens] = ids.shape() else {
        return Err(OpError::value("the shape of input 0", ids.shape(), "of rank 2"));
    };
    let word = run.typed::<f32>(2)?;
    let size = *word.shape().last().ok_or_else(|| OpError::value("input 2", "a scalar", "rows"))?;
    let count = batch * tokens;
    let sized = |index: usize, values: Option<Vec<i64>>| match values {
        Some(values) if values.len() != count => {
            Err(OpError::shapes(&[batch, tokens], run.input(index)?.shape()))
        }
        values => Ok(values),
    };
    let ids = sized(0, integers(run, 0)?)?.unwrap_or_default();
    let positions = match integers(run, 8)? {
        Some(row) if row.len() == tokens => row.iter().copied().cycle().take(count).collect(),
        Some(all) => sized(8, Some(all))?.unwrap_or_default(),
        None => (0..count).map(|i| (i % tokens) as i64).collect(),
    };
    let mut lookups = vec![
        Lookup::new(run, 2, size, ids, "a word")?,
        Lookup::new(run, 3, size, positions, "a position")?,
    ];
    if let (Some(segments), Some(_)) = (sized(1, integers(run, 1)?)?, run.optional(4)) {
        lookups.push(Lookup::new(run, 4, size, segments, "a segment")?);
    }
    run.typed::<f32>(5)?;
    let scale = vector(run, 5, size)?.unwrap_or_default();
    let shift = vector(run, 6, size)?;
    let mut y = run.pool.tensor(DType::F32, &[batch, tokens, size]);
    for_rows(y.slice_mut::<f32>(), size, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(size).enumerate() {
            row.copy_from_slice(lookups[0].row(first + i, size));
            for lookup in &lookups[1..] {
                elementwise::add_assign(row, lookup.row(first + i, size));
            }
        }
    });
    let sum = (output_count > 2).then(|| {
        let mut sum = run.pool.tensor(DType::F32, y.shape());
        sum.slice_mut::<f32>().copy_from_slice(y.slice());
        sum
    });
    for_rows(y.slice_mut::<f32>(), size, |_, rows| {
        normalize::layer_normalize_rows(rows, scale, shift, epsilon);
    });
    let counts = match sized(7, integers(run, 7)?)? {
        Some(mask) => (0..batch)
            .map(|text| {
                mask[text * tokens..(text + 1) * tokens].iter().filter(|&&m| m == 1).count()
            })
            .map(|count| count as i32)
            .collect(),
        None => vec![0; batch],
    };
    let mut outputs = vec![y, Tensor::new(&[batch], &counts)];
    outputs.extend(sum);
    outputs.truncate(output_count.max(1));
    Ok(outputs)
}
