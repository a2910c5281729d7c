//! What recurrent networks compute between their products, in integers: functions by a table, products
//! of two values, parts of one.

use attar_graph::{Edit, Model, Node};
use attar_ops::fold_constants;
use attar_tensor::{DType, Tensor};

use super::{Form, INT32, INT64, Multipliers, Target};

/// A value in levels.
struct Levels<'a> {
    name: &'a str,
    scale: f64,
    zero: i64,
}

impl<'a> Form<'a> {
    /// A function of one value: the level for each of 256.
    pub(super) fn table(&mut self, node: &'a Node, y: &Target) -> Option<Node> {
        let (x, scale, zero) = self.dequantized(node.input(0)?)?;
        let real: Vec<f32> = (0..256).map(|level| ((level - zero) as f64 * scale) as f32).collect();
        let values = self.computed(node, Tensor::new(&[256], &real))?;
        let level = |value: &f32| {
            let level = (f64::from(*value) / y.scale).round_ties_even() as i64;
            level.saturating_add(y.zero).clamp(y.ends[0], y.ends[1]) as u8
        };
        let levels: Vec<u8> = values.values::<f32>().iter().map(level).collect();
        if levels.len() != 256 {
            return None;
        }
        let [table, indices] = ["table", "indices"].map(|part| format!("{}_{part}", y.levels));
        self.plan.push(Edit::SetInitializer {
            name: table.clone(),
            tensor: Tensor::new(&[256], &levels),
        });
        let cast = Node::new("Cast", &indices, &[x[0]], &[&indices]).with_attribute("to", INT32);
        self.plan.push(Edit::AddNode { node: cast });
        Some(Node::new("Gather", node.label(), &[&table, &indices], &[y.levels]))
    }

    /// What a node makes of `x` in the place of its first input; the others are constants.
    fn computed(&self, node: &Node, x: Tensor) -> Option<Tensor> {
        const X: &str = "x";
        const Y: &str = "y";
        let mut model = Model { opsets: self.model.opsets.clone(), ..Model::default() };
        for name in node.inputs.iter().skip(1).filter(|name| !name.is_empty()) {
            model.graph.set_initializer(name.clone(), self.links.constant(name)?.clone());
        }
        model.graph.set_initializer(X, x);
        let mut alone = node.clone();
        alone.inputs[0] = X.into();
        alone.outputs = vec![Y.into()];
        model.graph.nodes.push(alone);
        fold_constants(&model, false).edits.into_iter().find_map(|edit| match edit {
            Edit::SetInitializer { name, tensor } if name == Y => Some(tensor),
            _ => None,
        })
    }

    /// The levels, and the constant of f32, of a node of two inputs one of which is constant.
    fn beside_constant(&self, node: &'a Node) -> Option<(Levels<'a>, &'a Tensor)> {
        let [a, b] = node.inputs.as_slice() else { return None };
        let constant = |name: &str| self.links.constant(name).filter(|c| c.dtype() == DType::F32);
        let (x, constant) = match (constant(a), constant(b)) {
            (None, Some(constant)) => (a, constant),
            (Some(constant), None) => (b, constant),
            _ => return None,
        };
        let (x, scale, zero) = self.dequantized(x)?;
        (constant.element_count() > 0).then_some((Levels { name: x[0], scale, zero }, constant))
    }

    /// x + c in levels, the constants in shifted units; `None` where no constant stands beside levels.
    pub(super) fn plus_constant(&mut self, node: &'a Node, y: &Target) -> Option<Node> {
        let (x, constant) = self.beside_constant(node)?;
        let factors = vec![x.scale / y.scale; constant.element_count()];
        let multipliers = Multipliers::new([&factors[..]].into_iter())?;
        let step = (1_i64 << multipliers.shift) as f64;
        let shifted = |(c, m): (&f32, &i64)| {
            let shifted = f64::from(*c) / y.scale * step;
            // Room for the level times its multiplier beside it.
            (shifted.abs() < 2_f64.powi(60)).then(|| shifted.round() as i64 - x.zero * m)
        };
        let values = constant.values::<f32>();
        let constants = values.iter().zip(&multipliers.values[0]).map(shifted);
        let constants: Vec<i64> = constants.collect::<Option<_>>()?;
        let terms = [(x.name, &factors[..])];
        Some(self.levels(node, y, &terms, &multipliers, &constants, constant.shape()))
    }

    /// x·c in levels, the constants as multipliers; `None` as above.
    fn times_constant(&mut self, node: &'a Node, y: &Target) -> Option<Node> {
        let (x, constant) = self.beside_constant(node)?;
        let factor = |c: &f32| x.scale * f64::from(*c) / y.scale;
        let factors: Vec<f64> = constant.values::<f32>().iter().map(factor).collect();
        let multipliers = Multipliers::new([&factors[..]].into_iter())?;
        let constants: Vec<i64> = multipliers.values[0].iter().map(|m| -x.zero * m).collect();
        let terms = [(x.name, &factors[..])];
        Some(self.levels(node, y, &terms, &multipliers, &constants, constant.shape()))
    }

