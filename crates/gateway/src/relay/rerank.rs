//! Documents ordered by how near their vectors are to the vector of a query: embeddings as an errand, printed otherwise.

use bytes::Bytes;
use cxmpute_market::price::Units;
use cxmpute_store::Settled;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::openai::{RerankResponse, RerankResult, RerankText};

use super::embed::Embedding;
use super::errand::{Errand, Misread, Printed, Ticket};
use super::usage::usage;
use super::vectors::Vectors;
use crate::app::App;
use crate::error::ApiResult;

/// A query and the documents to order. The query is the first text.
#[derive(Debug)]
pub struct Rerank {
    /// Query and documents as texts to embed.
    pub texts: Embedding,
    /// How many documents are wanted.
    pub top: usize,
    /// Whether the texts are wanted, too.
    pub with_texts: bool,
}

impl Errand for Rerank {
    type Answer = Vectors;

    fn path(&self) -> WorkPath {
        self.texts.path()
    }

    fn bound(&self) -> Units {
        self.texts.bound()
    }

    fn count(&self) -> Units {
        self.texts.count()
    }

    fn is_plausible(&self, bound: &Units) -> bool {
        self.texts.is_plausible(bound)
    }

    fn check(&self, exact: &Units) -> ApiResult<()> {
        self.texts.check(exact).map_err(|error| error.param("documents"))
    }

    fn node_body(&self, ticket: &Ticket) -> ApiResult<Bytes> {
        self.texts.node_body(ticket)
    }

    fn max_bytes(&self) -> u64 {
        self.texts.max_bytes()
    }

    async fn read(&self, app: &App, body: Vec<u8>) -> Result<Vectors, Misread> {
        self.texts.read(app, body).await
    }

    fn claimed(&self, counted: &Units, answer: &Vectors) -> Option<Units> {
        self.texts.claimed(counted, answer)
    }

    fn print(&self, ticket: &Ticket, answer: Vectors, units: &Units, settled: &Settled) -> Printed {
        let text = |index: usize| {
            let text = self.texts.texts.get(index + 1)?.clone();
            self.with_texts.then_some(RerankText { text })
        };
        let results = order(&answer.vectors).into_iter().take(self.top).map(|(index, score)| RerankResult {
            index: index as u64,
            relevance_score: score,
            document: text(index),
        });
        Printed::json(&RerankResponse {
            id: ticket.request_id.as_str().to_owned(),
            model: ticket.model_name.clone(),
            results: results.collect(),
            usage: usage(units, &ticket.model.price, settled, false),
        })
    }
}

/// Positions of the vectors behind the first one, the nearest to it first, each with its nearness: the cosine, moved from
/// -1..1 to 0..1.
fn order(vectors: &[Vec<f32>]) -> Vec<(usize, f64)> {
    let Some((query, documents)) = vectors.split_first() else { return Vec::new() };
    let mut scored: Vec<(usize, f64)> =
        documents.iter().map(|vector| f64::midpoint(cosine(query, vector), 1.0)).enumerate().collect();
    // Equals stay in their order.
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    scored
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
    let size = (dot(a, a) * dot(b, b)).sqrt();
    if size > 0.0 { (dot(a, b) / size).clamp(-1.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_comes_first_and_a_zero_vector_is_neither_near_nor_far() {
        let vectors =
            [vec![1.0, 0.0], vec![0.0, 2.0], vec![3.0, 0.0], vec![-1.0, 0.0], vec![0.0, 0.0], vec![1.0, 1.0]];
        let ordered = order(&vectors);
        let places: Vec<usize> = ordered.iter().map(|(index, _)| *index).collect();
        assert_eq!(places, [1, 4, 0, 3, 2]);
        assert!((ordered[0].1 - 1.0).abs() < 1e-9 && ordered[4].1.abs() < 1e-9);
        assert!((ordered[2].1 - 0.5).abs() < 1e-9);
        assert_eq!(order(&[]), []);
    }
}
