//! The ledger and the price page, as a test looks at them: what was posted, and what should have been.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use cxmpute_market::catalogue::Catalogue;
use cxmpute_market::ledger::End;
use cxmpute_market::price::{PriceRow, Units, cost};
use cxmpute_store::Db;
use cxmpute_tokens::TokenCounter;
use cxmpute_wire::{RequestId, Tokens};
use serde_json::Value;

use crate::house::models_dir;

/// An open ledger, a price table, and the tokenizer of the tiny model.
#[derive(Clone, Debug)]
pub struct Money {
    db: Db,
    catalogue: Arc<Catalogue>,
    counter: TokenCounter,
}

/// The file of the tiny model below a models directory.
pub const TINY_FILE: &str = "cxm-tiny-q8.gguf";

impl Money {
    /// Opens the database of a gateway that runs the catalogue that ships.
    ///
    /// # Errors
    /// The database, the catalogue or the model file cannot be read.
    pub async fn open(address: &str) -> Result<Self> {
        let catalogue = Catalogue::shipped()?;
        Self::new(Db::open(address).await?, Arc::new(catalogue), &models_dir())
    }

    /// Looks at an open database with the given prices.
    ///
    /// # Errors
    /// The model file cannot be read.
    pub fn new(db: Db, catalogue: Arc<Catalogue>, models: &Path) -> Result<Self> {
        let counter = TokenCounter::from_gguf(&models.join(TINY_FILE))?;
        Ok(Self { db, catalogue, counter })
    }

    /// Tokens of a text.
    ///
    /// # Errors
    /// Never; the signature leaves room for tokenizers that can refuse.
    pub fn count(&self, text: &str) -> Result<u64> {
        Ok(self.counter.count_text(text).0)
    }

    /// Tokens of the templated prompt of a chat request body.
    ///
    /// # Errors
    /// The body is no chat request.
    pub fn prompt_tokens(&self, body: &Value) -> Result<u64> {
        Ok(self.counter.count_prompt(&serde_json::from_value(body.clone())?)?.0)
    }

    /// Tokens of the prompt of a legacy completion.
    ///
    /// # Errors
    /// The tokenizer refuses it.
    pub fn completion_prompt_tokens(&self, prompt: &str) -> Result<u64> {
        Ok(self.counter.count_completion_prompt(prompt)?.0)
    }

    /// What the vectors of these texts cost, in micro-credits.
    ///
    /// # Errors
    /// No such model, or a text longer than its context.
    pub fn embeddings_price(&self, model: &str, texts: &[&str]) -> Result<i64> {
        let entry = self.catalogue.resolve(model).with_context(|| format!("no model {model}"))?;
        let tokens = texts.iter().try_fold(Tokens(0), |sum, text| {
            let count = self.counter.count_embedding_input(text, entry.context_length)?;
            anyhow::Ok(sum.saturating_add(count))
        })?;
        Ok(cost(&entry.price, &Units::embedding(tokens))?.0)
    }

    /// What so many tokens of a model cost, in micro-credits.
    ///
    /// # Errors
    /// No such model.
    pub fn price(&self, model: &str, prompt: u64, completion: u64) -> Result<i64> {
        Ok(cost(&*self.row(model)?, &Units::chat(Tokens(prompt), Tokens(completion)))?.0)
    }

    /// What these units of a model cost, in micro-credits.
    ///
    /// # Errors
    /// No such model.
    pub fn price_of(&self, model: &str, units: &Units) -> Result<i64> {
        Ok(cost(&*self.row(model)?, units)?.0)
    }

    /// The provider's share of a cost.
    ///
    /// # Errors
    /// No such model.
    pub fn share(&self, model: &str, cost: i64) -> Result<i64> {
        Ok(cost * self.row(model)?.share_bp / 10_000)
    }

    fn row(&self, model: &str) -> Result<Arc<PriceRow>> {
        let entry = self.catalogue.resolve(model).with_context(|| format!("no model {model}"))?;
        Ok(Arc::clone(&entry.price))
    }

    /// Transactions of a request that charged its payer: 0 or 1 in a sound ledger.
    ///
    /// # Errors
    /// The store failed.
    pub async fn settlements_of(&self, request: &str) -> Result<usize> {
        let mut charged = std::collections::BTreeMap::<String, i64>::new();
        for posting in self.db.list_postings(&id(request)?).await? {
            if is_payer(&posting.account) {
                *charged.entry(posting.transaction).or_default() -= posting.amount.0;
            }
        }
        Ok(charged.values().filter(|amount| **amount > 0).count())
    }

    /// What a request's payer was charged.
    ///
    /// # Errors
    /// The store failed.
    pub async fn charge_of(&self, request: &str) -> Result<i64> {
        let postings = self.db.list_postings(&id(request)?).await?;
        Ok(-postings
            .iter()
            .filter(|posting| is_payer(&posting.account))
            .map(|posting| posting.amount.0)
            .sum::<i64>())
    }

    /// Whether a request of this user ended by itself as one whole answer, not as a stream.
    ///
    /// # Errors
    /// The store failed, or there is no such request.
    pub async fn is_whole_answer(&self, request: &str, user: &str) -> Result<bool> {
        let row = self.db.generation(&id(request)?, &user.parse()?).await?.context("no such request")?;
        Ok(!row.streamed && row.end == Some(End::Finished))
    }

    /// Generations that run now.
    ///
    /// # Errors
    /// The store failed.
    pub async fn running(&self) -> Result<i64> {
        Ok(self.db.running_requests().await?)
    }

    /// What a request's provider was paid.
    ///
    /// # Errors
    /// The store failed.
    pub async fn reward_of(&self, request: &str) -> Result<i64> {
        let postings = self.db.list_postings(&id(request)?).await?;
        Ok(postings
            .iter()
            .filter(|posting| posting.account.ends_with(":provider_pending"))
            .map(|posting| posting.amount.0)
            .sum())
    }

    /// Every request of the ledger and what it was charged.
    ///
    /// # Errors
    /// The store failed.
    pub async fn charges(&self) -> Result<Vec<(String, i64)>> {
        let rows = self.db.list_charges().await?;
        Ok(rows.into_iter().map(|(id, amount)| (id.to_string(), amount.0)).collect())
    }

    /// Holds that are not resolved.
    ///
    /// # Errors
    /// The store failed.
    pub async fn open_holds(&self) -> Result<i64> {
        Ok(i64::try_from(self.db.check_ledger().await?.open_holds.len())?)
    }

    /// The ledger's own check, as one line; `None` when it explains every credit.
    ///
    /// # Errors
    /// The store failed.
    pub async fn complaint(&self) -> Result<Option<String>> {
        let report = self.db.check_ledger().await?;
        Ok((!report.is_clean()).then(|| format!("{report:?}")))
    }
}

fn is_payer(account: &str) -> bool {
    [":user_available", ":user_held", ":user_promo"].iter().any(|kind| account.ends_with(kind))
}

fn id(request: &str) -> Result<RequestId> {
    request.parse().with_context(|| format!("{request:?} is no request id"))
}
