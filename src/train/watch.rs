//! What evaluations have shown so far: for the best checkpoint, early stopping and schedules that wait for a plateau.

/// By how much, relatively, a loss must fall for the plateau schedule to call it better: as torch's ReduceLROnPlateau.
const THRESHOLD: f64 = 1e-4;

/// State that goes on over a resumed run. Only evaluations that `--eval-every` asks for count, so that a run in parts
/// sees what it would see in one.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct Watch {
    /// The lowest validation loss.
    pub best: Option<f64>,
    /// After how many steps it was found.
    pub best_step: u64,
    /// Evaluations since.
    pub since_best: u64,
    /// How often the plateau schedule has lowered the rate.
    pub reductions: u64,
    /// The loss that the plateau schedule compares with.
    plateau_best: Option<f64>,
    /// Evaluations in a row that were no better.
    plateau_since: u64,
}

impl Watch {
    /// An evaluation after `step` steps; whether it is the best so far. With more than `patience` in a row that are not
    /// better, the plateau schedule lowers the rate.
    pub fn see(&mut self, step: u64, loss: f64, patience: u64) -> bool {
        if self.plateau_best.is_none_or(|best| loss < best * (1.0 - THRESHOLD)) {
            self.plateau_best = Some(loss).filter(|l| l.is_finite());
            self.plateau_since = 0;
        } else {
            self.plateau_since += 1;
            if self.plateau_since > patience {
                self.reductions += 1;
                self.plateau_since = 0;
            }
        }
        let better = loss.is_finite() && self.best.is_none_or(|best| loss < best);
        if better {
            (self.best, self.best_step, self.since_best) = (Some(loss), step, 0);
        } else {
            self.since_best += 1;
        }
        better
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_evaluations_since_the_best() {
        let mut watch = Watch::default();
        let seen: Vec<(bool, u64)> = [f64::NAN, 3.0, 2.0, 2.0, f64::NAN, 1.0]
            .into_iter()
            .enumerate()
            .map(|(i, loss)| (watch.see(10 * i as u64, loss, 0), watch.since_best))
            .collect();
        assert_eq!(seen, [(false, 1), (true, 0), (true, 0), (false, 1), (false, 2), (true, 0)]);
        assert_eq!((watch.best, watch.best_step), (Some(1.0), 50));
    }
}
