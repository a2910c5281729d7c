//! Fitting model, data and options to each other before the first step.

use attar_evaluate::data::{Images, TensorLabels};
use attar_evaluate::{Dataset, EvaluateError, Preprocessing};
use attar_graph::Dim;
use attar_runtime::{RunOptions, Session};
use attar_tensor::Tensor;
use attar_train::{Rng, TrainerOptions};

use super::choice::default_loss;
use super::feeder::Feeder;
use super::source::{BatchSource, Form, Teacher, classes, example_lengths, form_of_tensors};
use super::{TrainRequest, TrainingData};
use crate::{Error, Subject};
use attar_runtime::Builtin;
use std::sync::Mutex;

/// What is chosen where nothing is said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainDefaults {
    pub loss: &'static str,
    pub epochs: usize,
    pub learning_rate: f64,
}

impl Default for TrainDefaults {
    fn default() -> Self {
        Self { loss: "mse", epochs: 3, learning_rate: 1e-3 }
    }
}

/// What fits a model and its data; the learning rate is one for `optimizer`.
///
/// # Errors
/// Data without labels, and no teacher.
pub fn training_defaults(
    subject: &Subject,
    data: &TrainingData,
    is_taught: bool,
    optimizer: &str,
) -> Result<TrainDefaults, Error> {
    let is_paired = matches!(data.train, Dataset::Pairs(_)) && {
        let session = subject.session(&Builtin, &RunOptions::default())?;
        attar_evaluate::gives_one_score(session.as_ref(), subject.output())?
    };
    let has_attention = subject.model.graph.nodes.iter().any(|node| {
        matches!(node.op_type.as_str(), "Softmax" | "Attention" | "MultiHeadAttention")
    });
    let has_texts = !data.train.texts().is_empty();
    let learning_rate = match optimizer {
        "sgd" => 0.05,
        // Encoders come trained, as a rule, and lose what they know at a higher rate.
        _ if has_texts && has_attention => 5e-5,
        _ => 1e-3,
    };
    let epochs = if has_texts { 3 } else { 10 };
    Ok(TrainDefaults {
        loss: default_loss(&data.train, is_taught, is_paired)?,
        epochs,
        learning_rate,
    })
}

/// Where only a count of steps is given, the epochs that they take.
pub(crate) fn fit_length(options: &mut TrainerOptions, example_count: usize) {
    if options.length.epochs == 0 {
        let (size, accumulate) = (options.batches.size.get(), options.batches.accumulate.get());
        let batches = example_count.div_ceil(size).max(1);
        let each = batches.div_ceil(accumulate) as u64;
        options.length.epochs = options.length.steps_max.unwrap_or(each).div_ceil(each) as usize;
    }
}

/// The names of the classes of data go with the model; numbers are no names.
pub(crate) fn name_labels(subject: &mut Subject, data: &Dataset) -> Option<String> {
    let names = match data {
        Dataset::Labelled(data) => &data.names,
        Dataset::Images(images) => &images.names,
        _ => return None,
    };
    let is_number = |(index, name): (usize, &String)| *name == index.to_string();
    if names.is_empty() || names.iter().enumerate().all(is_number) || !subject.labels().is_empty() {
        return None;
    }
    let preprocessing = subject.preprocessing.get_or_insert_with(Preprocessing::default);
    preprocessing.labels.clone_from(names);
    Some(format!("{} class names go into attar.toml", names.len()))
}

/// The data as batches for the model, tried on a first one. The second result says what one may
/// wonder about.
///
/// # Errors
/// A model and data that do not fit each other.
pub(crate) fn source<'a>(
    request: &'a TrainRequest,
    run_options: &RunOptions,
) -> Result<(BatchSource<'a>, Vec<String>), Error> {
    let data = &request.data.train;
    let (student, mut session) = Feeder::new(&request.subject, data, run_options)?;
    let teacher = match &request.teacher {
        Some(teacher) => Some(teacher_of(request, teacher, &student, run_options)?),
        None => None,
    };
    let mut remarks = Vec::new();
    let form = form(&request.subject, data, teacher.is_some(), &mut remarks)?;
    check_augment(request)?;
    let threads = rayon::ThreadPoolBuilder::new().num_threads(run_options.threads.get()).build();
    let threads = threads.map_err(|error| Error::Usage {
        message: format!("no threads: {error}"),
        hint: "ask for fewer: `--threads 1`".into(),
    })?;
    let count = match (&form, data, student.lengths()) {
        (Form::Plain, _, Some(texts)) => texts.len(),
        _ => data.example_count(),
    };
    let lengths = example_lengths(&form, &student, data);
    let mut source = BatchSource {
        data,
        form,
        count,
        lengths,
        student,
        teacher,
        augment: request.augment.clone(),
        class_count: 0,
        threads,
    };
    check_batch_size(&source, &request.options)?;
    source.class_count = try_out(&source, session.as_mut(), &request.subject)?;
    check_classes(&source, &request.subject, &mut remarks)?;
    Ok((source, remarks))
}

