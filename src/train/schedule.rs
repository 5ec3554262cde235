//! The learning rate as a function of the step.
//!
//! Over the warm-up it rises in a straight line from lr/W to lr. Then, with s steps since and S of them in all:
//! `constant` stays; `linear` falls to min + (lr − min)·(1 − s/S); `cosine` to min + (lr − min)·(1 + cos(π·s/S))/2
//! (Loshchilov, Hutter, "SGDR", ICLR 2017, equation 5, without restarts); `step` multiplies with γ after every `step_size`
//! (torch's StepLR); `plateau` multiplies with γ where the validation loss has stopped falling (torch's
//! ReduceLROnPlateau), the only one that needs more than the step: [`Watch`] counts. None goes below the smallest rate.

use super::Watch;
use std::f64::consts::PI;

/// A schedule's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// The same rate throughout.
    #[default]
    Constant,
    /// In a straight line to the smallest rate.
    Linear,
    /// In half a cosine to the smallest rate.
    Cosine,
    /// By a factor after every so many steps.
    Step,
    /// By a factor where validation no longer improves.
    Plateau,
}

impl ScheduleName {
    /// As `--schedule` takes it.
    pub fn name(self) -> &'static str {
        match self {
            ScheduleName::Constant => "constant",
            ScheduleName::Linear => "linear",
            ScheduleName::Cosine => "cosine",
            ScheduleName::Step => "step",
            ScheduleName::Plateau => "plateau",
        }
    }
}

/// A schedule's settings. Those that it does not have are as by default.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    /// Which.
    #[serde(rename = "schedule")]
    pub name: ScheduleName,
    /// Steps over which the rate rises.
    pub warmup: u64,
    /// What the rate does not fall below.
    pub min_lr: f64,
    /// `linear`, `cosine`: the step, warm-up included, at which the smallest rate is reached; 0: not
    /// settled yet.
    pub schedule_steps: u64,
    /// `step`: steps between multiplications.
    pub step_size: u64,
    /// `step`, `plateau`: the factor.
    pub gamma: f64,
    /// `plateau`: evaluations without improvement that are borne; one more and the rate falls.
    pub patience: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        let name = ScheduleName::Constant;
        Schedule { name, warmup: 0, min_lr: 0.0, schedule_steps: 0, step_size: 0, gamma: 0.1, patience: 10 }
    }
}

impl Schedule {
    /// The rate of a step, counted from 0, where `lr` is the highest.
    pub fn rate(&self, lr: f64, step: u64, watch: &Watch) -> f64 {
        if step < self.warmup {
            return lr * (step + 1) as f64 / self.warmup as f64;
        }
        let since = step - self.warmup;
        let part = since as f64 / self.schedule_steps.saturating_sub(self.warmup).max(1) as f64;
        let between = |share: f64| self.min_lr + (lr - self.min_lr) * share;
        let fallen = |times: u64| (lr * self.gamma.powf(times as f64)).max(self.min_lr);
        match self.name {
            ScheduleName::Constant => lr,
            ScheduleName::Linear => between((1.0 - part).max(0.0)),
            ScheduleName::Cosine => between((1.0 + (PI * part.min(1.0)).cos()) / 2.0),
            ScheduleName::Step => fallen(since / self.step_size.max(1)),
            ScheduleName::Plateau => fallen(watch.reductions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, steps: &[u64]) -> Vec<f64> {
        steps.iter().map(|&s| (schedule.rate(8.0, s, &Watch::default()) * 1e12).round() / 1e12).collect()
    }

    /// Rates worked out by hand: 2 steps of warm-up, then 8 more.
    #[test]
    fn rates_as_worked_out_by_hand() {
        let of =
            |name| Schedule { name, warmup: 2, schedule_steps: 10, step_size: 3, gamma: 0.5, ..Default::default() };
        assert_eq!(rates(of(ScheduleName::Constant), &[0, 1, 2, 99]), [4.0, 8.0, 8.0, 8.0]);
        assert_eq!(
            rates(of(ScheduleName::Linear), &[0, 1, 2, 3, 6, 9, 10, 99]),
            [4.0, 8.0, 8.0, 7.0, 4.0, 1.0, 0.0, 0.0]
        );
        assert_eq!(
            rates(of(ScheduleName::Cosine), &[1, 2, 4, 6, 10, 99]),
            [8.0, 8.0, 6.82842712474619, 4.0, 0.0, 0.0].map(|x: f64| (x * 1e12).round() / 1e12)
        );
        assert_eq!(rates(of(ScheduleName::Step), &[2, 4, 5, 7, 8]), [8.0, 8.0, 4.0, 4.0, 2.0]);
        let floor = |name| Schedule { min_lr: 3.0, ..of(name) };
        assert_eq!(rates(floor(ScheduleName::Linear), &[2, 6, 10, 11]), [8.0, 5.5, 3.0, 3.0]);
        assert_eq!(rates(floor(ScheduleName::Cosine), &[2, 6, 10, 11]), [8.0, 5.5, 3.0, 3.0]);
        assert_eq!(rates(floor(ScheduleName::Step), &[2, 5, 8, 99]), [8.0, 4.0, 3.0, 3.0]);
    }

    #[test]
    fn a_plateau_lowers_the_rate() {
        let schedule =
            Schedule { name: ScheduleName::Plateau, gamma: 0.5, patience: 1, min_lr: 1.5, ..Default::default() };
        let mut watch = Watch::default();
        let mut rates = Vec::new();
        // The second is better by too little to count; with the third, one more than patience bears.
        for (i, loss) in [2.0, 1.99999, 2.0, 1.0, 1.1, 1.1, f64::NAN, 1.1].into_iter().enumerate() {
            watch.see(i as u64, loss, schedule.patience);
            rates.push(schedule.rate(8.0, 0, &watch));
        }
        assert_eq!(rates, [8.0, 8.0, 4.0, 4.0, 4.0, 2.0, 2.0, 1.5]);
    }
}
