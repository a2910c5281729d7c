//! Embedding tables in few bits: a looked-up row is made float.
//!
//! In 8 bits each row has one scale and standard operators do it; in 4 bits, or 8 where it is asked
//! for, each block of a row has one, and `GatherBlockQuantized` of ONNX Runtime does it.

mod blocks;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use attar_graph::{Edit, Graph, Links, Model, Node, Plan};
use attar_ops::MICROSOFT_DOMAIN;
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use self::blocks::Blocks;
pub(crate) use self::blocks::table_moments;
use super::nodes::Builder;
use super::static_::default_true;
use super::weight::quantize_channels;
use super::weights::{SCALE_TYPE, ScaleType};
use crate::{Context, OptionEntry, Pass, PassError};

/// Tables that `Gather` picks rows from, in 8 or 4 bits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddingQuantize {
    #[serde(default)]
    bits: TableBits,
    #[serde(default)]
    block: TableBlock,
    #[serde(default = "default_true")]
    zero_points: bool,
    #[serde(default)]
    rounding: TableRounding,
    #[serde(default)]
    scale_type: ScaleType,
}

/// How a table is rounded to 4 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TableRounding {
    /// By gradients where there is calibration data, else to the nearest level.
    #[default]
    Auto,
    Nearest,
}

/// How a table whose blocks have scales is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockForm {
    /// 4 or 8.
    pub(crate) bits: u32,
    pub(crate) block: usize,
    pub(crate) has_zero_points: bool,
    pub(crate) scale_type: ScaleType,
}

/// Bits of a table's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
enum TableBits {
    #[default]
    Four,
    Eight,
}

impl TryFrom<i64> for TableBits {
    type Error = String;

    fn try_from(bits: i64) -> Result<Self, String> {
        match bits {
            4 => Ok(Self::Four),
            8 => Ok(Self::Eight),
            _ => Err(format!("bits is {bits}, expected 8 or 4")),
        }
    }
}

/// Numbers of a row that share a scale.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
struct TableBlock(usize);

impl Default for TableBlock {
    fn default() -> Self {
        Self(64)
    }
}

impl TryFrom<i64> for TableBlock {
    type Error = String;

    fn try_from(block: i64) -> Result<Self, String> {
        let found = usize::try_from(block).ok();
        let known = found.filter(|block| *block >= 16 && block.is_power_of_two());
        known.map(Self).ok_or(format!("block is {block}, expected a power of 2 from 16 on"))
    }
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry { key: "bits", default: "4", help: "of a number: 8 or 4" },
    OptionEntry {
        key: "block",
        default: "64",
        help: "in 4 bits, successive numbers of a row that share a scale: a power of 2 from 16 on",
    },
    OptionEntry {
        key: "zero_points",
        default: "true",
        help: "in 4 bits, a zero point for each scale; false for levels that are symmetric around 0",
    },
    OptionEntry {
        key: "rounding",
        default: "\"auto\"",
        help: "in 4 bits, \"nearest\"; or \"auto\", by second moments of the outputs' gradients where \
               there is calibration data, so that the numbers of a row make up for each other's errors",
    },
    SCALE_TYPE,
];

impl Pass for EmbeddingQuantize {
    fn opset_min(&self) -> i64 {
        13
    }

    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let links = Links::new(&model.graph);
        let mut builder = Builder::new(&model.graph);
        let count = match self.bits {
            TableBits::Eight => quantize_embeddings(&mut builder, &links, context)?,
            TableBits::Four => self.quantize_blocks(&mut builder, model, &links, context)?,
        };
        let mut plan = builder.finish();
        let bits = if self.bits == TableBits::Four { 4 } else { 8 };
        plan.remark(match count {
            0 => "nothing to quantize: no table of f32 that Gather picks rows from".into(),
            _ => format!("{count} embedding tables in {bits} bits"),
        });
        Ok(plan)
    }
}

