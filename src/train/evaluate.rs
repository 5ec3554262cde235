//! Losses of a corpus, row by row.

use crate::data::{Batch, Corpus, IGNORE, Window};
use crate::device::Device;
use crate::error::Result;
use crate::graph::Tensor;
use crate::model::{Inputs, LossGraph};
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// A model planned forward only, with its loss.
pub struct Evaluator {
    plan: Plan,
    inputs: Inputs,
    token_losses: Tensor,
}

/// What evaluation found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Predictions that count.
    pub tokens: usize,
    /// Their mean negative log-likelihood, in nats.
    pub loss: f64,
    /// Of a task with right answers: the share of predictions whose likeliest token is the right one.
    pub accuracy: Option<f64>,
}

impl Evaluation {
    /// exp(loss).
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

impl Evaluator {
    /// Plans a loss without dropout.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(graph: LossGraph, device: Arc<dyn Device>) -> Result<Evaluator> {
        let LossGraph { graph, inputs, token_losses, .. } = graph;
        let options = PlanOptions { keep: vec![token_losses], ..Default::default() };
        Ok(Evaluator { plan: Plan::new(graph, device, &options)?, inputs, token_losses })
    }

    /// The plan, whose parameters are to be written.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Evaluates windows of a corpus, as many at a time as the plan has rows. `progress` hears how many are done.
    ///
    /// # Errors
    /// If the corpus has tokens that the model does not know, or the device fails.
    pub fn run(
        &self,
        corpus: &Corpus,
        windows: impl Iterator<Item = Window>,
        progress: impl FnMut(usize),
    ) -> Result<Evaluation> {
        let (mut sum, mut tokens) = (0.0, 0);
        let each = |_: &Window, loss, count| {
            sum += loss;
            tokens += count;
        };
        self.each(corpus, windows, None, each, progress)?;
        Ok(Evaluation { tokens, loss: if tokens == 0 { 0.0 } else { sum / tokens as f64 }, accuracy: None })
    }

    /// The same for each document on its own, of which some may have no window, and so no tokens. Rows that no window
    /// fills hold the heads of `mates`, which do not count; without any, padding.
    ///
    /// # Errors
    /// As [`Evaluator::run`].
    pub fn documents(
        &self,
        corpus: &Corpus,
        windows: impl Iterator<Item = Window>,
        mates: Option<&Corpus>,
        progress: impl FnMut(usize),
    ) -> Result<Vec<Evaluation>> {
        let mut found = vec![Evaluation { tokens: 0, loss: 0.0, accuracy: None }; corpus.len()];
        let each = |window: &Window, loss, count| {
            let document = &mut found[window.document];
            document.loss += loss;
            document.tokens += count;
        };
        self.each(corpus, windows, mates, each, progress)?;
        found.iter_mut().filter(|d| d.tokens > 0).for_each(|d| d.loss /= d.tokens as f64);
        Ok(found)
    }

    /// Tells `each` the sum of every window's losses, and how many they are.
    fn each(
        &self,
        corpus: &Corpus,
        mut windows: impl Iterator<Item = Window>,
        mates: Option<&Corpus>,
        mut each: impl FnMut(&Window, f64, usize),
        mut progress: impl FnMut(usize),
    ) -> Result<()> {
        let (rows, length) = self.inputs.shape(&self.plan);
        let mut done = 0;
        loop {
            let group: Vec<Window> = windows.by_ref().take(rows).collect();
            if group.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::default();
            group.iter().for_each(|window| corpus.append(window, length, &mut batch));
            let mut mates = mates.map(|m| (m, m.validation(length)));
            for _ in group.len()..rows {
                match mates.as_mut().and_then(|(corpus, heads)| Some((corpus, heads.next()?))) {
                    Some((mates, head)) => {
                        mates.append(&Window { counted: head.inputs.end, ..head }, length, &mut batch)
                    }
                    None => corpus.append_nothing(length, &mut batch),
                }
            }
            self.inputs.write(&self.plan, &batch)?;
            self.plan.forward()?;
            let losses = self.plan.read(self.token_losses)?; // (rows, length), 0 where ignored
            for (row, window) in group.iter().enumerate() {
                let row = row * length..(row + 1) * length;
                let counted = batch.targets[row.clone()].iter().filter(|&&t| t != IGNORE).count();
                each(window, losses[row].iter().sum(), counted);
            }
            done += group.len();
            progress(done);
        }
    }
}
