//! Comparing a device with the oracle, case by case.
//!
//! Error of a tensor: max|x − ref| / max(max|ref|, 0.1) against `Cpu<f64>` in [`crate::op::Mode::Definition`]. The
//! bound is FlashAttention's rule: twice the error of the plain same-precision computation plus a floor per dtype. Plain
//! is the definition in f32 with every tensor that the device stores in 16 bits rounded to them; it and the oracle start
//! from inputs that are so rounded. In TF32, inputs and results are rounded to its 10 bits likewise. Memory is poisoned with NaN first, and NaN never passes.

use crate::case::{Case, Data};
use crate::cpu::Cpu;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::Tensor;
use crate::op::Kind;
use crate::ops::Entry;
use crate::plan::{Plan, PlanOptions};
use crate::precision::Precision;
use serde::Serialize;
use std::sync::Arc;

/// One tensor of one case, compared.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The op's name.
    pub op: String,
    /// The case, with the thread order if it ran in several.
    pub case: String,
    /// `out:0` and so on for outputs, `d` + name for gradients.
    pub tensor: String,
    /// The dtype of the computation.
    pub dtype: &'static str,
    /// As defined above; infinite where a NaN or infinity stands in one of the two only.
    pub error: f64,
    /// What it may be at most.
    pub bound: f64,
    /// Whether it is.
    pub passed: bool,
}

/// A tensor that a case gives, by name.
pub type Named = (String, Vec<f64>);

/// Runs a case forward and backward on a device and reads every output and every gradient; then what follows for a
/// few steps, and reads what that leaves: parameters, the optimiser's slots, hyper-parameters.
///
/// # Errors
/// If the case does not record, or the device fails.
pub fn run_case(case: &Case, device: Arc<dyn Device>) -> Result<Vec<Named>> {
    let precision = device.precision();
    run_case_in(case, device, precision)
}

/// The same with inputs, and gradients that flow in, rounded to what a device of this precision stores.
fn run_case_in(case: &Case, device: Arc<dyn Device>, inputs: Precision) -> Result<Vec<Named>> {
    let (graph, outputs) = case.build()?;
    let rounded = |t: Tensor, values: &[f64]| -> Vec<f64> {
        let precision = if graph.spec(t).kind == Kind::Full { inputs.full() } else { inputs };
        values.iter().map(|&x| precision.round_factor(x)).collect()
    };
    let roots: Vec<Tensor> = outputs.iter().copied().filter(|&t| graph.needs_gradient(t)).collect();
    let seeds: Vec<Vec<f64>> = roots.iter().map(|&t| graph.draw(graph.spec(t).numel(), 1.0)).collect();
    let data = graph.data.clone();
    let optimizer_slots = case.training.as_ref().map_or(0, |t| t.slots);
    let options = PlanOptions {
        roots: roots.clone(),
        keep: outputs.clone(),
        optimizer_slots,
        poison: true,
        ..Default::default()
    };
    let plan = Plan::new((*graph).clone(), device, &options)?;
    for (t, data) in &data {
        match data {
            Data::Real(values) => plan.write(*t, &rounded(*t, values))?,
            Data::Int(values) => plan.write_indices(*t, values)?,
        }
    }
    roots.iter().zip(&seeds).try_for_each(|(&t, seed)| plan.seed(t, &rounded(t, seed)))?;
    plan.forward()?;
    let mut results = Vec::new();
    for (i, &t) in outputs.iter().enumerate() {
        results.push((format!("out:{i}"), plan.read(t)?));
    }
    if !roots.is_empty() {
        plan.backward()?;
        for (t, _) in data.iter().filter(|(t, _)| graph.needs_gradient(*t)) {
            results.push((format!("d{}", graph.name(*t)), plan.read_gradient(*t)?));
        }
    }
    if let Some(training) = &case.training {
        for step in 1..=3 {
            plan.forward()?;
            plan.backward()?;
            plan.write_hyper(&(training.hyper)(step))?;
            training.updates.iter().try_for_each(|update| plan.update(&**update))?;
        }
        for t in graph.parameters() {
            results.push((graph.name(t).to_string(), plan.read(t)?));
        }
        for slot in 0..training.slots {
            results.push((format!("slot:{slot}"), plan.read_slot(slot)?));
        }
        results.push(("hyper".into(), plan.read_hyper()?));
    }
    plan.device().synchronize()?;
    Ok(results)
}

/// max|x − ref| / max(max|ref|, 0.1). A reference that is zero throughout is compared absolutely. Infinities must
/// agree; a NaN anywhere makes the error infinite.
///
/// # Panics
/// If the lengths differ.
pub fn error(x: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(x.len(), reference.len());
    let mut difference = 0.0f64;
    let mut largest = 0.0f64;
    for (&x, &r) in x.iter().zip(reference) {
        if x == r {
            largest = if r.is_finite() { largest.max(r.abs()) } else { largest };
        } else if !x.is_finite() || !r.is_finite() {
            return f64::INFINITY;
        } else {
            difference = difference.max((x - r).abs());
            largest = largest.max(r.abs());
        }
    }
    if largest == 0.0 { difference } else { difference / largest.max(0.1) }
}

