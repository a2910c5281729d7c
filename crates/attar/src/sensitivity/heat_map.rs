//! Sensitivities as a picture: a row for each tensor or group, a column for each sparsity or number of bits.

use attar_compress::{Estimate, Level, LevelSensitivity, Sensitivity, levels};

const ROW: usize = 20;
const CELL: usize = 54;
const LABEL: usize = 400;
const TOP: usize = 76;
const GAP: usize = 24;
/// The errors at the ends of the scale of colours, which is logarithmic.
const LEAST: f64 = 0.01;
const MOST: f64 = 1.0;

/// The stops of the scale, from little to much: red, green, blue.
const COLOURS: [[f64; 3]; 4] =
    [[247.0, 251.0, 255.0], [158.0, 202.0, 225.0], [49.0, 130.0, 189.0], [8.0, 48.0, 107.0]];

/// An SVG: how much of each product's output is lost, predicted, and beside it, where it was
/// measured, how much of the model's output.
pub fn heat_map(found: &Sensitivity, title: &str) -> String {
    let rows = rows(found);
    let shown = levels(rows.iter().map(|(_, levels)| *levels));
    let has_output = |level: &&Level| {
        let found = rows.iter().flat_map(|(_, levels)| levels.iter());
        found.into_iter().any(|found| found.level == **level && found.output_error.is_some())
    };
    let measured: Vec<Level> = shown.iter().filter(has_output).copied().collect();
    let second = LABEL + shown.len() * CELL + GAP;
    let width =
        if measured.is_empty() { second - GAP } else { second + measured.len() * CELL } + 16;
    let height = TOP + rows.len() * ROW + 56;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    svg.push_str(&text(12, 22, "start", "font-size=\"15\" font-weight=\"bold\"", title));
    svg.push_str(&text(LABEL, 44, "start", "", "lost of the product's output"));
    if !measured.is_empty() {
        svg.push_str(&text(second, 44, "start", "", "of the model's output"));
    }
    for (column, level) in shown.iter().enumerate() {
        let heading = level_title(*level);
        svg.push_str(&text(LABEL + column * CELL + CELL / 2, 64, "middle", "", &heading));
    }
    for (column, level) in measured.iter().enumerate() {
        let heading = level_title(*level);
        svg.push_str(&text(second + column * CELL + CELL / 2, 64, "middle", "", &heading));
    }
    for (row, (name, levels)) in rows.iter().enumerate() {
        let y = TOP + row * ROW;
        svg.push_str(&text(LABEL - 8, y + 14, "end", "", &shortened(name)));
        let found = |level: &Level| levels.iter().find(|found| found.level == *level);
        for (column, level) in shown.iter().enumerate() {
            if let Some(found) = found(level) {
                svg.push_str(&cell(LABEL + column * CELL, y, &found.error));
            }
        }
        for (column, level) in measured.iter().enumerate() {
            if let Some(error) = found(level).and_then(|found| found.output_error.as_ref()) {
                svg.push_str(&cell(second + column * CELL, y, error));
            }
        }
    }
    svg.push_str(&legend(TOP + rows.len() * ROW + 16));
    svg.push_str("</svg>\n");
    svg
}

/// Tensors, and groups that products read, with their names.
fn rows(found: &Sensitivity) -> Vec<(String, &[LevelSensitivity])> {
    let tensors = found.tensors.iter().map(|tensor| (tensor.name.clone(), &tensor.levels[..]));
    let groups = found.groups.iter().map(|group| (group.title(), &group.levels[..]));
    tensors.chain(groups.filter(|(_, levels)| !levels.is_empty())).collect()
}

fn cell(x: usize, y: usize, error: &Estimate) -> String {
    let (fill, ink) = colours(error.value);
    let (width, height) = (CELL - 1, ROW - 1);
    let tip =
        format!("{} ({} to {})", percent(error.value), percent(error.low), percent(error.high));
    let label =
        text(x + CELL / 2, y + 14, "middle", &format!("fill=\"{ink}\""), &percent(error.value));
    format!(
        "<g><title>{tip}</title><rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" \
         fill=\"{fill}\"/>\n{label}</g>\n"
    )
}

