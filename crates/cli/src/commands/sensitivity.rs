//! `attar sensitivity`: what the weights of each tensor, or the channels of each group, are worth, and
//! what fewer bits cost.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use attar::{
    BitsOptions, Error, Estimate, GroupSensitivity, Level, LevelSensitivity, Question,
    SensitivityOptions, SensitivityOutcome, SensitivityRequest, Subject, TensorSensitivity,
    WeightTime, find_sensitivity, heat_map, levels,
};
use clap::{Args, ValueEnum};

use crate::arguments::DataArguments;
use crate::print;
use crate::table::Table;

/// Tell what pruning each tensor, cutting each group of channels, or fewer bits for each weight cost.
///
/// One pass over a sample of the data keeps some rows of what each product reads; from them the
/// relative error of its output is computed for every sparsity, with a 95 % interval. Of a group it
/// is the error of the products that read its channels, when those of least importance are cut. With
/// `--quantize`, weights are rounded to so many bits, 64 inputs sharing a scale; 16 is f16. With
/// `--measure`, the model is also run with one tensor pruned or one group cut at a time, and its own
/// output compared.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Sensitivity {
    /// Model to look at (.onnx, or a run folder)
    model: PathBuf,
    /// Data to run it on; labels are needed by --metric alone
    #[arg(long, value_name = "SET")]
    data: PathBuf,
    /// Examples taken of the data
    #[arg(long, value_name = "N", default_value = "64")]
    examples: std::num::NonZeroUsize,
    /// Which weights or channels go first: l1, l2, relative, activation, taylor, taylor2, loss or random
    #[arg(long, value_name = "NAME", default_value = "l1")]
    importance: String,
    /// Sparsities to look at
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "0.3,0.5,0.6,0.7,0.8,0.9,0.95"
    )]
    sparsity: Vec<f64>,
    /// Round weights to fewer bits, in the place of pruning
    #[arg(long, conflicts_with_all = ["importance", "sparsity"])]
    quantize: bool,
    /// Bits to look at, of 16, 8, 4 and 2
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "16,8,4,2",
        requires = "quantize"
    )]
    bits: Vec<u32>,
    /// Sparsities, or bits, at which the model is run with each tensor or group by itself
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    measure: Vec<f64>,
    /// Measure the data set's metric there too, on all of it
    #[arg(long, requires = "measure")]
    metric: bool,
    /// Rows of the table
    #[arg(long, value_name = "WHAT", default_value = "tensor")]
    by: By,
    /// Nodes and tensors to leave out, by name; `*` is any text. Can be given several times
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// File to draw a heat map into
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Seed of whatever is drawn
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    #[command(flatten)]
    data_arguments: DataArguments,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Tensor,
    /// The part of the model up to the first number of a node's name
    Block,
    /// Channels that can be cut, and only together
    Group,
}

const EXAMPLES: &str = "Examples:
  attar sensitivity minilm.onnx --data texts.txt
  attar sensitivity minilm.onnx --data beir/ --by block --svg minilm.svg
  attar sensitivity cnn.onnx --data fashion-mnist/ --measure 0.5,0.9 --metric
  attar sensitivity minilm.onnx --data texts.txt --json > minilm.json
  attar compress minilm.onnx --step prune.unstructured:sparsity=0.6,sensitivity=minilm.json -o runs/p
  attar sensitivity minilm.onnx --data texts.txt --quantize --measure 4 --svg bits.svg
  attar sensitivity minilm.onnx --data texts.txt --by group --json > groups.json
  attar compress minilm.onnx --step prune.channels:sparsity=0.3,sensitivity=groups.json -o runs/q";

