use super::*;
use crate::case::Case;
use crate::cpu::{Cpu, Typed};
use crate::device::{Device, Precision};
use crate::graph::Graph;
use crate::graph::Tensor;
use crate::plan::{Plan, PlanOptions};
use crate::validate::{Expected, run_case};
use std::sync::Arc;

#[test]
fn tiles_agree_with_the_definition_in_f64() {
    for case in validation::cases() {
        let expected = Expected::of(&case, Precision::F64).unwrap();
        for threads in [1, 3] {
            let results = run_case(&case, Arc::new(Cpu::<f64>::new(threads))).unwrap();
            for row in expected.compare(ENTRY.name, &case.name, &results) {
                assert!(row.passed, "{}: {}: {} over {}", row.case, row.tensor, row.error, row.bound);
            }
        }
    }
}

/// Several tiles and segments, few heads: where the number of threads decides the schedule.
#[test]
fn threads_do_not_change_a_bit() {
    for causal in [false, true] {
        let case = Case::new("long", move |g| {
            let inputs =
                [g.normal("q", &[1, 2, 2500, 4]), g.normal("k", &[1, 1, 2600, 4]), g.normal("v", &[1, 1, 2600, 8])];
            g.record(LinearAttention { causal, ..Default::default() }, &inputs)
        });
        let run = |threads| run_case(&case, Arc::new(Cpu::<f32>::new(threads))).unwrap();
        let one = run(1);
        assert!([2, 5].into_iter().all(|threads| run(threads) == one));
        // In f64, the tiles and segments agree with the definition.
        let expected = Expected::of(&case, Precision::F64).unwrap();
        let results = run_case(&case, Arc::new(Cpu::<f64>::new(2))).unwrap();
        assert!(expected.compare(ENTRY.name, &case.name, &results).iter().all(|row| row.passed));
    }
}

/// Σ seed·out as a function of all inputs.
fn objective(plan: &Plan, out: Tensor, inputs: &[Tensor], values: &[Vec<f64>], seed: &[f64]) -> f64 {
    inputs.iter().zip(values).for_each(|(&t, v)| plan.write(t, v).unwrap());
    plan.forward().unwrap();
    plan.read(out).unwrap().iter().zip(seed).map(|(a, b)| a * b).sum()
}

#[test]
fn gradients_are_the_derivatives() {
    for (causal, feature_map) in [(false, FeatureMap::Elu1), (true, FeatureMap::Elu1), (true, FeatureMap::Relu)] {
        let mut graph = Graph::new();
        let inputs = [
            graph.variable("q", &[2, 2, 4, 3]),
            graph.variable("k", &[2, 1, 5, 3]),
            graph.variable("v", &[2, 1, 5, 2]),
        ];
        let lengths = graph.indices("key_lengths", &[2], 0..6);
        let all = [inputs[0], inputs[1], inputs[2], lengths];
        let out = graph.one(LinearAttention { causal, feature_map }, &all).unwrap();
        let generator = crate::philox::Philox::new(7, 0, 0);
        let mut next = 0u64..;
        let mut draw = |n: usize| -> Vec<f64> { (0..n).map(|_| generator.normal(next.next().unwrap())).collect() };
        let mut values: Vec<Vec<f64>> = inputs.iter().map(|&t| draw(graph.spec(t).numel())).collect();
        let seed = draw(graph.spec(out).numel());
        let device: Arc<dyn Device> = Arc::new(Cpu::<f64>::definition());
        let plan = Plan::new(graph, device, &PlanOptions { roots: vec![out], ..Default::default() }).unwrap();
        plan.write_indices(lengths, &[5, 4]).unwrap();
        plan.seed(out, &seed).unwrap();
        objective(&plan, out, &inputs, &values, &seed);
        plan.backward().unwrap();
        let gradients: Vec<Vec<f64>> = inputs.iter().map(|&t| plan.read_gradient(t).unwrap()).collect();
        let step = 1e-5;
        for i in 0..3 {
            for j in 0..values[i].len() {
                let x = values[i][j];
                values[i][j] = x + step;
                let above = objective(&plan, out, &inputs, &values, &seed);
                values[i][j] = x - step;
                let below = objective(&plan, out, &inputs, &values, &seed);
                values[i][j] = x;
                let (got, expected) = (gradients[i][j], (above - below) / (2.0 * step));
                assert!((got - expected).abs() < 1e-7 * (1.0 + expected.abs()), "input {i}, {j}: {got}, {expected}");
            }
        }
    }
}

/// Outputs of one head of 150 queries and keys, with a NaN at one element of one input.
fn with_nan<R: Typed>(device: Cpu<R>, op: LinearAttention, input: usize, element: usize) -> Vec<f64> {
    let mut graph = Graph::new();
    let inputs = ["q", "k", "v"].map(|name| graph.variable(name, &[1, 1, 150, 4]));
    let lengths = graph.indices("key_lengths", &[1], 0..151);
    let out = graph.one(op, &[inputs[0], inputs[1], inputs[2], lengths]).unwrap();
    let plan = Plan::new(graph, Arc::new(device), &PlanOptions { keep: vec![out], ..Default::default() }).unwrap();
    for (i, &t) in inputs.iter().enumerate() {
        let mut values = vec![0.5; 600];
        if i == input {
            values[element] = f64::NAN;
        }
        plan.write(t, &values).unwrap();
    }
    plan.write_indices(lengths, &[140]).unwrap();
    plan.forward().unwrap();
    plan.read(out).unwrap()
}

#[test]
fn nan_is_seen_where_it_is_visible() {
    for feature_map in FeatureMap::ALL {
        for causal in [false, true] {
            let op = LinearAttention { causal, feature_map };
            for input in 0..3 {
                // Key 100 reaches the last query; key 145 lies past the length.
                assert!(
                    with_nan(Cpu::<f32>::new(1), op, input, 100 * 4)[600 - 4..].iter().any(|x| x.is_nan())
                        || input == 0
                );
                assert!(with_nan(Cpu::<f32>::new(1), op, input, 100 * 4)[100 * 4].is_nan());
                let past = with_nan(Cpu::<f32>::new(1), op, input, 145 * 4);
                assert_eq!(input == 0, past.iter().any(|x| x.is_nan()));
                assert!(with_nan(Cpu::<f64>::definition(), op, input, 100 * 4)[100 * 4].is_nan());
            }
        }
    }
}

#[test]
fn names_of_feature_maps() {
    for map in FeatureMap::ALL {
        assert_eq!(map.name().parse::<FeatureMap>().unwrap(), map);
    }
    assert!("elu".parse::<FeatureMap>().unwrap_err().to_string().contains("elu1, relu"));
}
