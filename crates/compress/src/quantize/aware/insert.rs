//! Puts `FakeQuantize` nodes into a graph, and the scales that they read.

use std::collections::{BTreeMap, HashMap};

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_ops::ATTAR_DOMAIN;
use attar_tensor::Tensor;

use super::bits::{Bits, WeightGrid};
use super::weight_scale::{finite_channels, first_scale};
use super::{AwarePlan, AwareSettings, Learning};
use crate::PassError;
use crate::quantize::nodes::{Weight, weight_of};
use crate::quantize::placement::Placement;
use crate::quantize::sites::Site;

/// Levels that a bias may begin with: of 31 bits, with room to learn.
const BIAS_LEVELS: f32 = (1_u32 << 30) as f32;

pub(super) struct Inserter<'a> {
    model: &'a Model,
    links: &'a Links<'a>,
    sites: &'a BTreeMap<String, Site>,
    settings: &'a AwareSettings,
    made: AwarePlan,
    /// Scale and zero point of each range, by the value that it was found on.
    ranges: HashMap<String, [String; 2]>,
    /// The scale of each quantized value, by its name, and its first content.
    value_scales: HashMap<String, (String, f32)>,
    /// What products read in the place of a weight, and its scale, by name, axis and grid.
    weights: Vec<(&'a str, usize, WeightGrid, QuantizedWeight)>,
    /// Products by what their weights have, in words.
    counts: BTreeMap<String, usize>,
}

#[derive(Clone)]
struct QuantizedWeight {
    real: String,
    scale: String,
    /// The first contents of the scale; empty where the weight itself says them.
    scales: Vec<f32>,
}