    /// Values side by side, each of which comes onto the grid of all.
    pub(super) fn joined(&mut self, node: &'a Node, y: &Target) -> Option<Node> {
        let found: Option<Vec<_>> =
            node.inputs.iter().map(|input| self.dequantized(input)).collect();
        let found = found?;
        // Nothing is added to the graph for some where others have no form.
        let has_form =
            |scale: f64| Multipliers::new([&[scale / y.scale][..]].into_iter()).is_some();
        if !found.iter().all(|(_, scale, _)| has_form(*scale)) {
            return None;
        }
        let mut parts = Vec::new();
        for (position, (x, scale, zero)) in found.into_iter().enumerate() {
            let is_on_grid = scale == y.scale && zero == y.zero && y.ends == [0, 255];
            if is_on_grid {
                parts.push(x[0].to_string());
                continue;
            }
            let levels = format!("{}_joined_{position}", y.levels);
            let own = Target { levels: &levels, ..*y };
            let factor = [scale / y.scale];
            let last = self.shifted(node, &own, &[(x[0], &factor)], &[-zero])?;
            self.plan.push(Edit::AddNode { node: Node { name: levels.clone(), ..last } });
            parts.push(levels);
        }
        let mut joined = node.clone();
        joined.inputs = parts;
        joined.outputs = vec![y.levels.to_string()];
        Some(joined)
    }

    /// (a − zero)·(b − zero), both in levels.
    pub(super) fn multiplication(&mut self, node: &'a Node, y: &Target) -> Option<Node> {
        if let Some(made) = self.times_constant(node, y) {
            return Some(made);
        }
        let (a, a_scale, a_zero) = self.dequantized(node.input(0)?)?;
        let (b, b_scale, b_zero) = self.dequantized(node.input(1)?)?;
        let factor = [a_scale * b_scale / y.scale];
        Multipliers::new([&factor[..]].into_iter())?;
        let mut centred = |side: &str, levels: &str, zero: i64| {
            let [wide, name, own] =
                ["wide", "zero", "centred"].map(|part| format!("{}_{side}_{part}", y.levels));
            let cast = Node::new("Cast", &wide, &[levels], &[&wide]).with_attribute("to", INT64);
            self.plan.push(Edit::AddNode { node: cast });
            self.constant(&name, &[], &[-zero]);
            let add = Node::new("Add", &own, &[&wide, &name], &[&own]);
            self.plan.push(Edit::AddNode { node: add });
            own
        };
        let (a, b) = (centred("a", a[0], a_zero), centred("b", b[0], b_zero));
        let product = format!("{}_product", y.levels);
        let multiply = Node::new("Mul", &product, &[&a, &b], &[&product]);
        self.plan.push(Edit::AddNode { node: multiply });
        self.shifted(node, y, &[(&product, &factor)], &[0])
    }

    /// a − b, both in levels.
    pub(super) fn subtraction(&mut self, node: &'a Node, y: &Target) -> Option<Node> {
        let (a, a_scale, a_zero) = self.dequantized(node.input(0)?)?;
        let (b, b_scale, b_zero) = self.dequantized(node.input(1)?)?;
        let factors = [[a_scale / y.scale], [b_scale / y.scale]];
        let mut multipliers = Multipliers::new(factors.iter().map(|factor| &factor[..]))?;
        multipliers.values[1][0] = -multipliers.values[1][0];
        let constant = -a_zero * multipliers.values[0][0] - b_zero * multipliers.values[1][0];
        let terms = [(a[0], &factors[0][..]), (b[0], &factors[1][..])];
        Some(self.levels(node, y, &terms, &multipliers, &[constant], &[]))
    }

    /// One output of a `Split` into equal parts, on the grid of the whole.
    pub(super) fn part(&mut self, node: &'a Node, value: &str, quantize: &'a Node) -> Option<Node> {
        let (x, ..) = self.dequantized(node.input(0)?)?;
        let y = [quantize.input(1)?, quantize.input(2)?];
        let is_same = (0..2).all(|i| self.links.constant(x[i + 1]) == self.links.constant(y[i]));
        let shape = self.facts.get(node.input(0)?)?.shape.as_ref()?;
        let axis = node.int_or("axis", 0).ok()?;
        let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
        let size = shape.get(usize::try_from(axis).ok()?)?.known()?;
        let count = node.outputs.len() as i64;
        let index = node.outputs.iter().position(|output| output == value)? as i64;
        if !is_same || node.input(1).is_some() || size % count != 0 {
            return None;
        }
        let levels = quantize.outputs[0].as_str();
        let ends = [size / count * index, size / count * (index + 1), axis];
        let names = ["start", "end", "axis"].map(|part| format!("{levels}_{part}"));
        for (name, end) in names.iter().zip(ends) {
            self.constant(name, &[1], &[end]);
        }
        let inputs = [x[0], &names[0], &names[1], &names[2]];
        Some(Node::new("Slice", &quantize.name, &inputs, &[levels]))
    }
}
