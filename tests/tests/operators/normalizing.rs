//! Normalizations over channels, groups, rows and neighbours.

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let parameters = |shape: &[usize], count: usize| {
        vec![("x", f32s(shape)), ("s", f32s(&[count])), ("b", f32s(&[count]))]
    };
    for shape in [&[2, 4, 7, 5][..], &[1, 6, 33], &[2, 2, 3, 4, 5]] {
        let channels = shape[1];
        let feeds = parameters(shape, channels);
        let text = "y = InstanceNormalization(x, s, b, epsilon=0.01)";
        cases.push(case(text, feeds).within(1e-5));
        for groups in [1, 2, channels] {
            let feeds = parameters(shape, channels);
            let text = format!("y = GroupNormalization(x, s, b, num_groups={groups})");
            cases.push(case(text, feeds).opset(21).within(1e-5));
            // Scale and bias by group, as before opset 21.
            let feeds = parameters(shape, groups);
            let text = format!("y = GroupNormalization(x, s, b, num_groups={groups})");
            cases.push(case(text, feeds).opset(18).within(1e-5));
        }
        let feeds = || vec![("x", f32s(shape))];
        for p in [1, 2] {
            for axis in [0, 1, -1] {
                let text = format!("y = LpNormalization(x, axis={axis}, p={p})");
                cases.push(case(text, feeds()));
            }
        }
    }
    for axes in ["", ", axes=2,3", ", axes=1", ", axes=0,1,2,3", ", axes=-1"] {
        let text = format!("y = MeanVarianceNormalization(x{axes})");
        cases.push(case(text, vec![("x", f32s(&[2, 4, 7, 5]))]).within(1e-5));
    }
    for settings in ["size=3", "size=1, alpha=0.01, beta=0.5, bias=2.0", "size=5, alpha=0.1"] {
        let text = format!("y = LRN(x, {settings})");
        cases.push(case(text, vec![("x", f32s(&[2, 6, 5, 7]))]));
    }
    for axis in [-1, 1, 2] {
        let row = &[3, 4, 24][if axis == -1 { 2 } else { axis as usize }..];
        let feeds = || vec![("x", f32s(&[2, 3, 4, 24][1..])), ("s", f32s(row))];
        let at = if axis == -1 { -1 } else { axis };
        let text = format!("y = RMSNormalization(x, s, axis={at})");
        cases.push(case(text, feeds()).opset(23).within(4e-6));
        let mut feeds = feeds();
        feeds.push(("b", f32s(row)));
        let text = format!("y, m, i = LayerNormalization(x, s, b, axis={at})");
        cases.push(case(text, feeds).within(1e-5));
    }
    let batches = |shape: &[usize]| {
        let mut feeds = parameters(shape, shape[1]);
        feeds.extend([("m", f32s(&shape[1..2])), ("v", positive(&shape[1..2]))]);
        feeds
    };
    for shape in [&[3, 4, 5, 6][..], &[7, 19], &[2, 3, 9], &[2, 2, 3, 4, 2]] {
        let text = "y = BatchNormalization(x, s, b, m, v, epsilon=0.01)";
        cases.push(case(text, batches(shape)).within(1e-5).constant(&["m", "v"]));
        let frozen = case(text, batches(shape)).within(1e-5);
        cases.push(frozen.constant(&["s", "b", "m", "v"]));
    }
    let statistics = batches(&[3, 4, 5, 6]);
    let text = "y, p, q = BatchNormalization(x, s, b, m, v, training_mode=1, momentum=0.8)";
    cases.push(case(text, statistics).within(1e-5));
    cases
}