impl<'a> Inserter<'a> {
    pub(super) fn new(
        model: &'a Model,
        links: &'a Links<'a>,
        sites: &'a BTreeMap<String, Site>,
        settings: &'a AwareSettings,
    ) -> Self {
        Self {
            model,
            links,
            sites,
            settings,
            made: AwarePlan::default(),
            ranges: HashMap::new(),
            value_scales: HashMap::new(),
            weights: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// A value that `readers` read on its grid; of values with one range all read the same scale.
    pub(super) fn quantize_value(
        &mut self,
        value: &str,
        placement: &Placement,
        readers: &[(usize, usize)],
    ) {
        let Some(site) = self.sites.get(value) else { return };
        let mut origin = value;
        while let Some((_, source)) = placement.shared.iter().find(|(of, _)| of == origin)
            && self.sites.contains_key(source)
        {
            origin = source;
        }
        let [scale, zero] = self.range(origin, site);
        let real = format!("{value}_dequantized");
        let level_max = i64::from(placement.level_max(value));
        let node = Node::new("FakeQuantize", &real, &[value, &scale, &zero], &[&real]);
        let ends = WeightGrid::Levels { low: 0, high: level_max };
        self.add(with_grid(node, ends).with_domain(ATTAR_DOMAIN));
        for &(index, input) in readers {
            self.read(index, input, &real);
        }
        self.value_scales.insert(value.into(), (scale, site.chosen.range.scale));
    }

    /// Scale and zero point of the range that was found on a value.
    fn range(&mut self, value: &str, site: &Site) -> [String; 2] {
        if let Some(known) = self.ranges.get(value) {
            return known.clone();
        }
        let range = site.chosen.range;
        let scale = self.scale(value, Tensor::scalar(range.scale));
        let zero = format!("{value}_zero");
        self.set(&zero, Tensor::scalar(f32::from(range.zero_point)));
        if self.settings.zero_points == Learning::Learned {
            self.made.scales.push(zero.clone());
        }
        self.ranges.insert(value.into(), [scale.clone(), zero.clone()]);
        [scale, zero]
    }

    /// The name of a scale. One that learns is exp(its logarithm): it stays above 0, and a step of an
    /// optimizer changes it by a part of itself (Jain et al., "TQT", 2020, arXiv:1903.08066).
    fn scale(&mut self, base: &str, first: Tensor) -> String {
        let name = format!("{base}_scale");
        if self.settings.scales == Learning::Fixed {
            self.set(&name, first);
            return name;
        }
        let log = format!("{base}_log_scale");
        let logs: Vec<f32> = first.slice::<f32>().iter().map(|scale| scale.ln()).collect();
        self.set(&log, Tensor::new(first.shape(), &logs));
        self.add(Node::new("Exp", &name, &[&log], &[&name]));
        self.made.scales.push(log);
        name
    }

    /// A product's weight, and its bias where kernels sum integers.
    ///
    /// # Errors
    /// A weight that is not finite.
    pub(super) fn quantize_product(&mut self, index: usize, bits: Bits) -> Result<(), PassError> {
        let node = &self.model.graph.nodes[index];
        let (Some(weight), Some(grid)) = (weight_of(self.links, node), bits.weight_grid()) else {
            return Ok(());
        };
        let quantized = self.weight(&weight, grid)?;
        self.read(index, 1, &quantized.real);
        if bits.is_integer_product() {
            self.quantize_bias(index, &quantized);
        }
        *self.counts.entry(bits.words()).or_default() += 1;
        Ok(())
    }

    fn weight(
        &mut self,
        weight: &Weight<'a>,
        grid: WeightGrid,
    ) -> Result<QuantizedWeight, PassError> {
        let is_it = |known: &&(&str, usize, WeightGrid, QuantizedWeight)| {
            known.0 == weight.name && known.1 == weight.axis && known.2 == grid
        };
        if let Some((.., known)) = self.weights.iter().find(is_it) {
            return Ok(known.clone());
        }
        let others = self.weights.iter().filter(|known| known.0 == weight.name).count();
        let base = match others {
            0 => weight.name.to_string(),
            others => format!("{}@{others}", weight.name),
        };
        let channels = finite_channels(weight)?;
        let (scale, scales) = match grid {
            WeightGrid::Signs => (self.mean_magnitude(&base, weight), Vec::new()),
            WeightGrid::Levels { low, high } => {
                let first = |channel: &Vec<f32>| first_scale(channel, low, high);
                let scales: Vec<f32> = channels.iter().map(first).collect();
                (self.scale(&base, Tensor::new(&[scales.len()], &scales)), scales)
            }
        };
        let real = format!("{base}_dequantized");
        let node = Node::new("FakeQuantize", &real, &[weight.name, &scale], &[&real]);
        let node = with_grid(node, grid).with_attribute("axis", weight.axis as i64);
        self.add(node.with_domain(ATTAR_DOMAIN));
        let quantized = QuantizedWeight { real, scale, scales };
        self.weights.push((weight.name, weight.axis, grid, quantized.clone()));
        Ok(quantized)
    }

    /// The scale of least squared error of signs, which follows the weight: the mean of |w|.
    fn mean_magnitude(&mut self, base: &str, weight: &Weight) -> String {
        let named = |suffix: &str| format!("{base}_{suffix}");
        let (magnitude, axes, scale) = (named("magnitude"), named("axes"), named("scale"));
        let others: Vec<i64> =
            (0..weight.tensor.rank() as i64).filter(|&axis| axis != weight.axis as i64).collect();
        self.set(&axes, Tensor::new(&[others.len()], &others));
        self.add(Node::new("Abs", &magnitude, &[weight.name], &[&magnitude]));
        let mean = Node::new("ReduceMean", &scale, &[&magnitude, &axes], &[&scale]);
        self.add(mean.with_attribute("keepdims", 0_i64));
        scale
    }

    /// Runtimes sum a Conv's or Gemm's bias with its products: on their grid, scale of the input
    /// times scale of the channel. One that is beyond that grid stays in float.
    fn quantize_bias(&mut self, index: usize, weight: &QuantizedWeight) {
        let node = &self.model.graph.nodes[index];
        let (Some(bias), false) = (node.input(2), node.is("MatMul")) else { return };
        let Some((input_scale, first)) = self.value_scales.get(&node.inputs[0]).cloned() else {
            return;
        };
        let Some(tensor) = self.links.constant(bias) else { return };
        let is_vector = tensor.shape() == [weight.scales.len()];
        if !is_vector || tensor.dtype() != attar_tensor::DType::F32 {
            return;
        }
        let values = tensor.values::<f32>();
        let fits = |(b, scale): (&f32, &f32)| b.abs() <= BIAS_LEVELS * scale * first;
        if !values.iter().zip(&weight.scales).all(fits) {
            return;
        }
        let base = node.label().trim_start_matches('/');
        let named = |suffix: &str| format!("{base}_bias_{suffix}");
        let (scale, real) = (named("scale"), named("dequantized"));
        self.add(Node::new("Mul", &scale, &[&input_scale, &weight.scale], &[&scale]));
        let node = Node::new("FakeQuantize", &real, &[bias, &scale], &[&real]);
        let grid = WeightGrid::Levels { low: i64::from(i32::MIN), high: i64::from(i32::MAX) };
        let node = with_grid(node, grid).with_attribute("axis", 0_i64);
        self.add(node.with_domain(ATTAR_DOMAIN));
        self.read(index, 2, &real);
    }

    pub(super) fn finish(mut self, placement: &Placement) -> AwarePlan {
        let kind = |(bits, count): (&String, &usize)| format!("{count} with weights of {bits}");
        let kinds: Vec<String> = self.counts.iter().map(kind).collect();
        self.made.plan.remark(if kinds.is_empty() {
            "nothing to quantize: no product or convolution with a constant f32 weight".into()
        } else {
            let values = self.value_scales.len();
            format!("products and convolutions: {}; {values} values on grids", kinds.join(", "))
        });
        if placement.unfolded_count > 0 {
            self.made.plan.remark(format!(
                "{} convolutions are followed by BatchNormalization that cannot be folded into \
                 them: it runs in float",
                placement.unfolded_count
            ));
        }
        self.made
    }

    fn plan(&mut self) -> &mut Plan {
        &mut self.made.plan
    }

    fn set(&mut self, name: &str, tensor: Tensor) {
        self.plan().push(Edit::SetInitializer { name: name.into(), tensor });
    }

    fn add(&mut self, node: Node) {
        self.plan().push(Edit::AddNode { node });
    }

    fn read(&mut self, index: usize, input: usize, value: &str) {
        self.plan().push(Edit::SetInput { index, input, value: value.into() });
    }
}

fn with_grid(node: Node, grid: WeightGrid) -> Node {
    match grid {
        WeightGrid::Signs => node.with_attribute("mode", "signs"),
        WeightGrid::Levels { low, high } => {
            node.with_attribute("level_min", low).with_attribute("level_max", high)
        }
    }
}