/// What an example is.
fn form(
    subject: &Subject,
    data: &Dataset,
    is_taught: bool,
    remarks: &mut Vec<String>,
) -> Result<Form, Error> {
    let names = subject.labels();
    Ok(match data {
        Dataset::Labelled(data) if names.is_empty() => classes(&data.labels),
        Dataset::Labelled(data) => classes(&data.classes_of(names)?),
        Dataset::Images(images) => classes(&classes_of_images(images, names)?),
        Dataset::Tensors(data) => form_of_tensors(data),
        Dataset::Text(_) => Form::Plain,
        Dataset::Pairs(_) | Dataset::Retrieval(_) if is_taught => {
            remarks.push("the teacher's outputs are learned; the data's own labels are not".into());
            Form::Plain
        }
        Dataset::Pairs(pairs) => {
            let largest = pairs.scores.iter().fold(0.0_f64, |most, score| most.max(score.abs()));
            let scale = if largest > 1.0 { largest } else { 1.0 };
            if scale > 1.0 {
                remarks.push(format!("scores are divided by {scale}, the largest"));
            }
            Form::Likeness(pairs.scores.iter().map(|score| (score / scale) as f32).collect())
        }
        Dataset::Retrieval(data) => {
            let documents = |relevant: &Vec<(usize, f64)>| {
                relevant.iter().map(|&(document, _)| document).collect()
            };
            Form::Relevant(data.relevant.iter().map(documents).collect())
        }
    })
}

/// Folders' names among those of the model; indices are taken as they are.
fn classes_of_images(images: &Images, names: &[String]) -> Result<Vec<usize>, Error> {
    if names.is_empty() || images.names.is_empty() {
        return Ok(images.labels.clone());
    }
    let place = |name: &String| {
        names.iter().position(|known| known == name).ok_or_else(|| Error::Usage {
            message: format!("the model has no class `{name}`, which a folder of images names"),
            hint: format!("its {} classes stand in attar.toml, under `labels`", names.len()),
        })
    };
    let places: Vec<usize> = images.names.iter().map(place).collect::<Result<_, _>>()?;
    Ok(images.labels.iter().map(|&label| places[label]).collect())
}

fn check_augment(request: &TrainRequest) -> Result<(), Error> {
    if request.augment.is_none() || matches!(request.data.train, Dataset::Images(_)) {
        return Ok(());
    }
    Err(Error::Usage {
        message: format!("{} cannot be augmented", request.data.train.kind_name()),
        hint: "leave `--augment` out: it is for images".into(),
    })
}

fn teacher_of<'a>(
    request: &'a TrainRequest,
    teacher: &'a Subject,
    student: &Feeder,
    run_options: &RunOptions,
) -> Result<Teacher<'a>, Error> {
    let (feeder, session) = Feeder::new(teacher, &request.data.train, run_options)?;
    if feeder.is_paired() != student.is_paired() {
        return Err(Error::Usage {
            message: "of model and teacher one scores two texts at once, and the other does not"
                .into(),
            hint: "choose a teacher of the model's kind".into(),
        });
    }
    if feeder.image != student.image {
        return Err(Error::Usage {
            message: "model and teacher see images of another size, mean or std".into(),
            hint: "give both the same [image] in attar.toml".into(),
        });
    }
    let place = |name: &String| {
        let found = session.outputs().iter().position(|output| output.name == *name);
        found.expect("the output was found by its name")
    };
    Ok(Teacher {
        name: teacher.name.clone(),
        output: place(&feeder.output),
        features: request.features.iter().map(place).collect(),
        feeder,
        session: Mutex::new(session),
    })
}

