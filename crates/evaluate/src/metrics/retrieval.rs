//! nDCG, MRR and recall of exact search by inner product.
//!
//! nDCG takes the grade itself as the gain and log₂(rank + 1) as the discount, as `trec_eval` does
//! (Järvelin & Kekäläinen, 2002).

use attar_graph::Node;
use attar_ops::{Pool, Run, operator};
use attar_tensor::Tensor;

use crate::Embeddings;

/// Documents best first.
pub type Ranking = Vec<usize>;

/// Queries whose scores are held at once.
const QUERIES_AT_ONCE: usize = 256;

/// The best `count` documents of every query; of equal scores the first document is better.
pub fn rank(queries: &Embeddings, documents: &Embeddings, count: usize) -> Vec<Ranking> {
    let node = Node::new("Gemm", "search", &["q", "d"], &["s"]).with_attribute("transB", 1_i64);
    let matrix = Tensor::new(&[documents.count(), documents.dimension], &documents.values);
    let gemm = operator("", "Gemm").expect("Gemm is in the table of operators");
    let kernel = gemm.kernel(&node, &[None, Some(&matrix)]).expect("documents are a matrix");
    let pool = Pool::default();
    let mut rankings = Vec::with_capacity(queries.count());
    for block in queries.values.chunks(QUERIES_AT_ONCE * queries.dimension.max(1)) {
        let rows = block.len() / queries.dimension.max(1);
        let inputs = vec![Some(Tensor::new(&[rows, queries.dimension], block)), None];
        let mut run = Run { inputs, pool: &pool };
        let scores = kernel.run(&mut run).expect("queries and documents have one dimension");
        let scores = scores[0].values::<f32>();
        rankings.extend(scores.chunks_exact(documents.count()).map(|row| best(row, count)));
    }
    rankings
}

fn best(scores: &[f32], count: usize) -> Ranking {
    let order = |&a: &usize, &b: &usize| scores[b].total_cmp(&scores[a]).then(a.cmp(&b));
    let mut indices: Vec<usize> = (0..scores.len()).collect();
    if count < indices.len() {
        indices.select_nth_unstable_by(count, order);
        indices.truncate(count);
    }
    indices.sort_unstable_by(order);
    indices
}

fn grade(relevant: &[(usize, f64)], document: usize) -> f64 {
    relevant.iter().find(|(index, _)| *index == document).map_or(0.0, |(_, grade)| *grade)
}

/// Discounted gain of the first `count` over that of the best order.
pub fn ndcg(ranking: &Ranking, relevant: &[(usize, f64)], count: usize) -> f64 {
    let discounted = |gains: &mut dyn Iterator<Item = f64>| -> f64 {
        gains.take(count).enumerate().map(|(i, gain)| gain / (i as f64 + 2.0).log2()).sum()
    };
    let mut ideal: Vec<f64> = relevant.iter().map(|(_, grade)| *grade).collect();
    ideal.sort_by(|a, b| b.total_cmp(a));
    let ideal = discounted(&mut ideal.into_iter());
    let found = discounted(&mut ranking.iter().map(|&document| grade(relevant, document)));
    if ideal == 0.0 { 0.0 } else { found / ideal }
}

/// One over the rank of the first relevant document among the first `count`; 0 if there is none.
pub fn mrr(ranking: &Ranking, relevant: &[(usize, f64)], count: usize) -> f64 {
    let is_relevant = |&document: &usize| grade(relevant, document) > 0.0;
    let first = ranking.iter().take(count).position(is_relevant);
    first.map_or(0.0, |index| 1.0 / (index + 1) as f64)
}

/// The part of the relevant documents among the first `count`.
pub fn recall(ranking: &Ranking, relevant: &[(usize, f64)], count: usize) -> f64 {
    let is_relevant = |document: &&usize| grade(relevant, **document) > 0.0;
    let found = ranking.iter().take(count).filter(is_relevant).count();
    found as f64 / relevant.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_a_worked_ranking() {
        let (ranking, relevant) = (vec![7, 3, 9], [(3, 2.0), (9, 1.0), (4, 1.0)]);
        // Gains 0, 2, 1 against 2, 1, 1 at discounts 1, log₂3, 2.
        let expected = (2.0 / 3_f64.log2() + 0.5) / (2.0 + 1.0 / 3_f64.log2() + 0.5);
        assert!((ndcg(&ranking, &relevant, 10) - expected).abs() < 1e-12);
        assert_eq!(mrr(&ranking, &relevant, 10), 0.5);
        assert!((recall(&ranking, &relevant, 100) - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(mrr(&ranking, &relevant, 1), 0.0);
    }

    #[test]
    fn search_is_exact_and_ties_keep_order() {
        let documents = Embeddings { dimension: 2, values: vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.0] };
        let queries = Embeddings { dimension: 2, values: vec![1.0, 0.1, 0.0, 1.0] };
        assert_eq!(rank(&queries, &documents, 2), [vec![0, 2], vec![1, 0]]);
    }
}