/// The colour of an error, and one that is read on it.
fn colours(error: f64) -> (String, &'static str) {
    let share = (error.max(LEAST) / LEAST).ln() / (MOST / LEAST).ln();
    let at = share.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let first = (at.floor() as usize).min(COLOURS.len() - 2);
    let part = at - first as f64;
    let mix = |channel: usize| {
        let (a, b) = (COLOURS[first][channel], COLOURS[first + 1][channel]);
        (a + (b - a) * part).round() as u8
    };
    let ink = if share > 0.62 { "#ffffff" } else { "#222222" };
    (format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2)), ink)
}

fn legend(y: usize) -> String {
    let mut legend = String::new();
    for (step, error) in [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0].into_iter().enumerate() {
        let estimate = Estimate { value: error, low: error, high: error };
        legend.push_str(&cell(LABEL + step * CELL, y, &estimate));
    }
    legend.push_str(&text(LABEL - 8, y + 14, "end", "", "relative error"));
    legend
}

fn level_title(level: Level) -> String {
    match level {
        Level::Sparsity(part) => percent(part),
        Level::Bits(bits) => format!("{bits} bits"),
    }
}

fn percent(share: f64) -> String {
    let value = 100.0 * share;
    if value < 9.95 { format!("{value:.1} %") } else { format!("{value:.0} %") }
}

/// The end of a long name says more than its beginning.
fn shortened(name: &str) -> String {
    const LETTERS: usize = 58;
    let count = name.chars().count();
    if count <= LETTERS {
        return name.into();
    }
    let end: String = name.chars().skip(count - LETTERS).collect();
    format!("…{end}")
}

fn text(x: usize, y: usize, anchor: &str, attributes: &str, content: &str) -> String {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" {attributes}>{content}</text>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_compress::{ChannelKind, GroupSensitivity, TensorSensitivity};

    fn found(name: &str, output: Option<f64>) -> Sensitivity {
        let estimate = |value| Estimate { value, low: 0.9 * value, high: 1.1 * value };
        let level = |(sparsity, error)| LevelSensitivity {
            level: Level::Sparsity(sparsity),
            error: estimate(error),
            output_error: output.map(estimate),
            metric: None,
        };
        let tensor = TensorSensitivity {
            name: name.into(),
            node: "/layer.0/MatMul".into(),
            op_type: "MatMul".into(),
            block: "layer/0".into(),
            element_count: 16,
            levels: [(0.5, 0.123), (0.9, 0.8)].into_iter().map(level).collect(),
        };
        Sensitivity { tensors: vec![tensor.clone(), tensor], groups: Vec::new() }
    }

    #[test]
    fn every_cell_has_its_value_and_its_interval() {
        let svg = heat_map(&found("w<1>", None), "a & b");
        assert_eq!(svg.matches("<title>12 % (11 % to 14 %)</title>").count(), 2);
        assert!(svg.contains("w&lt;1&gt;") && svg.contains("a &amp; b"));
        assert!(!svg.contains("of the model's output"));
        assert!(heat_map(&found("w", Some(0.02)), "").contains("of the model's output"));
        assert_eq!(svg.matches("<g>").count(), svg.matches("</g>").count());
    }

    #[test]
    fn groups_that_products_read_have_rows() {
        let Sensitivity { tensors, .. } = found("w", None);
        let group = |name: &str, levels: &[LevelSensitivity]| GroupSensitivity {
            name: name.into(),
            kind: ChannelKind::HeadDims,
            block: String::new(),
            channel_count: 8,
            levels: levels.to_vec(),
        };
        let groups = vec![group("/a", &tensors[0].levels), group("/b", &[])];
        let svg = heat_map(&Sensitivity { tensors: Vec::new(), groups }, "");
        assert!(svg.contains("/a (head-dims)") && !svg.contains("/b"));
        assert_eq!(svg.matches("<title>12 % (11 % to 14 %)</title>").count(), 1);
    }

    #[test]
    fn more_error_is_darker() {
        let light = |error: f64| {
            let (fill, _) = colours(error);
            u32::from_str_radix(&fill[1..3], 16).unwrap()
        };
        let found: Vec<u32> = [0.001, 0.02, 0.1, 0.5, 2.0].map(light).to_vec();
        assert!(found.windows(2).all(|pair| pair[0] > pair[1]), "{found:?}");
    }
}