/// A model whose first axis is a number takes batches of that many.
fn check_batch_size(source: &BatchSource, options: &TrainerOptions) -> Result<(), Error> {
    let rows = match source.form {
        Form::Likeness(_) if !source.student.is_paired() => 2,
        Form::Relevant(_) => 2,
        _ => 1,
    };
    let size = options.batches.size.get() * rows;
    for input in &source.student.inputs {
        if let Some(&Dim::Known(fixed)) = input.shape().and_then(<[Dim]>::first)
            && (fixed != size as i64 || !source.count.is_multiple_of(size))
        {
            return Err(Error::Usage {
                message: format!(
                    "the model's input `{}` takes batches of {fixed}, and the data makes others",
                    input.name
                ),
                hint: "export the model with a free batch dimension".into(),
            });
        }
    }
    Ok(())
}

/// Runs the model on a first batch; returns how many numbers it gives per row.
fn try_out(
    source: &BatchSource,
    session: &mut dyn Session,
    subject: &Subject,
) -> Result<usize, Error> {
    let indices: Vec<usize> = (0..source.count.min(2)).collect();
    // Mixing needs the count of classes, which this run finds out.
    let mut draw = Rng::new(&[0]);
    let batch = source.without_mixing(&indices, &mut draw)?;
    let feeds: Vec<(&str, &Tensor)> = batch.feeds.iter().map(|(n, t)| (&n[..], t)).collect();
    let fail = |source| Error::Runtime { subject: subject.name.clone(), source };
    let outputs = session.run(&feeds).map_err(fail)?;
    let index = session.outputs().iter().position(|output| output.name == source.student.output);
    let output = &outputs[index.expect("the output was found by its name")];
    let rows = feeds.first().and_then(|(_, tensor)| tensor.shape().first().copied()).unwrap_or(0);
    if output.rank() != 2 || output.shape()[0] != rows {
        return Err(EvaluateError::OutputShape {
            output: source.student.output.clone(),
            found: format!("{}{:?}", output.dtype(), output.shape()),
            expected: format!("[{rows}, …], a row per example"),
        }
        .into());
    }
    if let Some(taught) = teacher_width(&batch.targets)
        && taught != output.shape()[1]
    {
        return Err(Error::Usage {
            message: format!(
                "output `{}` gives {} numbers per example, the teacher's gives {taught}",
                source.student.output,
                output.shape()[1]
            ),
            hint: "choose a model with an output as wide as the teacher's".into(),
        });
    }
    Ok(output.shape()[1])
}

fn teacher_width(targets: &attar_train::Targets) -> Option<usize> {
    use attar_train::Targets;
    match targets {
        Targets::Outputs(outputs) | Targets::Taught { outputs, .. } => {
            outputs.first()?.shape().last().copied()
        }
        Targets::Features { targets, .. } => teacher_width(targets),
        _ => None,
    }
}

/// That the output has a score for every class of the data, and a number for every value.
fn check_classes(
    source: &BatchSource,
    subject: &Subject,
    remarks: &mut Vec<String>,
) -> Result<(), Error> {
    let (width, output) = (source.class_count, &source.student.output);
    let names = subject.labels();
    let wanted = if names.is_empty() { class_count(source.data) } else { Some(names.len()) };
    match (&source.form, wanted) {
        (Form::Classes(classes), Some(wanted)) => {
            if wanted > width && !names.is_empty() {
                return Err(Error::Usage {
                    message: format!(
                        "output `{output}` gives {width} scores per example, the data has \
                         {wanted} classes"
                    ),
                    hint: format!("make a model of {wanted} classes, or check `labels`"),
                });
            }
            let labels: Vec<usize> = classes.iter().map(|&class| class as usize).collect();
            match source.data {
                Dataset::Labelled(data) => data.check_classes(&labels, width)?,
                Dataset::Images(images) => images.check_classes(width)?,
                Dataset::Tensors(data) => data.check_classes(width)?,
                _ => {}
            }
            if wanted < width {
                remarks.push(format!("output `{output}` has {width} scores for {wanted} classes"));
            }
        }
        (Form::Values(values), _) => {
            let expected = values.element_count() / source.count.max(1);
            if expected != width {
                return Err(
                    EvaluateError::OutputWidth { found: width, expected, what: "values" }.into()
                );
            }
        }
        _ => {}
    }
    Ok(())
}

fn class_count(data: &Dataset) -> Option<usize> {
    let of_labels = |labels: &[usize]| labels.iter().max().map(|most| most + 1);
    match data {
        Dataset::Labelled(data) => Some(data.names.len()),
        Dataset::Images(images) if images.names.is_empty() => of_labels(&images.labels),
        Dataset::Images(images) => Some(images.names.len()),
        Dataset::Tensors(data) => match &data.labels {
            TensorLabels::Classes(labels) => of_labels(labels),
            _ => None,
        },
        _ => None,
    }
}