impl Sensitivity {
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        let subject = Subject::open(&self.model)?;
        let data = self.data_arguments.open(&self.data)?;
        let bar = print::Bar::default();
        let request = SensitivityRequest {
            subject,
            data: &data,
            example_count: self.examples.get(),
            question: self.question()?,
            measures_metric: self.metric,
            exclude: self.exclude.clone(),
            threads: self.threads.unwrap_or_else(attar::default_threads),
            progress: &bar,
        };
        let outcome = find_sensitivity(&request)?;
        if let Some(path) = &self.svg {
            let what = match &outcome.importance {
                Some(importance) => format!("importance {importance}"),
                None => "fewer bits".into(),
            };
            let title = format!("{}, {what}", self.model.display());
            attar::write_text(path, &heat_map(&outcome.found, &title))?;
        }
        if json {
            print::json(&outcome);
        } else {
            print::answer(&self.text(&outcome));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn question(&self) -> Result<Question, Error> {
        if self.quantize {
            if self.by == By::Group {
                return Err(Error::Usage {
                    message: "groups of channels are not quantized by themselves".into(),
                    hint: "leave `--by group` out".into(),
                });
            }
            // What is no number of bits is refused where bits are known.
            let measured: Vec<u32> = self.measure.iter().map(|&bits| bits as u32).collect();
            let mut bits: Vec<u32> = self.bits.iter().chain(&measured).copied().collect();
            bits.sort_unstable_by(|a, b| b.cmp(a));
            bits.dedup();
            return Ok(Question::Bits(BitsOptions {
                bits,
                measured,
                block: BLOCK,
                seed: self.seed,
            }));
        }
        let mut sparsities: Vec<f64> = self.sparsity.iter().chain(&self.measure).copied().collect();
        sparsities.sort_by(f64::total_cmp);
        sparsities.dedup();
        let options = SensitivityOptions {
            importance: self.importance.clone(),
            sparsities,
            measured: self.measure.clone(),
            seed: self.seed,
        };
        Ok(if self.by == By::Group {
            Question::Groups(options)
        } else {
            Question::Tensors(options)
        })
    }

    fn text(&self, outcome: &SensitivityOutcome) -> String {
        let (heading, all) = match self.by {
            By::Group => (["group", "channels"], groups(&outcome.found.groups)),
            _ => (["tensor", "weights"], tensors(&outcome.found.tensors)),
        };
        let blocks = by_block(&outcome.found.tensors);
        let of_blocks = tensors(&blocks);
        let rows = if self.by == By::Block { &of_blocks } else { &all };
        let mut text = table(rows, heading, "lost at", |level| Some(level.error));
        if !self.measure.is_empty() {
            text.push('\n');
            text.push_str(&table(&all, heading, "output at", |level| level.output_error));
        }
        if let Some((name, value)) = outcome.metric {
            text.push('\n');
            text.push_str(&format!("change of {name}, which was {value:.4}, in hundredths\n"));
            text.push_str(&table(&all, heading, "at", |level| level.metric));
        }
        if !outcome.times.is_empty() {
            text.push('\n');
            text.push_str(&times(&outcome.times));
        }
        let unread = outcome.found.groups.iter().filter(|group| group.levels.is_empty()).count();
        if unread > 0 {
            text.push_str(&format!(
                "{unread} groups are read by no product that can be predicted\n"
            ));
        }
        let (count, seconds) = (outcome.example_count, outcome.seconds);
        text.push_str(&format!("% of what is computed; {count} examples, {seconds:.1} s\n"));
        text
    }
}

/// Inputs that share a scale where weights are rounded.
const BLOCK: usize = 64;

/// A row: its name, what it has, and what was found.
type Row<'a> = (String, usize, &'a [LevelSensitivity]);

fn tensors(found: &[TensorSensitivity]) -> Vec<Row<'_>> {
    found.iter().map(|row| (row.name.clone(), row.element_count, &row.levels[..])).collect()
}

fn groups(found: &[GroupSensitivity]) -> Vec<Row<'_>> {
    let read = found.iter().filter(|group| !group.levels.is_empty());
    read.map(|group| (group.title(), group.channel_count, &group.levels[..])).collect()
}

