//! Backward against central differences of forward, in f64 and straight from the definition.

use attn_engine::case::{Case, Data};
use attn_engine::cpu::Cpu;
use attn_engine::{Plan, PlanOptions, Result, Tensor};
use std::sync::Arc;

/// Half the distance of the two points. The truncation is of order STEP², the rounding of order 1e-16/STEP.
pub const STEP: f64 = 1e-5;

/// Inputs of at most this many elements in all are differentiated: a forward pass for each twice.
pub const ELEMENTS: usize = 3000;

/// Compares every gradient of a case with central differences of Σ outputs·seeds, and returns the largest error
/// max|d − difference| / max(max|d|, 1) with the input's name; `None` if the case has too many elements, or no gradients.
pub fn check(case: &Case) -> Result<Option<(String, f64)>> {
    let (graph, outputs) = case.build()?;
    let roots: Vec<Tensor> = outputs.iter().copied().filter(|&t| graph.needs_gradient(t)).collect();
    let variables: Vec<&(Tensor, Data)> = graph.data.iter().filter(|(t, _)| graph.needs_gradient(*t)).collect();
    let elements: usize = variables.iter().map(|(t, _)| graph.spec(*t).numel()).sum();
    if elements > ELEMENTS || roots.is_empty() {
        return Ok(None);
    }
    let seeds: Vec<Vec<f64>> = roots.iter().map(|&t| graph.draw(graph.spec(t).numel(), 1.0)).collect();
    let options = PlanOptions { roots: roots.clone(), poison: true, ..Default::default() };
    let plan = Plan::new((*graph).clone(), Arc::new(Cpu::<f64>::definition()), &options)?;
    for (t, data) in &graph.data {
        match data {
            Data::Real(values) => plan.write(*t, values)?,
            Data::Int(values) => plan.write_indices(*t, values)?,
        }
    }
    let value = || -> Result<f64> {
        plan.forward()?;
        let mut sum = 0.0;
        for (&t, seed) in roots.iter().zip(&seeds) {
            sum += plan.read(t)?.iter().zip(seed).filter(|(y, _)| y.is_finite()).map(|(y, s)| y * s).sum::<f64>();
        }
        Ok(sum)
    };
    roots.iter().zip(&seeds).try_for_each(|(&t, seed)| plan.seed(t, seed))?;
    plan.forward()?;
    plan.backward()?;
    // All of them now: the next forward may take their memory.
    let gradients: Vec<Vec<f64>> = variables.iter().map(|(t, _)| plan.read_gradient(*t)).collect::<Result<_>>()?;

    let mut worst = (String::new(), 0.0);
    for ((t, data), gradient) in variables.into_iter().zip(gradients) {
        let Data::Real(values) = data else { continue };
        let scale = gradient.iter().fold(1.0f64, |m, d| m.max(d.abs()));
        let mut moved = values.clone();
        for i in (0..values.len()).filter(|&i| values[i].is_finite()) {
            let mut at = |x: f64| {
                moved[i] = x;
                plan.write(*t, &moved)?;
                value()
            };
            let difference = (at(values[i] + STEP)? - at(values[i] - STEP)?) / (2.0 * STEP);
            moved[i] = values[i];
            let error = (difference - gradient[i]).abs() / scale;
            // A NaN must not look like a small error.
            if error.is_nan() || error > worst.1 {
                worst = (format!("{}[{i}]", graph.name(*t)), error);
            }
        }
        plan.write(*t, values)?;
    }
    Ok(Some(worst))
}
