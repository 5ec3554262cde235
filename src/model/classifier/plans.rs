//! Plans of one model for rows of different lengths, on the same parameters.
//!
//! Models that gather words and pool them in one op never look past a row's length: one plan, as long as the longest text, is
//! as fast as any. For the others, products go over the padding too; they have a plan for each of a few lengths, and a batch
//! takes the shortest that holds it. The longest is planned first: the others compute in its memory.

use super::config::ClassifierConfig;
use super::record::{EMBEDDING, Initial, Recorded};
use crate::data::IGNORE;
use crate::device::Device;
use crate::error::Result;
use crate::graph::Tensor;
use crate::plan::{Plan, PlanOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Texts as rows, and their classes; none: unknown.
pub type Rows<'a> = [(&'a [i32], Option<u32>)];

/// A planned model for rows up to a length.
struct Planned {
    plan: Plan,
    /// Without its graph, which the plan has.
    io: Recorded,
}

/// A model's plans.
pub struct Plans {
    config: ClassifierConfig,
    batch: usize,
    /// The optimiser's buffers; `None`: forward only.
    slots: Option<usize>,
    base: usize,
    planned: BTreeMap<usize, Planned>,
    /// The plan that ran last.
    latest: usize,
    /// What is written before a run, kept so that a step allocates nothing of it.
    tokens: Vec<i32>,
    lengths: Vec<i32>,
    targets: Vec<i32>,
}

impl Plans {
    /// Plans for `batch` rows of up to `longest` tokens, more as they come. With an optimiser's number of buffers they can
    /// train; without, nothing is dropped.
    ///
    /// # Errors
    /// If the model cannot be recorded, or the device has too little memory.
    pub fn new(
        config: &ClassifierConfig,
        batch: usize,
        longest: usize,
        slots: Option<usize>,
        device: Arc<dyn Device>,
    ) -> Result<Plans> {
        let mut plans = Plans::empty(config, batch, longest, slots);
        let (options, io, graph) = plans.recorded(plans.base)?;
        let planned = Planned { plan: Plan::new(graph, device, &options)?, io };
        plans.planned.insert(plans.base, planned);
        Ok(plans)
    }

    /// Plans of other sizes that only run forward, on the same parameters.
    ///
    /// # Errors
    /// As [`Plans::new`].
    pub fn beside(&self, batch: usize, longest: usize) -> Result<Plans> {
        let mut plans = Plans::empty(&self.config, batch, longest, None);
        let (options, io, graph) = plans.recorded(plans.base)?;
        let planned = Planned { plan: Plan::sharing(graph, &options, self.plan())?, io };
        plans.planned.insert(plans.base, planned);
        Ok(plans)
    }

    fn empty(config: &ClassifierConfig, batch: usize, longest: usize, slots: Option<usize>) -> Plans {
        let base = bucket(config, longest);
        let (tokens, lengths, targets) = (Vec::new(), vec![0; batch], vec![IGNORE; batch]);
        let (config, planned) = (config.clone(), BTreeMap::new());
        Plans { config, batch, slots, base, planned, latest: base, tokens, lengths, targets }
    }

    fn recorded(&self, length: usize) -> Result<(PlanOptions, Recorded, crate::graph::Graph)> {
        let mut io = self.config.record(self.batch, length, self.slots.is_some())?;
        let graph = std::mem::take(&mut io.graph);
        let options = PlanOptions {
            roots: if self.slots.is_some() { vec![io.loss] } else { Vec::new() },
            keep: [io.loss, io.losses, io.logits].into_iter().chain(io.weights).collect(),
            optimizer_slots: self.slots.unwrap_or(0),
            ..Default::default()
        };
        Ok((options, io, graph))
    }

    /// The plan that owns the parameters, or shares them.
    pub fn plan(&self) -> &Plan {
        &self.planned[&self.base].plan
    }

    /// What the model's tensors hold before training.
    pub fn initial(&self) -> &[(Tensor, Initial)] {
        &self.planned[&self.base].io.initial
    }

    /// The table of vectors; a bag of words has none.
    pub fn embedding(&self) -> Option<Tensor> {
        let graph = self.plan().graph();
        self.initial().iter().map(|(t, _)| *t).find(|&t| graph.name(t) == EMBEDDING)
    }

