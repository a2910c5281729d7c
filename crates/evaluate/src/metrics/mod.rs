//! Quality, example by example, so that differences between models can be paired.

mod classification;
mod rank_correlation;
mod retrieval;

pub use classification::{is_among_best, macro_f1};
pub use rank_correlation::{spearman, spearman_interval};
pub use retrieval::{Ranking, mrr, ndcg, rank, recall};

/// A metric over a ranking of documents.
#[derive(Clone, Copy)]
pub struct RankingMetric {
    pub name: &'static str,
    pub value: fn(&Ranking, &[(usize, f64)]) -> f64,
}

/// Metrics of retrieval; the first is the one that budgets bound.
pub const RETRIEVAL_METRICS: &[RankingMetric] = &[
    RankingMetric { name: "nDCG@10", value: |ranking, relevant| ndcg(ranking, relevant, 10) },
    RankingMetric { name: "MRR@10", value: |ranking, relevant| mrr(ranking, relevant, 10) },
    RankingMetric { name: "recall@100", value: |ranking, relevant| recall(ranking, relevant, 100) },
];

/// A metric over the scores of one image: whether its class is among the best so many.
#[derive(Clone, Copy)]
pub struct ClassMetric {
    pub name: &'static str,
    pub count: usize,
}

/// Metrics of classification; the first is the one that budgets bound.
pub const CLASS_METRICS: &[ClassMetric] =
    &[ClassMetric { name: "top-1", count: 1 }, ClassMetric { name: "top-5", count: 5 }];
