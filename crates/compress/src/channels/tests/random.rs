//! Random small graphs, the same in every run: whatever groups are found in them can be cut.

use super::graphs::Graphs;
use super::{case, check_groups};

/// How many graphs are drawn.
const GRAPHS: u64 = 240;

#[test]
fn any_group_of_any_graph_can_be_cut() {
    let wanted: Option<u64> = std::env::var("ATTAR_SEED").ok().map(|seed| seed.parse().unwrap());
    let (mut group_count, mut dead_count, mut without) = (0, 0, 0);
    for seed in (0..GRAPHS).filter(|seed| wanted.is_none_or(|wanted| wanted == *seed)) {
        let text = Graphs::new(seed).draw();
        let what = format!("seed {seed}\n{text}");
        let case = case(21, &text);
        let (found, dead) = check_groups(&what, &case.model, &case.feeds, &[0.0, 0.6]);
        group_count += found.len();
        dead_count += dead.len();
        without += usize::from(found.is_empty());
    }
    // Most graphs have channels, and most of these have an effect: else nothing would be compared.
    assert!(wanted.is_some() || without * 4 < GRAPHS as usize, "{without} graphs without groups");
    assert!(dead_count * 4 <= group_count, "{dead_count} of {group_count} without effect");
}