impl EmbeddingQuantize {
    /// Tables in 4 bits by blocks; those whose rows are odd stay as they are.
    fn quantize_blocks(
        &self,
        builder: &mut Builder,
        model: &Model,
        links: &Links,
        context: &Context,
    ) -> Result<usize, PassError> {
        let (fit, odd): (Vec<Lookup>, Vec<Lookup>) =
            lookups(builder.graph, links, context).into_iter().partition(Lookup::fits_four_bits);
        let moments = match self.rounding {
            TableRounding::Auto => {
                let names: Vec<String> = fit.iter().map(|lookup| lookup.name.into()).collect();
                table_moments(model, &names, context)?
            }
            TableRounding::Nearest => BTreeMap::new(),
        };
        let form = BlockForm {
            bits: 4,
            block: self.block.0,
            has_zero_points: self.zero_points,
            scale_type: self.scale_type,
        };
        for lookup in &fit {
            let moments = moments.get(lookup.name).map(Vec::as_slice);
            lookup.write_blocks(builder, form, moments, context.threads)?;
        }
        for Lookup { name, table, .. } in odd {
            let width = table.shape()[1];
            builder.plan.remark(format!("`{name}` stays float: its rows have {width} numbers"));
        }
        if !moments.is_empty() {
            builder.plan.remark("rounded by second moments of the outputs' gradients");
        }
        let count = fit.len();
        Ok(count)
    }
}

/// A `Gather` of rows from a table.
pub(crate) struct Lookup<'a> {
    pub(crate) index: usize,
    node: &'a Node,
    pub(crate) name: &'a str,
    pub(crate) table: &'a Tensor,
}

/// Every `Gather` of rows from a table that is worth it.
pub(crate) fn lookups<'a>(
    graph: &'a Graph,
    links: &Links<'a>,
    context: &Context,
) -> Vec<Lookup<'a>> {
    let lookup = |(index, node): (usize, &'a Node)| -> Option<Lookup<'a>> {
        let name = node.input(0)?;
        let table = links.constant(name).filter(|table| {
            table.dtype() == DType::F32 && table.rank() == 2 && table.size_bytes() >= SIZE_BYTES_MIN
        })?;
        let is_lookup = node.is("Gather") && node.int_or("axis", 0) == Ok(0);
        let is_excluded = context.exclude.matches(name) || context.exclude.matches(node.label());
        (is_lookup && !is_excluded).then_some(Lookup { index, node, name, table })
    };
    graph.nodes.iter().enumerate().filter_map(lookup).collect()
}

