//! Axes: where numbers lie, and which of them are written there.

/// Which numbers are written along an axis, and how.
#[derive(Debug, Clone, PartialEq)]
pub enum Ticks {
    /// Round numbers, about eight.
    Round,
    /// Powers of two: 256, 512, 1k, 2k, … 1M.
    PowersOfTwo,
    /// Milliseconds at powers of ten, with the unit that suits each; twice and five times them where they are few.
    Times,
    /// 0, 25, 50, 75 and 100 % of 1.
    Shares,
    /// These.
    At(Vec<f64>),
}

/// An axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What its numbers are; empty where the ticks tell.
    pub label: String,
    /// Whether equal ratios are equally long, or equal differences.
    pub logarithmic: bool,
    /// What is written along it.
    pub ticks: Ticks,
}

impl Axis {
    /// Equal differences are equally long.
    pub fn linear(label: &str, ticks: Ticks) -> Axis {
        Axis { label: label.into(), logarithmic: false, ticks }
    }

    /// Equal ratios are equally long.
    pub fn logarithmic(label: &str, ticks: Ticks) -> Axis {
        Axis { label: label.into(), logarithmic: true, ticks }
    }

    /// From where to where it goes so that these numbers have room.
    pub(super) fn range(&self, numbers: impl Iterator<Item = f64>) -> (f64, f64) {
        if self.ticks == Ticks::Shares {
            return (0.0, 1.0);
        }
        let usable = numbers.filter(|x| x.is_finite() && (!self.logarithmic || *x > 0.0));
        let (low, high) = usable.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        match (low < high, low == high, self.logarithmic) {
            (true, ..) => (low, high),
            // One number alone still gets an axis around it.
            (_, true, true) => (low / 2.0, high * 2.0),
            (_, true, false) => (low - 0.5, high + 0.5),
            (.., true) => (1.0, 10.0),
            (.., false) => (0.0, 1.0),
        }
    }

    /// A range and a share of it on either side.
    pub(super) fn widened(&self, (low, high): (f64, f64), share: f64) -> (f64, f64) {
        match (&self.ticks, self.logarithmic) {
            (Ticks::Shares, _) => (low, high),
            (_, true) => (low * (low / high).powf(share), high * (high / low).powf(share)),
            (_, false) => (low - share * (high - low), high + share * (high - low)),
        }
    }

    /// How far along the range a number lies: from 0 to 1 within it.
    pub(super) fn along(&self, (low, high): (f64, f64), x: f64) -> f64 {
        match self.logarithmic {
            true => (x / low).ln() / (high / low).ln(),
            false => (x - low) / (high - low),
        }
    }

    /// What is written within a range, and where.
    pub(super) fn ticks(&self, (low, high): (f64, f64)) -> Vec<(f64, String)> {
        match &self.ticks {
            Ticks::Round => round(low, high).into_iter().map(|x| (x, number(x))).collect(),
            Ticks::PowersOfTwo => powers_of_two(low, high).into_iter().map(|x| (x, thousands(x))).collect(),
            Ticks::Times => times(low, high).into_iter().map(|x| (x, time(x))).collect(),
            Ticks::Shares => (0..=4).map(|i| (i as f64 / 4.0, format!("{} %", 25 * i))).collect(),
            Ticks::At(all) => all.iter().map(|x| (*x, number(*x))).collect(),
        }
    }
}

fn round(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|f| f * power).into_iter().find(|s| *s >= rough).unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|t| *t <= high + 1e-9 * step).collect()
}

/// In as few digits as tell ticks apart.
fn number(x: f64) -> String {
    ((x * 1e6).round() / 1e6).to_string()
}

/// Thinned to at most nine.
fn powers_of_two(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = ((low.log2() - 1e-9).ceil() as i32, (high.log2() + 1e-9).floor() as i32);
    let step = ((last - first) / 9 + 1).max(1);
    (first..=last).step_by(step as usize).map(|e| 2f64.powi(e)).collect()
}

fn thousands(x: f64) -> String {
    match x {
        x if x >= 1048576.0 => format!("{}M", x / 1048576.0),
        x if x >= 1024.0 => format!("{}k", x / 1024.0),
        x => x.to_string(),
    }
}

fn times(low: f64, high: f64) -> Vec<f64> {
    let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let factors: &[f64] = if (high / low).log10() < 2.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let all = decades.flat_map(|e| factors.iter().map(move |f| f * 10f64.powi(e)));
    all.filter(|&t| t >= low * 0.999 && t <= high * 1.001).collect()
}

fn time(ms: f64) -> String {
    let (value, unit) = match ms {
        ms if ms >= 999.0 => (ms / 1e3, "s"),
        ms if ms >= 0.999 => (ms, "ms"),
        ms => (ms * 1e3, "µs"),
    };
    format!("{} {unit}", (value * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: Axis, range: (f64, f64)) -> Vec<String> {
        axis.ticks(range).into_iter().map(|t| t.1).collect()
    }

    #[test]
    fn ticks_are_round_and_cover() {
        assert_eq!(round(0.0, 8.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(round(1.0, 2000.0), [500.0, 1000.0, 1500.0, 2000.0]);
        assert_eq!(labels(Axis::linear("", Ticks::Round), (0.12, 0.71))[0], "0.2");
        assert_eq!(
            labels(Axis::logarithmic("", Ticks::PowersOfTwo), (256.0, 4096.0)),
            ["256", "512", "1k", "2k", "4k"]
        );
        assert_eq!(labels(Axis::logarithmic("", Ticks::Times), (0.04, 30.0)), ["100 µs", "1 ms", "10 ms"]);
        assert_eq!(labels(Axis::linear("", Ticks::Shares), (0.0, 1.0))[3], "75 %");
    }

    #[test]
    fn every_axis_has_a_range() {
        let (linear, log) = (Axis::linear("", Ticks::Round), Axis::logarithmic("", Ticks::Times));
        assert_eq!(linear.range([3.0, f64::NAN, 5.0].into_iter()), (3.0, 5.0));
        assert_eq!(log.range([0.0, 2.0].into_iter()), (1.0, 4.0));
        assert_eq!((linear.range(std::iter::empty()), log.range(std::iter::empty())), ((0.0, 1.0), (1.0, 10.0)));
        assert_eq!(log.along((1.0, 100.0), 10.0), 0.5);
    }
}
