//! Values on the way that a student learns from its teacher, beside the output.

use attar_evaluate::rows_output;
use attar_graph::{Model, NamePatterns, Node, Value};
use attar_runtime::{Builtin, RunOptions};

use super::TrainRequest;
use crate::{Error, Subject};

/// What models showed of themselves before features were added to it.
pub(super) struct Shown {
    outputs: [Vec<Value>; 2],
    names: [Option<String>; 2],
    preprocessed: [bool; 2],
}

/// The pattern that stands for every normalization over the last axis: what a layer of a
/// Transformer gives to the next one.
const AUTO: &str = "auto";

/// Makes the features of both models outputs. A model needs none to be trained without.
///
/// # Errors
/// Features without a teacher, or a pattern that names no value of both models.
pub(super) fn show(request: &mut TrainRequest) -> Result<Shown, Error> {
    let teacher = request.teacher.as_ref();
    let shown = Shown {
        outputs: [
            request.subject.model.graph.outputs.clone(),
            teacher.map_or(Vec::new(), |teacher| teacher.model.graph.outputs.clone()),
        ],
        names: [
            request.subject.output().map(String::from),
            teacher.and_then(Subject::output).map(String::from),
        ],
        preprocessed: [
            request.subject.preprocessing.is_some(),
            teacher.is_some_and(|teacher| teacher.preprocessing.is_some()),
        ],
    };
    if request.features.is_empty() {
        return Ok(shown);
    }
    let Some(teacher) = &mut request.teacher else {
        return Err(Error::Usage {
            message: "there is no teacher whose features could be learned".into(),
            hint: "name one: `--teacher MODEL`".into(),
        });
    };
    request.features = shared_features(&request.subject.model, &teacher.model, &request.features)?;
    for subject in [&mut request.subject, teacher] {
        if subject.output().is_none() {
            let session = subject.session(&Builtin, &RunOptions::default())?;
            let output = rows_output(session.as_ref(), None)?;
            subject.preprocessing.get_or_insert_with(Default::default).output = Some(output);
        }
        let outputs = &mut subject.model.graph.outputs;
        for name in &request.features {
            if outputs.iter().all(|output| output.name != *name) {
                outputs.push(Value::untyped(name));
            }
        }
    }
    Ok(shown)
}

impl Shown {
    /// Takes features off again: from both models, and from the one that was trained.
    pub(super) fn restore(self, request: &mut TrainRequest, trained: &mut Model) {
        trained.graph.outputs.clone_from(&self.outputs[0]);
        let subjects = [Some(&mut request.subject), request.teacher.as_mut()];
        let before = self.outputs.into_iter().zip(self.names).zip(self.preprocessed);
        for (subject, ((outputs, name), preprocessed)) in subjects.into_iter().zip(before) {
            let Some(subject) = subject else { continue };
            subject.model.graph.outputs = outputs;
            match &mut subject.preprocessing {
                Some(preprocessing) if preprocessed => preprocessing.output = name,
                other => *other = None,
            }
        }
    }
}

/// The values of both models that patterns name, in the student's order. `auto` stands for the
/// results of LayerNormalization and RMSNormalization.
///
/// # Errors
/// A pattern that names nothing that both have.
pub fn shared_features(
    student: &Model,
    teacher: &Model,
    patterns: &[String],
) -> Result<Vec<String>, Error> {
    let is_auto = patterns.iter().any(|pattern| pattern == AUTO);
    let named: Vec<String> = patterns.iter().filter(|p| *p != AUTO).cloned().collect();
    let named = NamePatterns::new(named);
    let is_wanted = |node: &Node, position: usize, name: &str| {
        let normalizes = node.is("LayerNormalization") || node.is("RMSNormalization");
        !name.is_empty() && ((is_auto && normalizes && position == 0) || named.matches(name))
    };
    let values = |model: &Model| {
        let mut values = Vec::new();
        for node in model.graph.nodes.iter().filter(|node| node.constant().is_none()) {
            let outputs = node.outputs.iter().enumerate();
            values.extend(
                outputs.filter(|(at, name)| is_wanted(node, *at, name)).map(|(_, n)| n.clone()),
            );
        }
        values
    };
    let (of_student, of_teacher) = (values(student), values(teacher));
    let shared: Vec<String> =
        of_student.iter().filter(|name| of_teacher.contains(name)).cloned().collect();
    let names: Vec<&str> = shared.iter().map(String::as_str).collect();
    let missing = named.unmatched(&names).first().map(|pattern| (*pattern).to_string());
    let missing = missing.or_else(|| shared.is_empty().then(|| AUTO.to_string()));
    match missing {
        None => Ok(shared),
        Some(pattern) => Err(Error::Usage {
            message: format!("`{pattern}` names no value that model and teacher both compute"),
            hint: "features are values of one name in both; `attar inspect --nodes` lists them"
                .into(),
        }),
    }
}
