//! attar's own runtime: a program of `attar-ops` on threads of its own.

use std::num::NonZeroUsize;

use attar_graph::{Model, Value};
use attar_ops::{Datum, Pool, Program, StepTime, Visit, sequential};
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
    thread_count: NonZeroUsize,
    /// `None` while runs stay on the calling thread.
    threads: Option<rayon::ThreadPool>,
}

fn thread_pool(count: NonZeroUsize) -> Result<rayon::ThreadPool, RuntimeError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count.get())
        .thread_name(|index| format!("attar-{index}"))
        .build()
        .map_err(|error| RuntimeError::Unsupported { what: error.to_string() })
}

impl BuiltinSession {
    fn new(model: &Model, options: &RunOptions) -> Result<Self, RuntimeError> {
        let thread_count = options.threads;
        let threads = (thread_count.get() > 1).then(|| thread_pool(thread_count)).transpose()?;
        let program = Program::new(model.clone(), &options.observed)?;
        Ok(Self { program, pool: Pool::default(), thread_count, threads })
    }

    /// Runs `work` with as many threads as were asked for: one is the caller's, if all of the work can
    /// be done there.
    fn on_threads<T: Send>(
        &mut self,
        work: impl FnOnce(&Program, &mut Pool) -> T + Send,
    ) -> Result<T, RuntimeError> {
        let Self { program, pool, thread_count, threads } = self;
        if let Some(threads) = threads {
            return Ok(threads.install(|| work(program, pool)));
        }
        let (result, is_left) = sequential(|| work(program, pool));
        if is_left {
            *threads = Some(thread_pool(*thread_count)?);
        }
        Ok(result)
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
        let outputs = self.on_threads(|program, pool| program.observe(in_order, pool, visit))??;
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
        Ok(self.on_threads(|program, pool| program.profile(in_order, pool))??)
    }
}
