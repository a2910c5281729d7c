//! One side of a comparison: a process that answers line by line.
//!
//! It says on one line how many parameters it trains, how many products a forward run has, and how
//! many MB were resident before the model; and then, for each line: to `steps S`, the milliseconds
//! of each step, of as many as fit into S seconds; to `peak`, the GFLOP/s of a large product; to
//! `end`, the MB that were resident at most.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub(super) struct Side {
    name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a side says first.
pub(super) struct Start {
    pub(super) parameter_count: u64,
    /// Of a forward run; 0 where the side does not know.
    pub(super) mac_count: f64,
    pub(super) resident_mb: f64,
}

impl Side {
    pub(super) fn start(
        program: &Path,
        words: &[String],
        case: &str,
        threads: usize,
        variables: &[(&str, &str)],
    ) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(program);
        command.args(words).arg(case).arg(threads.to_string());
        command.envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let name = program.display().to_string();
        let mut child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        let input = child.stdin.take().ok_or("the process has an input")?;
        let output = BufReader::new(child.stdout.take().ok_or("the process has an output")?);
        Ok(Self { name, child, input, output })
    }

    fn answer(&mut self) -> Result<Vec<f64>, Box<dyn Error>> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(format!("{} ended before it answered (see above)", self.name).into());
        }
        let numbers = line.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>();
        numbers.map_err(|_| format!("{} says `{}`", self.name, line.trim()).into())
    }

    fn ask(&mut self, question: &str) -> Result<Vec<f64>, Box<dyn Error>> {
        writeln!(self.input, "{question}")?;
        self.input.flush()?;
        self.answer()
    }

    fn number(&mut self, question: &str) -> Result<f64, Box<dyn Error>> {
        let answer = self.ask(question)?;
        answer.first().copied().ok_or_else(|| format!("{} says nothing", self.name).into())
    }

    pub(super) fn ready(&mut self) -> Result<Start, Box<dyn Error>> {
        match self.answer()?.as_slice() {
            &[parameters, mac_count, resident_mb] => {
                Ok(Start { parameter_count: parameters as u64, mac_count, resident_mb })
            }
            other => Err(format!("{} begins with {other:?}", self.name).into()),
        }
    }

    /// The median of the steps of a round, in ms.
    pub(super) fn round(&mut self, seconds: f64) -> Result<f64, Box<dyn Error>> {
        let times = self.ask(&format!("steps {seconds}"))?;
        Ok(median(times))
    }

    pub(super) fn peak(&mut self) -> Result<f64, Box<dyn Error>> {
        self.number("peak")
    }

    pub(super) fn end(mut self) -> Result<f64, Box<dyn Error>> {
        let resident_mb = self.number("end")?;
        self.child.wait()?;
        Ok(resident_mb)
    }
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.as_slice() {
        [] => f64::NAN,
        all if all.len() % 2 == 1 => all[middle],
        all => f64::midpoint(all[middle - 1], all[middle]),
    }
}