/// What is added to twice the plain computation's error.
fn floor(precision: Precision) -> f64 {
    match precision {
        Precision::F64 => 1e-10,
        Precision::F32 => 2e-6,
        Precision::Tf32 | Precision::F16 => 1e-3,
        Precision::Bf16 => 8e-3,
    }
}

/// What one case should give, and how far the plain computation is from it.
pub struct Expected {
    precision: Precision,
    oracle: Vec<Named>,
    /// Nothing in f64, which is compared with itself.
    plain: Option<Vec<f64>>,
}

impl Expected {
    /// Runs the oracle, and unless in f64 the plain computation.
    ///
    /// # Errors
    /// If the case does not record.
    pub fn of(case: &Case, precision: Precision) -> Result<Expected> {
        let oracle = run_case_in(case, Arc::new(Cpu::<f64>::definition()), precision)?;
        let plain = match precision {
            Precision::F64 => None,
            _ => {
                let plain = run_case_in(case, Arc::new(Cpu::<f32>::definition_rounded_to(precision)), precision)?;
                Some(plain.iter().zip(&oracle).map(|((_, x), (_, r))| error(x, r)).collect())
            }
        };
        Ok(Expected { precision, oracle, plain })
    }

    /// Compares results with it.
    pub fn compare(&self, op: &str, case: &str, results: &[Named]) -> Vec<Row> {
        (results.iter().zip(&self.oracle).enumerate())
            .map(|(i, ((name, x), (_, reference)))| {
                let plain = self.plain.as_ref().map_or(0.0, |plain| 2.0 * plain[i]);
                let (dtype, bound) = (self.precision.name(), plain + floor(self.precision));
                let error = error(x, reference);
                // A bound that is not finite would let anything pass.
                let passed = bound.is_finite() && error <= bound;
                let (op, case, tensor) = (op.to_string(), case.to_string(), name.clone());
                Row { op, case, tensor, dtype, error, bound, passed }
            })
            .collect()
    }
}

/// A way to run a case: its label (empty if there is but one) and what to set before it.
pub type Schedule = (String, Box<dyn Fn()>);

/// A case that a device's precision has no kernels for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// The op's name.
    pub op: String,
    /// The case.
    pub case: String,
    /// The precision.
    pub dtype: &'static str,
    /// What is missing.
    pub reason: String,
}

/// What is missing for a case to run in this precision, if anything.
///
/// # Errors
/// If the case does not record.
pub fn lacks(case: &Case, precision: Precision) -> Result<Option<String>> {
    if case.of_indices && precision != precision.full() {
        return Ok(Some("is about indices, which f32 shows".into()));
    }
    let (graph, _) = case.build()?;
    let has_products = graph.nodes.iter().any(|n| n.op.precisions().contains(&Precision::Tf32));
    if precision == Precision::Tf32 && !has_products {
        return Ok(Some("has no products in TF32".into()));
    }
    Ok(graph.check(precision).err().map(|e| e.to_string()))
}

/// Validates every case of the entries on a device, and says which its precision does not have. `schedules` says in
/// which ways each case runs; in none, if the list is empty.
///
/// # Errors
/// If a case does not record or the device fails, naming op and case.
pub fn validate(
    entries: &[&Entry],
    device: &Arc<dyn Device>,
    schedules: &dyn Fn(&Case) -> Vec<Schedule>,
    report: &mut dyn FnMut(&[Row]),
) -> Result<Vec<Absent>> {
    let mut absent = Vec::new();
    for entry in entries {
        for case in (entry.cases)() {
            let named = |e: Error| {
                Error::device(
                    device.name(),
                    format!("{}, case `{}`: {e}", entry.name, case.name),
                    "see the case in the op's file",
                )
            };
            if let Some(reason) = lacks(&case, device.precision()).map_err(named)? {
                let (op, case, dtype) = (entry.name.into(), case.name, device.precision().name());
                absent.push(Absent { op, case, dtype, reason });
                continue;
            }
            let schedules = schedules(&case);
            if schedules.is_empty() {
                continue;
            }
            let expected = Expected::of(&case, device.precision()).map_err(named)?;
            for (label, prepare) in schedules {
                prepare();
                let results = run_case(&case, device.clone()).map_err(named)?;
                let name = if label.is_empty() { case.name.clone() } else { format!("{} ({label})", case.name) };
                report(&expected.compare(entry.name, &name, &results));
            }
        }
    }
    Ok(absent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_never_passes() {
        assert_eq!(error(&[f64::NAN], &[f64::NAN]), f64::INFINITY);
        assert_eq!(error(&[f64::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(error(&[f64::NEG_INFINITY, 1.0], &[f64::NEG_INFINITY, 1.0]), 0.0);
        assert_eq!(error(&[f64::INFINITY], &[1.0]), f64::INFINITY);
        assert_eq!(error(&[0.5], &[0.0]), 0.5);
        assert!((error(&[2.2], &[2.0]) - 0.1).abs() < 1e-12);
    }
}
