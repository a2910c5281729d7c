//! attar's own runtime: a program of `attar-ops` on threads of its own.

use attar_graph::{Model, Value};
use attar_ops::{Datum, Pool, Program, StepTime, Visit};
use attar_tensor::Tensor;

use crate::feeds::check_feeds;
use crate::{RunOptions, Runtime, RuntimeError, Session};

/// The runtime of `attar-ops`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Builtin;

impl Runtime for Builtin {
    fn name(&self) -> &'static str {
        "builtin"
    }

    fn version(&self) -> String {
        format!("{} ({})", env!("CARGO_PKG_VERSION"), attar_ops::isa_name())
    }

    fn load(&self, model: &Model, options: &RunOptions) -> Result<Box<dyn Session>, RuntimeError> {
        Ok(Box::new(BuiltinSession::new(model, options)?))
    }
}

struct BuiltinSession {
    program: Program,
    pool: Pool,
    threads: rayon::ThreadPool,
}

impl BuiltinSession {
    fn new(model: &Model, options: &RunOptions) -> Result<Self, RuntimeError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.get())
            .thread_name(|index| format!("attar-{index}"))
            .build()
            .map_err(|error| RuntimeError::Unsupported { what: error.to_string() })?;
        let program = Program::new(model.clone(), &options.observed)?;
        Ok(Self { program, pool: Pool::default(), threads })
    }

    /// The feeds in the order of the inputs.
    fn in_order(&self, feeds: &[(&str, &Tensor)]) -> Result<Vec<Datum>, RuntimeError> {
        check_feeds(self.program.inputs(), feeds)?;
        let in_order = self.program.inputs().iter().map(|input| {
            let (_, tensor) = feeds.iter().find(|(name, _)| *name == input.name)?;
            Some(Datum::Tensor(tensor.aligned()))
        });
        Ok(in_order.collect::<Option<_>>().expect("every input was found to be fed"))
    }

    fn execute(
        &mut self,
        feeds: &[(&str, &Tensor)],
        visit: Option<Visit>,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let in_order = self.in_order(feeds)?;
        let Self { program, pool, threads } = self;
        let outputs = threads.install(|| program.observe(in_order, pool, visit))?;
        let tensor = |(datum, value): (Datum, &Value)| match datum {
            Datum::Tensor(tensor) => Ok(tensor),
            other => Err(RuntimeError::Unsupported {
                what: format!("{} as the model's output `{}`", other.kind(), value.name),
            }),
        };
        outputs.into_iter().zip(self.program.outputs()).map(tensor).collect()
    }
}

impl Session for BuiltinSession {
    fn inputs(&self) -> &[Value] {
        self.program.inputs()
    }

    fn outputs(&self) -> &[Value] {
        self.program.outputs()
    }

    fn run(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, RuntimeError> {
        self.execute(feeds, None)
    }

    fn observe(
        &mut self,
        feeds: &[(&str, &Tensor)],
        visit: Visit,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        self.execute(feeds, Some(visit))
    }

    fn profile(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<StepTime>, RuntimeError> {
        let in_order = self.in_order(feeds)?;
        let Self { program, pool, threads } = self;
        Ok(threads.install(|| program.profile(in_order, pool))?)
    }
}