impl Lookup<'_> {
    /// Whether its rows can be packed two numbers to a byte.
    pub(crate) fn fits_four_bits(&self) -> bool {
        self.table.shape()[1].is_multiple_of(2)
    }

    /// The table rounded to 4 or 8 bits by blocks, to 8 by rows (a block of 0) or to f16, and made float
    /// again; `None` where there is no such form.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub(crate) fn rounded(&self, bits: u32, block: usize) -> Result<Option<Tensor>, PassError> {
        let back = match bits {
            16 => {
                let half = self.table.converted(DType::F16);
                let back = half.and_then(|half| half.converted(DType::F32));
                return Ok(Some(back.expect("floats convert to floats")));
            }
            8 if block == 0 => {
                let rounded = quantize_channels(self.name, self.table, 0, 127)?;
                let scales = rounded.scales.slice::<f32>();
                let width = self.table.shape()[1].max(1);
                let levels = rounded.values.slice::<i8>().iter().enumerate();
                levels.map(|(i, &q)| f32::from(q) * scales[i / width]).collect()
            }
            8 | 4 if bits == 8 || self.fits_four_bits() => {
                let width = self.table.shape()[1];
                let scale_type = ScaleType::F32;
                let form = BlockForm { bits, block, has_zero_points: true, scale_type };
                self.blocks(form, None, NonZeroUsize::MIN).dequantized(width, block)
            }
            _ => return Ok(None),
        };
        Ok(Some(Tensor::new(self.table.shape(), &back)))
    }

    fn blocks(&self, form: BlockForm, moments: Option<&[f32]>, threads: NonZeroUsize) -> Blocks {
        let width = self.table.shape()[1];
        let settings = blocks::Settings {
            bits: form.bits,
            block: form.block,
            has_zero_points: self.takes_zero_points(form),
            wants_half_scales: form.scale_type == ScaleType::F16,
            moments,
        };
        Blocks::new(&self.table.values::<f32>(), width, settings, threads)
    }

    /// Zero points of 4 bits are packed by pairs, row by row.
    fn takes_zero_points(&self, form: BlockForm) -> bool {
        let blocks = self.table.shape()[1].div_ceil(form.block);
        form.has_zero_points && (form.bits == 8 || blocks.is_multiple_of(2))
    }

    /// The table in 4 or 8 bits by blocks, and the node that reads it; by second moments of gradients,
    /// where they are given. Returns what its levels stand for.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub(crate) fn write_blocks(
        &self,
        builder: &mut Builder,
        form: BlockForm,
        moments: Option<&[f32]>,
        threads: NonZeroUsize,
    ) -> Result<Tensor, PassError> {
        let (name, node) = (self.name, self.node);
        let [rows, width] = [self.table.shape()[0], self.table.shape()[1]];
        if self.table.values::<f32>().iter().any(|x| !x.is_finite()) {
            return Err(PassError::WeightNotFinite { tensor: name.into() });
        }
        let made = self.blocks(form, moments, threads);
        let blocks = width.div_ceil(form.block);
        let each = 8 / form.bits as usize;
        let packed = |codes: &[u8]| -> Vec<u8> {
            match form.bits {
                4 => codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect(),
                _ => codes.to_vec(),
            }
        };
        let [quantized, scale, zero] =
            ["quantized", "scale", "zero_point"].map(|part| format!("{name}_{part}"));
        builder.set(&quantized, Tensor::new(&[rows, width / each], &packed(&made.levels)));
        let scales = Tensor::new(&[rows, blocks], &made.scales);
        builder.set_scales(&scale, scales, made.has_half_scales);
        let mut inputs = vec![quantized.as_str(), &node.inputs[1], &scale];
        if self.takes_zero_points(form) {
            builder.set(&zero, Tensor::new(&[rows, blocks / each], &packed(&made.zeros)));
            inputs.push(&zero);
        }
        builder.replaced(name);
        let lookup = Node::new("GatherBlockQuantized", node.label(), &inputs, &[&node.outputs[0]])
            .with_domain(MICROSOFT_DOMAIN)
            .with_attribute("bits", i64::from(form.bits))
            .with_attribute("block_size", form.block as i64)
            .with_attribute("gather_axis", 0_i64)
            .with_attribute("quantize_axis", 1_i64);
        builder.plan.push(Edit::ReplaceNode { index: self.index, node: lookup });
        Ok(Tensor::new(&[rows, width], &made.dequantized(width, form.block)))
    }

    /// The table in 8 bits by rows, and the nodes that read it.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub(crate) fn write_rows(&self, builder: &mut Builder) -> Result<(), PassError> {
        let (name, ids) = (self.name, self.node.inputs[1].as_str());
        let rounded = quantize_channels(name, self.table, 0, 127)?;
        let [rows, scales] = [format!("{name}_quantized"), format!("{name}_scale")];
        let scale_column = Tensor::new(&[self.table.shape()[0], 1], rounded.scales.slice::<f32>());
        builder.set(&rows, rounded.values);
        builder.set(&scales, scale_column);
        builder.replaced(name);
        let output = &self.node.outputs[0];
        let named = |suffix: &str| format!("{output}_{suffix}");
        let (row, real, scale) = (named("row"), named("real"), named("row_scale"));
        let gather = |source: &str, to: &str| Node::new("Gather", to, &[source, ids], &[to]);
        builder.add(gather(&rows, &row));
        builder.add(Node::new("Cast", &real, &[&row], &[&real]).with_attribute("to", 1_i64));
        builder.add(gather(&scales, &scale));
        let product = Node::new("Mul", self.node.label(), &[&real, &scale], &[output]);
        builder.plan.push(Edit::ReplaceNode { index: self.index, node: product });
        Ok(())
    }
}

/// Bytes below which a table is not worth three more nodes.
const SIZE_BYTES_MIN: usize = 256 << 10;

/// Quantizes the tables of all `Gather` nodes to 8 bits and says how many.
pub(crate) fn quantize_embeddings(
    builder: &mut Builder,
    links: &Links,
    context: &Context,
) -> Result<usize, PassError> {
    let found = lookups(builder.graph, links, context);
    for lookup in &found {
        lookup.write_rows(builder)?;
    }
    Ok(found.len())
}
