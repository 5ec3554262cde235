//! How right a classifier is: counts of true and predicted classes, and the usual figures from them.

/// How often each class was taken for which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// Row: the true class; column: the predicted one.
    counts: Vec<u64>,
}

impl Confusion {
    /// Of so many classes, without examples.
    pub fn new(classes: usize) -> Confusion {
        Confusion { classes, counts: vec![0; classes * classes] }
    }

    /// Counts an example.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn add(&mut self, truth: usize, predicted: usize) {
        self.add_times(truth, predicted, 1);
    }

    /// Counts an example so many times.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn add_times(&mut self, truth: usize, predicted: usize, times: u64) {
        assert!(truth < self.classes && predicted < self.classes, "a class");
        self.counts[truth * self.classes + predicted] += times;
    }

    /// How many of a class were taken for another, or itself.
    pub fn count(&self, truth: usize, predicted: usize) -> u64 {
        self.counts[truth * self.classes + predicted]
    }

    /// Classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Examples in all.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn right(&self, class: usize) -> f64 {
        self.count(class, class) as f64
    }

    /// Part of the examples that is right; 0 of none.
    pub fn accuracy(&self) -> f64 {
        ratio((0..self.classes).map(|c| self.right(c)).sum(), self.total() as f64)
    }

    /// Of those taken for a class, the part that is of it; 0 where none was, as scikit-learn has it.
    pub fn precision(&self, class: usize) -> f64 {
        ratio(self.right(class), (0..self.classes).map(|truth| self.count(truth, class)).sum::<u64>() as f64)
    }

    /// Of a class, the part that was taken for it; 0 where there is none of it.
    pub fn recall(&self, class: usize) -> f64 {
        ratio(self.right(class), (0..self.classes).map(|c| self.count(class, c)).sum::<u64>() as f64)
    }

    /// The harmonic mean of both: 2·right / (taken for it + of it); 0 of nothing.
    pub fn f1(&self, class: usize) -> f64 {
        let (precision, recall) = (self.precision(class), self.recall(class));
        ratio(2.0 * precision * recall, precision + recall)
    }

    /// Of two classes that of the second; of more the mean over the classes.
    pub fn headline(&self, of: fn(&Confusion, usize) -> f64) -> f64 {
        if self.classes == 2 { of(self, 1) } else { self.macro_mean(of) }
    }

    /// The mean of a figure over the classes that occur or are predicted, as scikit-learn takes it.
    pub fn macro_mean(&self, of: fn(&Confusion, usize) -> f64) -> f64 {
        let seen = |&c: &usize| (0..self.classes).any(|d| self.count(c, d) + self.count(d, c) > 0);
        let seen: Vec<usize> = (0..self.classes).filter(seen).collect();
        ratio(seen.iter().map(|&c| of(self, c)).sum(), seen.len() as f64)
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of class 1 there are 4, of which 3 are found; 5 are taken for it: precision 3/5, recall 3/4, F1 2·3/(5 + 4).
    #[test]
    fn figures_as_worked_out_by_hand() {
        let mut two = Confusion::new(2);
        for (truth, predicted, times) in [(0, 0, 4), (0, 1, 2), (1, 0, 1), (1, 1, 3)] {
            (0..times).for_each(|_| two.add(truth, predicted));
        }
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-15, "{a} {b}");
        close(two.accuracy(), 0.7);
        close(two.precision(1), 0.6);
        close(two.recall(1), 0.75);
        close(two.headline(Confusion::f1), 6.0 / 9.0);
        close(two.macro_mean(Confusion::f1), (6.0 / 9.0 + 8.0 / 11.0) / 2.0);
        // A class that neither occurs nor is predicted.
        let mut three = Confusion::new(3);
        three.add(0, 0);
        close(three.headline(Confusion::f1), 1.0);
        assert_eq!((three.precision(2), three.recall(2), Confusion::new(2).accuracy()), (0.0, 0.0, 0.0));
    }

    /// Counted by hand; scikit-learn 1.9 gives the same. Class 3 neither occurs nor is predicted, so it is in no mean.
    #[test]
    fn means_over_classes_are_those_of_scikit_learn() {
        let mut all = Confusion::new(4);
        for (truth, predicted) in [0, 0, 0, 1, 1, 2, 2, 2, 2, 2].into_iter().zip([0, 1, 0, 1, 1, 2, 0, 2, 1, 2]) {
            all.add(truth, predicted);
        }
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(all.accuracy(), 0.7);
        close(all.macro_mean(Confusion::precision), (2.0 / 3.0 + 0.5 + 1.0) / 3.0);
        close(all.macro_mean(Confusion::recall), (2.0 / 3.0 + 1.0 + 0.6) / 3.0);
        close(all.macro_mean(Confusion::f1), (2.0 / 3.0 + 2.0 / 3.0 + 0.75) / 3.0);
        // One that is predicted and never occurs is in it, as 0.
        let mut wrong = Confusion::new(2);
        wrong.add(0, 0);
        wrong.add(0, 1);
        close(wrong.macro_mean(Confusion::f1), (2.0 / 3.0) / 2.0);
    }
}
