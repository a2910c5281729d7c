//! `MPNet` (Song et al., 2020, arXiv:2004.09297): BERT with a bias on attention by distance.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use super::encoder::Encoder;
use super::head::Head;
use super::{TextArchitecture, TokenTypes};
use crate::ImportError;
use crate::transformer::LayerNames;

pub(super) const MPNET: TextArchitecture = TextArchitecture {
    model_type: "mpnet",
    prefix: "mpnet.",
    classes: &["MPNetModel", "MPNetForMaskedLM"],
    head: Head {
        class: "MPNetForSequenceClassification",
        dense: "classifier.dense",
        is_dense_in_encoder: false,
        activation: "tanh",
        output: "classifier.out_proj",
    },
    build,
    config_names: &[],
    pad_token_id: PADDING_ID,
    is_counted_from_padding: true,
    ignorable: &[],
};

const LAYER: LayerNames = LayerNames {
    query: "attention.attn.q",
    key: "attention.attn.k",
    value: "attention.attn.v",
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..LayerNames::BERT
};

/// What the reference uses whatever config.json says.
const BUCKET_COUNT: usize = 32;
const DISTANCE_MAX: f32 = 128.0;
const PADDING_ID: i64 = 1;

/// Position 1 is that of padding, and the first token has the next.
const POSITION_OFFSET: usize = PADDING_ID as usize + 1;

fn build(encoder: &mut Encoder) -> Result<String, ImportError> {
    let config = encoder.config;
    if let Some(found) = config.pad_token_id.filter(|&found| found != PADDING_ID) {
        let found = found.to_string();
        return Err(config.unsupported("pad_token_id", &found, "1"));
    }
    let x = encoder.counted_embeddings(TokenTypes::None)?;
    let mask = encoder.mask_bias();
    let distance = distance_bias(encoder)?;
    // One sum for all layers, as large as the scores of one.
    let bias = encoder.builder.node("Add", "/encoder/bias/Add", &[&distance, &mask]);
    encoder.layers(&LAYER, x, &bias)
}

/// The bias [heads, sequence, sequence] that depends on how far key and query are apart.
///
/// The table is unrolled at import from buckets to distances: row by row of j − i it is looked up
/// once, where Gather's negative indices reach the distances to the left.
fn distance_bias(encoder: &mut Encoder) -> Result<String, ImportError> {
    let config = encoder.config;
    let buckets = config.relative_attention_num_buckets.unwrap_or(BUCKET_COUNT);
    if buckets != BUCKET_COUNT {
        let what = "relative_attention_num_buckets";
        return Err(config.unsupported(what, &buckets.to_string(), "32"));
    }
    let length_max = config.max_position_embeddings.saturating_sub(POSITION_OFFSET).max(1);
    let shape = [BUCKET_COUNT, config.layers.num_attention_heads];
    let (name, table) =
        encoder.builder.weights.take("encoder.relative_attention_bias.weight", &shape)?;
    let table = encoder.builder.constant(&name, by_distance(&table, shape, length_max));

    let positions: Vec<i64> = (0..length_max as i64).collect();
    let positions = encoder.builder.integers("distance.positions", &positions);
    let length = encoder.length();
    let place = "/encoder/relative_attention_bias";
    let columns = encoder.rows_for_length(&format!("{place}/Slice"), &positions, &length);
    let b = &mut *encoder.builder;
    let axis = b.integers("axis.1", &[1]);
    let rows = b.node("Unsqueeze", &format!("{place}/Unsqueeze"), &[&columns, &axis]);
    let distances = b.node("Sub", &format!("{place}/Sub"), &[&columns, &rows]);
    let gather = Node::new("Gather", &format!("{place}/Gather"), &[&table, &distances], &[]);
    Ok(b.push(gather.with_attribute("axis", 1_i64)))
}

/// The table [buckets, heads] as [heads, 2·length − 1]: distances 0, 1, … and then …, −2, −1.
fn by_distance(table: &Tensor, [_, heads]: [usize; 2], length_max: usize) -> Tensor {
    let values = table.values::<f32>();
    let last = length_max as i64 - 1;
    let distances: Vec<i64> = (0..=last).chain(-last..0).collect();
    let mut unrolled = Tensor::zeros(DType::F32, &[heads, distances.len()]);
    let rows = unrolled.slice_mut::<f32>().chunks_exact_mut(distances.len());
    for (head, row) in rows.enumerate() {
        for (y, &distance) in row.iter_mut().zip(&distances) {
            *y = values[bucket(distance) * heads + head];
        }
    }
    unrolled
}

/// The bucket of `distance` = key − query: half of them for each direction; of those, half exact
/// and half growing with the logarithm up to a distance of 128. In f32, as the reference rounds.
fn bucket(distance: i64) -> usize {
    let (half, exact) = (BUCKET_COUNT / 2, BUCKET_COUNT / 4);
    let direction = if distance > 0 { half } else { 0 };
    let size = distance.unsigned_abs() as usize;
    if size < exact {
        return direction + size;
    }
    let growth = (size as f32 / exact as f32).ln() / (DISTANCE_MAX / exact as f32).ln();
    let logarithmic = exact + (growth * (half - exact) as f32) as usize;
    direction + logarithmic.min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_change_where_the_reference_changes_them() {
        // The least distances of buckets 8 to 15, from PyTorch.
        let firsts = [8, 12, 16, 23, 32, 46, 64, 91];
        for (index, &first) in firsts.iter().enumerate() {
            assert_eq!(bucket(-first), 8 + index);
            assert_eq!(bucket(1 - first), 7 + index);
            assert_eq!(bucket(first), 24 + index);
        }
        assert_eq!(
            [bucket(0), bucket(-7), bucket(7), bucket(-511), bucket(511)],
            [0, 7, 23, 15, 31]
        );
    }

    #[test]
    fn negative_distances_count_from_the_end_of_the_table() {
        let values: Vec<f32> = (0..64).map(|x| x as f32).collect();
        let table = by_distance(&Tensor::new(&[32, 2], &values), [32, 2], 3);
        assert_eq!(table.shape(), [2, 5]);
        // Buckets of 0, 1, 2, −2, −1.
        assert_eq!(table.slice::<f32>()[..5], [0.0, 34.0, 36.0, 4.0, 2.0]);
    }
}