/// What the products of each weight take, in float and in 8 bits.
fn times(rows: &[WeightTime]) -> String {
    let header = ["tensor", "ms in float", "ms by quantize.static", "speed"];
    let mut table = Table::new(&header);
    let text = |ms: Option<f64>| ms.map_or("-".into(), |ms| format!("{ms:.3}"));
    for row in rows {
        let speed = row.float_ms.zip(row.integer_ms).map(|(float, integer)| float / integer);
        table.row(vec![
            row.tensor.clone(),
            text(row.float_ms),
            text(row.integer_ms),
            speed.map_or("-".into(), |speed| format!("{speed:.2}×")),
        ]);
    }
    let note = "products of one example on builtin, one thread; weights alone in fewer bits are run as \
                floats";
    format!("{table}{note}\n")
}

/// A column for each sparsity of which `of` has something.
fn table(
    rows: &[Row],
    [what, count]: [&str; 2],
    heading: &str,
    of: impl Fn(&LevelSensitivity) -> Option<Estimate>,
) -> String {
    let has = |level: &Level| {
        let found = rows.iter().flat_map(|(_, _, levels)| levels.iter());
        found.into_iter().any(|found| found.level == *level && of(found).is_some())
    };
    let shown: Vec<Level> =
        levels(rows.iter().map(|(_, _, levels)| *levels)).into_iter().filter(has).collect();
    let mut header = vec![what.to_string(), count.to_string()];
    header.extend(shown.iter().map(|level| match level {
        Level::Sparsity(part) => format!("{heading} {part}"),
        Level::Bits(bits) => format!("{heading} {bits} bits"),
    }));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = Table::new(&header);
    for (name, count, levels) in rows {
        let mut cells = vec![name.clone(), print::count(*count as u64)];
        cells.extend(shown.iter().map(|level| {
            let found = levels.iter().find(|found| found.level == *level).and_then(&of);
            found.map_or(String::new(), |found| {
                let half = 50.0 * (found.high - found.low);
                format!("{:.1} ±{half:.1}", 100.0 * found.value)
            })
        }));
        table.row(cells);
    }
    table.to_string()
}

/// The tensors of each block together: the root of the mean square error, by weights.
fn by_block(tensors: &[TensorSensitivity]) -> Vec<TensorSensitivity> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut blocks: Vec<Vec<&TensorSensitivity>> = Vec::new();
    for tensor in tensors {
        let place = *places.entry(&tensor.block).or_insert_with(|| {
            blocks.push(Vec::new());
            blocks.len() - 1
        });
        blocks[place].push(tensor);
    }
    blocks.iter().map(|block| together(block)).collect()
}

fn together(block: &[&TensorSensitivity]) -> TensorSensitivity {
    let count: usize = block.iter().map(|tensor| tensor.element_count).sum();
    let level = |level: Level| {
        let with = |tensor: &&TensorSensitivity| {
            let found = tensor.levels.iter().find(|found| found.level == level);
            found.map(|found| (found.error, tensor.element_count as f64))
        };
        let found: Vec<(Estimate, f64)> = block.iter().filter_map(with).collect();
        let mean = |of: fn(&Estimate) -> f64| {
            let (sum, weights) =
                found.iter().fold((0.0, 0.0), |(sum, weights), (error, weight)| {
                    (sum + of(error).powi(2) * weight, weights + weight)
                });
            (sum / weights.max(1.0)).sqrt()
        };
        let error =
            Estimate { value: mean(|e| e.value), low: mean(|e| e.low), high: mean(|e| e.high) };
        LevelSensitivity { level, error, output_error: None, metric: None }
    };
    let all = levels(block.iter().map(|tensor| &tensor.levels[..]));
    TensorSensitivity {
        name: block[0].block.clone(),
        element_count: count,
        levels: all.into_iter().map(level).collect(),
        ..block[0].clone()
    }
}
