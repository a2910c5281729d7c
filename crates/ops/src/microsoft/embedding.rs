//! `EmbedLayerNormalization` of ONNX Runtime: y = LayerNormalization(word[i] + position[p] +
//! segment[s]). Output 1 is the count of 1s in each row of the mask, output 2 the sum.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::vector;
use crate::channels::{Channels, Tensors, input, output};
use crate::gather::rows_gradient;
use crate::gradient::add_assign;
use crate::kernels::{elementwise, for_rows, normalize};
use crate::normalization_gradient::{Form, Kind};
use crate::{
    Backward, Fact, Flow, Forward, Gradient, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Pool,
    Reads, Run, Training, required,
};

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

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        let mut channels = Channels::default();
        let width = output(0, 2);
        let inputs = [(2, 1), (3, 1), (4, 1), (5, 0), (6, 0)].map(|(i, axis)| input(i, axis));
        for own in inputs.into_iter().chain([output(2, 2)]) {
            if tensors.rank(own.port).is_some() {
                channels.tie(tensors, own, width);
            }
        }
        channels.statistics.push(width);
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let epsilon = node.float_or("epsilon", 1e-12)?;
        let output_count = node.outputs.len();
        Ok(Box::new(move |run: &mut Run| embed(run, epsilon, output_count, None)))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let epsilon = node.float_or("epsilon", 1e-12)?;
        Ok(Box::new(EmbedGradient { epsilon, output_count: node.outputs.len() }))
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

/// One value per token, where the input is there.
fn per_token(run: &Run, index: usize, ids: &[usize]) -> Result<Option<Vec<i64>>, OpError> {
    match integers(run, index)? {
        Some(values) if values.len() != ids.iter().product::<usize>() => {
            Err(OpError::shapes(ids, run.input(index)?.shape()))
        }
        values => Ok(values),
    }
}

/// The lookups of words, positions and, where there are, segments.
fn lookups_of<'a>(run: &'a Run) -> Result<(Vec<Lookup<'a>>, [usize; 3]), OpError> {
    let ids = run.input(0)?;
    let &[batch, tokens] = ids.shape() else {
        return Err(OpError::value("the shape of input 0", ids.shape(), "of rank 2"));
    };
    let word = run.typed::<f32>(2)?;
    let size = *word.shape().last().ok_or_else(|| OpError::value("input 2", "a scalar", "rows"))?;
    let (count, shape) = (batch * tokens, [batch, tokens]);
    let ids = per_token(run, 0, &shape)?.unwrap_or_default();
    let positions = match integers(run, 8)? {
        Some(row) if row.len() == tokens => row.iter().copied().cycle().take(count).collect(),
        Some(_) => per_token(run, 8, &shape)?.unwrap_or_default(),
        None => (0..count).map(|i| (i % tokens) as i64).collect(),
    };
    let mut lookups = vec![
        Lookup::new(run, 2, size, ids, "a word")?,
        Lookup::new(run, 3, size, positions, "a position")?,
    ];
    if let (Some(segments), Some(_)) = (per_token(run, 1, &shape)?, run.optional(4)) {
        lookups.push(Lookup::new(run, 4, size, segments, "a segment")?);
    }
    Ok((lookups, [batch, tokens, size]))
}

/// The sum of the rows looked up.
fn embedded(lookups: &[Lookup], shape: [usize; 3], pool: &Pool) -> Tensor {
    let size = shape[2];
    let mut y = pool.tensor(DType::F32, &shape);
    for_rows(y.slice_mut::<f32>(), size, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(size).enumerate() {
            row.copy_from_slice(lookups[0].row(first + i, size));
            for lookup in &lookups[1..] {
                elementwise::add_assign(row, lookup.row(first + i, size));
            }
        }
    });
    y
}

fn embed(
    run: &Run,
    epsilon: f32,
    output_count: usize,
    saved: Option<&mut Vec<Tensor>>,
) -> Result<Vec<Tensor>, OpError> {
    let (lookups, shape) = lookups_of(run)?;
    let [batch, tokens, size] = shape;
    run.typed::<f32>(5)?;
    let scale = vector(run, 5, size)?.unwrap_or_default();
    let shift = vector(run, 6, size)?;
    let mut y = embedded(&lookups, shape, run.pool);
    let sum = (output_count > 2 || saved.is_some()).then(|| {
        let mut sum = run.pool.tensor(DType::F32, y.shape());
        sum.slice_mut::<f32>().copy_from_slice(y.slice());
        sum
    });
    for_rows(y.slice_mut::<f32>(), size, |_, rows| {
        normalize::layer_normalize_rows(rows, scale, shift, epsilon);
    });
    let counts = match per_token(run, 7, &[batch, tokens])? {
        Some(mask) => (0..batch)
            .map(|text| {
                mask[text * tokens..(text + 1) * tokens].iter().filter(|&&m| m == 1).count()
            })
            .map(|count| count as i32)
            .collect(),
        None => vec![0; batch],
    };
    if let (Some(saved), Some(sum)) = (saved, &sum) {
        saved.push(sum.clone());
        saved.extend(lookups.iter().map(|lookup| {
            let indices: Vec<i64> = lookup.indices.iter().map(|&index| index as i64).collect();
            Tensor::new(&[indices.len()], &indices)
        }));
    }
    let mut outputs = vec![y, Tensor::new(&[batch], &counts)];
    outputs.extend(sum);
    outputs.truncate(output_count.max(1));
    Ok(outputs)
}

/// What flows into the sum flows on to each row that was looked up. Saved are the sum and the indices.
struct EmbedGradient {
    epsilon: f32,
    output_count: usize,
}

impl Gradient for EmbedGradient {
    fn reads(&self) -> Reads {
        Reads::NOTHING.input(5)
    }

    fn forward(&self, forward: &mut Forward, _: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        embed(&forward.run, self.epsilon, self.output_count, Some(&mut forward.saved))
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let mut flows = vec![None; run.shapes.len()];
        let indices = run.saved.split_off(1);
        let sum = run.saved.pop().expect("the forward run saved the sum");
        let size = run.input(5)?.element_count();
        let (epsilon, bias) = (self.epsilon, (run.shapes.len() > 6).then_some(6));
        let form = Form { kind: Kind::Deviation, epsilon, scale: 5, bias };
        let mut dsum = match run.gradients[0].take() {
            Some(dy) => form.flow_back(dy, &sum, &[size], &mut flows, run)?,
            None => run.zeros(sum.shape()),
        };
        if let Some(other) = run.gradient(2) {
            add_assign(dsum.slice_mut::<f32>(), other.slice::<f32>());
        }
        run.pool.recycle(sum);
        for (table, indices) in (2..).zip(indices).filter(|(table, _)| run.wants(*table)) {
            let picked = indices.slice::<i64>().iter().map(|&index| index as usize).collect();
            let flow = rows_gradient(dsum.clone(), run.shape(table), 0, picked, run.pool);
            flows[table] = Some(flow);
        }
        run.pool.recycle(dsum);
        Ok(flows)
    }
}
