//! Tables of quality, time and invariance, which several commands print.

use std::fmt::Write as _;

use attar::{Evaluation, Interval, LatencyRow, RuntimeInvariance};

use crate::print::{bytes, milliseconds};
use crate::table::Table;

fn difference(interval: &Interval) -> String {
    format!("{:+.4} [{:+.4}, {:+.4}]", interval.value, interval.low, interval.high)
}

/// Metrics of every model, with the difference to the first and its 95 % interval.
pub(crate) fn quality_table(evaluation: &Evaluation, names: &[String]) -> String {
    let mut header = vec!["metric".to_string()];
    header.extend(names.iter().cloned());
    header.extend(names.iter().skip(1).map(|name| format!("{name} − {} [95 %]", names[0])));
    let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    let metrics = evaluation.models.first().map_or(0, |model| model.metrics.len());
    for index in 0..metrics {
        let mut row = vec![evaluation.models[0].metrics[index].name.to_string()];
        let values = evaluation.models.iter().map(|model| &model.metrics[index]);
        row.extend(values.clone().map(|metric| format!("{:.4}", metric.interval.value)));
        row.extend(values.filter_map(|metric| metric.difference.as_ref().map(difference)));
        table.row(row);
    }
    let agreements: Vec<_> = evaluation.models.iter().map(|model| model.agreement).collect();
    if agreements.iter().any(Option::is_some) {
        let mut mean = vec!["mean cosine".to_string()];
        let mut least = vec!["least cosine".to_string()];
        for agreement in &agreements {
            let text = |value: Option<f64>| value.map_or("1".into(), |value| format!("{value:.5}"));
            mean.push(text(agreement.map(|agreement| agreement.cosine_mean)));
            least.push(text(agreement.map(|agreement| agreement.cosine_min)));
        }
        table.row(mean);
        table.row(least);
    }
    let mut text = format!(
        "quality on {} {} ({})\n{table}",
        evaluation.example_count, evaluation.data_kind, evaluation.runtime
    );
    for (model, name) in evaluation.models.iter().zip(names) {
        if let Some(deviation) = model.deviation {
            let quarters = deviation.quarters.map(|mean| format!("{mean:.2e}")).join(", ");
            let _ = writeln!(
                text,
                "{name} differs from {} by {:.2e} on average, {:.2e} at most; by quarters of the \
                 examples {quarters}",
                names[0], deviation.mean, deviation.max
            );
        }
    }
    text
}

/// Median and tail times of every model, and how many times as fast as the first each is.
pub(crate) fn latency_table(rows: &[LatencyRow], names: &[String]) -> String {
    let mut out = String::new();
    for row in rows {
        let header = ["model", "p50 ms", "p95 ms", "p99 ms", "per second", "speed"];
        let mut table = Table::new(&header);
        for (name, latency) in names.iter().zip(&row.models) {
            table.row(vec![
                name.clone(),
                milliseconds(latency.p50_ms),
                milliseconds(latency.p95_ms),
                milliseconds(latency.p99_ms),
                format!("{:.1}", latency.throughput),
                format!("{:.2}×", row.models[0].p50_ms / latency.p50_ms),
            ]);
        }
        let threads = if row.threads == 1 { "thread" } else { "threads" };
        out.push_str(&format!(
            "time on {}, {} {threads}, batch {} × {}, runs in turn\n{table}\n",
            row.runtime, row.threads, row.shape.batch, row.shape.length
        ));
    }
    out
}

/// Whether vectors change with the texts beside them.
pub(crate) fn invariance_table(rows: &[RuntimeInvariance], names: &[String]) -> String {
    let mut table =
        Table::new(&["batch invariance", "model", "same bits", "largest change", "least cosine"])
            .left(2);
    for row in rows {
        for (name, invariance) in names.iter().zip(&row.models) {
            table.row(vec![
                row.runtime.clone(),
                name.clone(),
                format!("{}/{}", invariance.bit_equal_count, invariance.text_count),
                format!("{:.1e}", invariance.difference_max),
                format!("{:.7}", invariance.cosine_min),
            ]);
        }
    }
    table.to_string()
}

/// A size beside the original's.
pub(crate) fn size_change(before: u64, after: u64) -> String {
    let factor = before as f64 / after.max(1) as f64;
    format!("{} → {} ({factor:.2}× smaller)", bytes(before), bytes(after))
}
