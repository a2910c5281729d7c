//! If (opset 1 and later): one of two graphs, by a condition.

use attar_graph::{Graph, Node};
use attar_tensor::Tensor;

use super::{condition, either, graph_of, take_body};
use crate::{Body, DataKernel, DataRun, Fact, Kernel, OpError, Operator, OverData};

pub(crate) struct If;

impl Operator for If {
    fn op_type(&self) -> &'static str {
        "If"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, _: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(Vec::new())
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Err(OpError::Unsupported { what: "If without its bodies".into() })
    }

    fn over_data(&self) -> Option<&dyn OverData> {
        Some(self)
    }
}

impl OverData for If {
    fn data_kernel(
        &self,
        node: &Node,
        mut bodies: Vec<Body>,
    ) -> Result<Box<dyn DataKernel>, OpError> {
        let then = take_body(&mut bodies, "then_branch")?;
        let otherwise = take_body(&mut bodies, "else_branch")?;
        for body in [&then, &otherwise] {
            if body.output_count() != node.outputs.len() {
                let what = format!("the count of outputs of `{}`", body.attribute());
                let expected = node.outputs.len().to_string();
                return Err(OpError::value(&what, body.output_count(), expected));
            }
        }
        Ok(Box::new(move |run: &mut DataRun| {
            let body = if condition(run.tensor(0)?)? { &then } else { &otherwise };
            body.run(Vec::new(), run)
        }))
    }

    fn infer_bodies(
        &self,
        node: &Node,
        inputs: &[Option<&Fact>],
        infer: &mut dyn FnMut(&Graph, Vec<Option<Fact>>) -> Vec<Option<Fact>>,
    ) -> Result<Vec<Option<Fact>>, OpError> {
        let then = infer(graph_of(node, "then_branch")?, Vec::new());
        let otherwise = infer(graph_of(node, "else_branch")?, Vec::new());
        let known = inputs.first().copied().flatten().and_then(|fact| fact.constant.as_ref());
        if let Some(constant) = known {
            return Ok(if condition(constant)? { then } else { otherwise });
        }
        let pairs = then.iter().zip(&otherwise);
        Ok(pairs.map(|(a, b)| either(a.as_ref()?, b.as_ref()?)).collect())
    }
}