    /// Rows of a batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The model.
    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    /// Writes at most a batch of rows to the shortest plan that holds them; the batch's other places hold no text. Returns
    /// that plan. `random` is seed and step of what is dropped.
    ///
    /// # Errors
    /// If the device has too little memory for a new plan.
    ///
    /// # Panics
    /// If there are more rows than a batch has.
    pub fn write(&mut self, rows: &Rows, random: (u64, u64)) -> Result<&Plan> {
        assert!(rows.len() <= self.batch, "at most a batch");
        let longest = rows.iter().map(|(row, _)| row.len()).max().unwrap_or(0);
        let own = bucket(&self.config, longest);
        // A fused model loses nothing in a longer plan.
        let length = if own <= self.base && !self.config.model.pads() { self.base } else { own };
        if !self.planned.contains_key(&length) {
            let (options, io, graph) = self.recorded(length)?;
            let planned = Planned { plan: Plan::sharing(graph, &options, self.plan())?, io };
            self.planned.insert(length, planned);
        }
        self.tokens.resize(self.batch * length, 0);
        self.lengths.fill(0);
        self.targets.fill(IGNORE);
        for (i, (row, class)) in rows.iter().enumerate() {
            let (own, behind) = self.tokens[i * length..][..length].split_at_mut(row.len());
            own.copy_from_slice(row);
            behind.fill(self.config.pad_row as i32);
            self.lengths[i] = self.config.seen(row.len(), longest, length) as i32;
            self.targets[i] = class.map_or(IGNORE, |c| c as i32);
        }
        self.latest = length;
        let Planned { plan, io } = &self.planned[&length];
        plan.write_indices(io.tokens, &self.tokens)?;
        plan.write_indices(io.lengths, &self.lengths)?;
        plan.write_indices(io.targets, &self.targets)?;
        if let Some(t) = io.random {
            let (seed, step) = random;
            plan.write_indices(t, &[seed as i32, (seed >> 32) as i32, step as i32])?;
        }
        Ok(plan)
    }

    fn latest(&self) -> &Planned {
        &self.planned[&self.latest]
    }

    /// The mean loss of the rows that were last run.
    ///
    /// # Errors
    /// If the device fails.
    pub fn loss(&self) -> Result<f64> {
        let Planned { plan, io } = self.latest();
        Ok(plan.read(io.loss)?[0])
    }

    /// Each row's loss.
    ///
    /// # Errors
    /// If the device fails.
    pub fn losses(&self) -> Result<Vec<f64>> {
        let Planned { plan, io } = self.latest();
        plan.read(io.losses)
    }

    /// Each row's probabilities of the classes, one row after another, those of empty places included.
    ///
    /// # Errors
    /// If the device fails.
    pub fn probabilities(&self) -> Result<Vec<f64>> {
        let Planned { plan, io } = self.latest();
        let logits = plan.read(io.logits)?;
        if self.config.is_binary() {
            return Ok(logits.iter().flat_map(|z| [1.0 / (1.0 + z.exp()), 1.0 / (1.0 + (-z).exp())]).collect());
        }
        let of_row = |row: &[f64]| {
            let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let terms: Vec<f64> = row.iter().map(|z| (z - highest).exp()).collect();
            let sum: f64 = terms.iter().sum();
            terms.into_iter().map(move |t| t / sum)
        };
        Ok(logits.chunks(self.config.labels.len()).flat_map(of_row).collect())
    }

    /// `head-attention`: each row's weights, heads down and places across, (B,h,T) and T.
    ///
    /// # Errors
    /// If the device fails.
    pub fn weights(&self) -> Result<Option<(Vec<f64>, usize)>> {
        let Planned { plan, io } = self.latest();
        io.weights.map(|t| Ok((plan.read(t)?, self.latest))).transpose()
    }
}

/// The length of the plan that a row of this length runs in.
fn bucket(config: &ClassifierConfig, length: usize) -> usize {
    if config.pools_features() && config.max_length > 0 {
        // The last layer has a weight for each place.
        return config.max_length;
    }
    let steps = if config.model.pads() { [8, 16, 32, 64] } else { [64; 4] };
    let step = match length {
        0..=64 => steps[0],
        65..=128 => steps[1],
        129..=512 => steps[2],
        // An eighth more at most.
        _ => steps[3].max(length.next_power_of_two() / 16),
    };
    let length = length.max(1).next_multiple_of(step);
    if config.max_length > 0 { length.min(config.max_length) } else { length }
}
