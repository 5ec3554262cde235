use super::*;
use crate::cpu::Cpu;
use crate::device::{Device, Precision};
use crate::plan::{Plan, PlanOptions};
use crate::validate::{Expected, run_case};
use std::sync::Arc;

#[test]
fn fast_agrees_with_the_definition_in_f64() {
    for case in cases() {
        let expected = Expected::of(&case, Precision::F64).unwrap();
        let results = run_case(&case, Arc::new(Cpu::<f64>::new(2))).unwrap();
        for row in expected.compare(ENTRY.name, &case.name, &results) {
            assert!(row.passed, "{}: {}: {} over {}", row.case, row.tensor, row.error, row.bound);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let case =
        attention_case(Shape { heads: (1, 2, 1), lengths: (300, 400), dims: (5, 8) }, true, &[350], |g, inputs| {
            g.record(MeanSimilarityAttention { causal: true, scale: None }, inputs)
        });
    let run = |threads| run_case(&case, Arc::new(Cpu::<f32>::new(threads))).unwrap();
    let one = run(1);
    assert!([2, 5].into_iter().all(|threads| run(threads) == one));
}

/// The definition itself against the formula in a few lines, and its gradients against differences.
#[test]
fn definition_and_derivatives() {
    let (t, s, dk, dv) = (3, 4, 3, 2);
    let mut graph = Graph::new();
    let inputs =
        [graph.variable("q", &[1, 1, t, dk]), graph.variable("k", &[1, 1, s, dk]), graph.variable("v", &[1, 1, s, dv])];
    let op = MeanSimilarityAttention { causal: true, scale: Some(1.5) };
    let out = graph.one(op, &inputs).unwrap();
    let generator = crate::philox::Philox::new(3, 0, 0);
    let draw =
        |from: u64, n: usize| -> Vec<f64> { (from..from + n as u64).map(|i| 2.0 * generator.normal(i)).collect() };
    let mut values = [draw(0, t * dk), draw(100, s * dk), draw(200, s * dv)];
    let seed = draw(300, t * dv);
    let device: Arc<dyn Device> = Arc::new(Cpu::<f64>::definition());
    let plan = Plan::new(graph, device, &PlanOptions { roots: vec![out], ..Default::default() }).unwrap();
    plan.seed(out, &seed).unwrap();
    let forward = |values: &[Vec<f64>; 3]| {
        inputs.iter().zip(values).for_each(|(&t, v)| plan.write(t, v).unwrap());
        plan.forward().unwrap();
        plan.read(out).unwrap()
    };

    let got = forward(&values);
    let mean = |x: &[f64], i: usize| x[i * dk..(i + 1) * dk].iter().sum::<f64>() / dk as f64;
    for i in 0..t {
        let visible = i + 1 + s - t;
        let w: Vec<f64> = (0..visible).map(|j| (1.5 * mean(&values[0], i) * mean(&values[1], j)).exp()).collect();
        for e in 0..dv {
            let sum: f64 = w.iter().enumerate().map(|(j, w)| w * values[2][j * dv + e]).sum();
            assert!((got[i * dv + e] - sum / w.iter().sum::<f64>()).abs() < 1e-12);
        }
    }

    plan.backward().unwrap();
    let gradients = inputs.map(|t| plan.read_gradient(t).unwrap());
    let objective = |values: &[Vec<f64>; 3]| -> f64 { forward(values).iter().zip(&seed).map(|(a, b)| a * b).sum() };
    for i in 0..3 {
        for j in 0..values[i].len() {
            let x = values[i][j];
            values[i][j] = x + 1e-5;
            let above = objective(&values);
            values[i][j] = x - 1e-5;
            let below = objective(&values);
            values[i][j] = x;
            let expected = (above - below) / 2e-5;
            assert!((gradients[i][j] - expected).abs() < 1e-7 * (1.0 + expected.abs()), "input {i}, element {j}");
        }
    }
}
